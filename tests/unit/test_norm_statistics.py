"""Running statistics that a short training leaves stale, and losses that part."""

import pytest
import torch
from torch import nn

from tokenunify import config as c
from tokenunify.learning import networks, norm_statistics, trainable, training_log


def build(momentum=0.1, **options):
    torch.manual_seed(0)
    return networks.build({"name": "superhuman", "filters": [2, 3], "norm_momentum": momentum, **options})


@pytest.mark.parametrize(("momentum", "last"), [(0.1, 43), (0.01, 458), (0.001, 4602)], ids=lambda value: str(value))
def test_statistics_are_stale_until_a_hundredth_of_their_first_value_is_left(momentum, last):
    network = build(momentum)
    layers = [module for module in network.modules() if isinstance(module, nn.BatchNorm3d)]
    assert norm_statistics.stale(network, last) == layers != []
    assert norm_statistics.stale(network, last + 1) == []


def test_frozen_statistics_and_networks_without_any_are_left_alone():
    network = build()
    trainable.train_only(network, "decoder")
    trained = {name.split(".")[0] for name, m in network.named_modules() if m in norm_statistics.stale(network, 1)}
    assert trained == {"cat0", "conv1"}
    assert norm_statistics.stale(build(normalisation="instance"), 0) == []
    mamba = {"name": "emmamba", "features": [4], "hidden": 5, "depths": [1], "strides": [[1, 2, 2]]}
    assert norm_statistics.stale(networks.build(mamba), 0) == []


def test_renewed_statistics_are_the_mean_over_batches_and_all_else_stays():
    layer = nn.BatchNorm3d(3, momentum=0.25)
    task = nn.Sequential(layer, nn.Dropout(0.5))
    batches = [torch.randn(2, 3, 4, 5, 6) * scale + scale for scale in (1.0, 2.0, 5.0)]
    task(batches[0])
    norm_statistics.renew(task, [layer], batches)
    means = [batch.mean((0, 2, 3, 4)) for batch in batches]
    variances = [batch.transpose(0, 1).flatten(1).var(1) for batch in batches]
    torch.testing.assert_close(layer.running_mean, torch.stack(means).mean(0))
    torch.testing.assert_close(layer.running_var, torch.stack(variances).mean(0))
    assert (layer.momentum, int(layer.num_batches_tracked), task.training, layer.training) == (0.25, 1, True, True)


@pytest.mark.parametrize(
    ("loss", "validation", "expected"),
    [
        (0.4, 536, True),
        (0.4, 0.64, False),
        (1, 10, False),
        (1, 10.1, True),
        (5, 0.4, True),
        (0, 0, False),
        (1, "", False),
    ],
)
def test_losses_that_part_are_told(loss, validation, expected, caplog, tmp_path):
    row = {"step": 100, "loss": loss, "validation_loss": validation}
    training_log.warn_if_parted(row)
    assert training_log.parted(row) == expected == ("step 100: validation loss" in caplog.text)
    (tmp_path / "log.csv").write_text(f"step,loss,validation_loss\n100,{loss},{validation}\n")
    assert training_log.parted_steps(tmp_path / "log.csv") == [100] * expected


def test_published_constructors_keep_their_momentum_and_ours_suits_short_trainings():
    assert c.Superhuman().norm_momentum == c.Pea().norm_momentum == 0.1
    for name in ("superhuman-released", "pea-released", "pea-deep-released"):
        network = networks.build({"name": name, "filters": [2, 3, 4]})
        assert {m.momentum for m in network.modules() if isinstance(m, nn.BatchNorm3d)} == {0.001}, name
    assert norm_statistics.stale(build(c.Superhuman().norm_momentum), c.Finetune().validate_every) == []
