"""Running statistics of batch normalisation are those of the data, however short the training."""

import pytest
import torch
from torch import nn

from tokenunify.learning import networks, statistics


def layers(momentum):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv3d(1, 3, (1, 3, 3)), nn.BatchNorm3d(3, momentum=momentum))


def batches():
    generator = torch.Generator().manual_seed(1)
    return [5 + torch.randn(2, 1, 3, 6, 7, generator=generator) * (1 + n) for n in range(4)]


@pytest.mark.parametrize(
    ("momentum", "steps", "expected"),
    [
        (0.001, 1000, True),
        (0.001, 4600, True),
        (0.001, 4610, False),
        (0.1, 43, True),
        (0.1, 44, False),
        (None, 1, False),
    ],
)
def test_the_start_is_forgotten_after_some_steps(momentum, steps, expected):
    assert statistics.remember_start(layers(momentum), steps) is expected


@pytest.mark.parametrize("name", ["emmamba", "unetr", "mala"])
def test_networks_without_running_statistics_have_none_to_estimate(name):
    with torch.device("meta"):
        assert not statistics.remember_start(networks.build({"name": name}), 1)


def test_estimated_statistics_are_the_mean_over_the_batches():
    module = layers(0.001).eval()
    statistics.estimate(module, batches())
    with torch.no_grad():
        maps = [module[0](batch).transpose(0, 1).flatten(1) for batch in batches()]
    mean, variance = (torch.stack([f(m) for m in maps]).mean(0) for f in (lambda m: m.mean(1), lambda m: m.var(1)))
    torch.testing.assert_close(module[1].running_mean, mean)
    torch.testing.assert_close(module[1].running_var, variance)
    assert module[1].momentum == 0.001 and not module.training


def test_published_networks_keep_their_momentum():
    with torch.device("meta"):
        momenta = [
            {m.momentum for m in networks.build({"name": name}).modules() if isinstance(m, nn.BatchNorm3d)}
            for name in ("superhuman", "pea", "superhuman-released", "pea-released", "pea-deep-released")
        ]
    assert momenta == [{0.1}, {0.1}, {0.001}, {0.001}, {0.001}]
