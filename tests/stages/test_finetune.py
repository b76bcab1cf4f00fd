"""Fine-tuning: it learns, it survives a kill without a trace, and it says what is wrong."""

import csv
import io
import json
import random
import re
import shutil
import signal
import subprocess
import sys
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tokenunify import config as c
from tokenunify.errors import InputError
from tokenunify.learning import checkpoint, finetune, loop, networks, objectives, optimisation
from tokenunify.learning.training_log import Log
from tokenunify.stages import sections
from tokenunify.store import arrays, manifest

NETWORK = c.Superhuman(filters=(2, 3), norm_momentum=0.1)
EMMAMBA = c.EMmamba(features=(3, 4), hidden=5, depths=(1, 1), kernel=(1, 3, 3), strides=((1, 2, 2),) * 2)


def write_volume(
    folder,
    name,
    *,
    shape=(9, 40, 52),
    labelled=True,
    seed=0,
    relabel=lambda labels: labels,
    mask=None,
    zero="background",
):
    """Cells in a brick pattern with dark membranes, (z, y, x) at 40 x 8 x 8 nm; their labels may be changed."""
    rng = np.random.default_rng(seed)
    z, y, x = np.indices(shape)
    labels = (1 + (y + 3 * (z // 3)) // 10 + 100 * (x // 13) + 10_000 * (z // 6)).astype(np.uint64)
    border = ((y + 3 * (z // 3) + 1) % 10 < 2) | ((x + 1) % 13 < 2)
    raw = np.where(border, 60, 190) + rng.normal(0, 10, shape)
    content = {
        "raw": {"shape": shape, "dtype": "uint8"},
        "labels": None,
        "voxel_size_nm": [40, 8, 8],
        "zero": zero,
    }
    grid = {"shape": shape, "chunk_shape": (4, 16, 16), "shard_shape": (8, 32, 32), "attributes": {}}
    arrays.create(folder / f"{name}.zarr/raw/0", dtype="uint8", **grid)[:] = raw.clip(0, 255).astype(np.uint8)
    if labelled:
        arrays.create(folder / f"{name}.zarr/labels/0", dtype="uint64", **grid)[:] = relabel(labels)
        content["labels"] = {"shape": shape, "dtype": "uint64"}
    if mask is not None:
        arrays.create(folder / f"{name}.zarr/mask/0", dtype="uint8", **grid)[:] = mask
        content["mask"] = {"shape": shape, "dtype": "uint8"}
    manifest.write(folder / f"{name}.json", {**content, "offset_nm": [0, 0, 0]})
    return folder / f"{name}.json"


@pytest.fixture(scope="module")
def volumes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("volumes")
    return {
        "train": write_volume(folder, "train"),
        "other": write_volume(folder, "other", shape=(12, 36, 48), seed=1),
        "small": write_volume(folder, "small", shape=(3, 12, 20), seed=2),
        "unlabelled": write_volume(folder, "unlabelled", labelled=False),
    }


def section(**given):
    """A training of seconds; what travels on the command line, with its version."""
    tiny = {
        "network": NETWORK,
        "sections": (None,),
        "crop": (4, 16, 20),
        "steps": 11,
        "validate_every": 4,
        "checkpoint_every": 3,
        "validation_crops": 2,
        "learning_rate": 1e-2,
    }
    return sections.to_json("finetune", sections.Finetune(**{**tiny, **given}))


def train(volumes, output, text=None, *, train=("train",), validation=("other",), seed=0, **start):
    parsed, plain = sections.from_json("finetune", text or section(sections=(None,) * len(train)))
    paths = {"train": [volumes[v] for v in train], "validation": [volumes[v] for v in validation]}
    finetune.run(parsed, plain, **paths, **start, output=output, seed=seed, threads=1, device="cpu")
    return output


def pretrain(folder, *, seed=7, network=NETWORK):
    """What a pre-training hands on, without the work: the network with a head for raw intensities."""
    torch.manual_seed(seed)
    description = network.model_dump(mode="json")
    tensors = networks.build(description, offsets=None).state_dict()
    checkpoint.save_weights(folder / "weights.safetensors", tensors)
    sha256 = manifest.file_sha256(folder / "weights.safetensors")
    manifest.write(folder / "weights.json", {"weights": sha256, "network": description, "seed": seed})
    return folder / "weights.json"


def publish(folder, value):
    """A file of published weights, as the download stage hands it on."""
    folder.mkdir(exist_ok=True)
    torch.save(value, folder / "net.pt")
    sha256 = manifest.file_sha256(folder / "net.pt")
    manifest.write(folder / "m.json", {"weights": {"sha256": sha256}}, {"weights": str(folder / "net.pt")})
    return folder / "m.json"


def tensors_of(output):
    return load_file(output.with_name("weights.safetensors"))


def transfer_of(output):
    with open(output.with_name("transfer.csv"), newline="") as file:
        return list(csv.DictReader(file))


def log_of(output):
    with open(output.with_name("log.csv"), newline="") as file:
        return list(csv.DictReader(file))


def test_outputs_rebuild_the_network(volumes, tmp_path):
    output = train(volumes, tmp_path / "models/m/seed0/weights.json", train=("train", "other"), validation=("small",))
    content = manifest.content(output)
    assert content["parameters"] == sum(p.numel() for p in checkpoint.rebuild(output)[0].parameters())
    assert content["weights"] == manifest.file_sha256(output.with_name("weights.safetensors"))
    assert content["pretraining"] == "none" and content["seed"] == 0
    assert set(content["inputs"]) == {"train", "other", "small"}
    assert content["finetune"]["steps"] == 11 and content["network"]["filters"] == [2, 3]
    rows = transfer_of(output)
    tensors = load_file(output.with_name("weights.safetensors"))
    assert {row["name"] for row in rows} == set(tensors)
    assert {(row["status"], row["reason"]) for row in rows} == {("new", "from scratch")}
    assert [int(row["step"]) for row in log_of(output)] == [4, 8, 10, 11]
    assert [bool(row["validation_loss"]) for row in log_of(output)] == [True, True, False, True]


KILLER = """
import os, signal, sys
from tokenunify import cli
from tokenunify.learning import checkpoint, loop
where, step = sys.argv[1], int(sys.argv[2])
def killing(function):
    def wrapped(self, *arguments):
        if self.progress.step == step and where == "step":
            os.kill(os.getpid(), signal.SIGKILL)
        result = function(self, *arguments)
        if self.progress.step == step and where == "validate":
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    return wrapped
name = {"step": "step", "validate": "validate"}[where]
setattr(loop.Training, name, killing(getattr(loop.Training, name)))
cli.main(sys.argv[3:])
"""


def test_killed_training_ends_with_the_same_bits(volumes, tmp_path, root):
    """Killed at five steps, and between the best weights of step 8 and the state of step 9."""
    pretrained = pretrain(tmp_path / "pretrain")
    text = section(ema=0.9, checkpoint="best", start="p", optimizer="muon")
    whole = train(volumes, tmp_path / "whole/weights.json", text, pretrained=[pretrained])
    output = tmp_path / "killed/weights.json"
    words = ["finetune", "--config-json", text, "--train", volumes["train"], "--validation", volumes["other"]]
    words += ["--pretrained", pretrained]
    words += ["--output", output, "--seed", "0", "--threads", "1", "--device", "cpu"]
    steps = random.Random(3).sample([1, 2, 3, 4, 5, 6, 7, 9, 10], 5)
    for step, where in sorted([*((step, "step") for step in steps), (8, "validate")]):
        command = [sys.executable, "-c", KILLER, where, str(step), *map(str, words)]
        assert subprocess.run(command, cwd=root, capture_output=True).returncode == -signal.SIGKILL
        assert not output.exists()
    train(volumes, output, text, pretrained=[pretrained])
    assert manifest.read(output)["run"]["attempts"] > 3  # of those that reached a state to save
    assert manifest.content(output) == manifest.content(whole)
    for name in ("weights.safetensors", "transfer.csv"):
        assert output.with_name(name).read_bytes() == whole.with_name(name).read_bytes()
    for a, b in zip(log_of(output), log_of(whole), strict=True):
        assert {**a, "seconds": 0} == {**b, "seconds": 0}


def test_adapters_survive_a_stop_and_the_start_is_not_read_again(volumes, tmp_path, monkeypatch):
    pretrained = pretrain(tmp_path / "pretrain")
    text = section(ema=0.9, start="p", train="lora", lora={"rank": 2})
    whole = train(volumes, tmp_path / "whole/weights.json", text, pretrained=[pretrained])
    output, step = tmp_path / "stopped/weights.json", loop.Training.step

    def stopping(self, *arguments):
        if self.progress.step == 5:
            raise KeyboardInterrupt
        step(self, *arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop.Training, "step", stopping)
        train(volumes, output, text, pretrained=[pretrained])
    pretrained.with_name("weights.safetensors").unlink()
    train(volumes, output, text, pretrained=[pretrained])
    assert manifest.read(output)["run"]["attempts"] == 2
    assert manifest.content(output) == manifest.content(whole)
    for name in ("weights.safetensors", "transfer.csv"):
        assert output.with_name(name).read_bytes() == whole.with_name(name).read_bytes()


def test_learning_lowers_the_loss(volumes, tmp_path):
    text = section(steps=100, network=c.Superhuman(filters=(6, 8), norm_momentum=0.1), loss="mse", validate_every=20)
    rows = log_of(train(volumes, tmp_path / "weights.json", text))
    losses = [float(row["validation_loss"]) for row in rows if row["validation_loss"]]
    samples = finetune.validation_samples(sections.from_json("finetune", text)[0], [volumes["other"]])
    targets, mask = (np.stack([s[name] for s in samples]) for name in ("targets", "mask"))
    constant = np.mean([targets[:, channel][mask[:, channel]].var() for channel in range(3)])
    assert losses[-1] < 0.5 * constant


@pytest.mark.parametrize("options", [{"ema": 0.9}, {"batch_size": 3, "accumulate": 2}, {"checkpoint": "last"}])
def test_slow_statistics_do_not_spoil_a_short_training(volumes, tmp_path, options):
    """Momentum plays no part in training itself: what differs is what validation and prediction are given."""
    fast, slow = (
        train(
            volumes,
            tmp_path / f"{m}/weights.json",
            section(network=c.Superhuman(filters=(2, 3), norm_momentum=m), **options),
        )
        for m in (0.1, 0.0001)
    )
    for a, b in zip(log_of(fast), log_of(slow), strict=True):
        assert a["loss"] == b["loss"]
        assert a["validation_loss"] == b["validation_loss"]
    assert all(torch.equal(a, tensors_of(slow)[name]) for name, a in tensors_of(fast).items())
    assert manifest.read(slow)["run"]["losses_part_at_steps"] == []


def test_labels_that_teach_to_join_everything_are_refused_and_the_share_is_told(volumes, tmp_path):
    """Membrane as 0 and nothing to tell it from what is unlabelled; with 0 as background the same labels will do."""
    eroded = {"relabel": lambda labels: np.where(np.indices(labels.shape)[1:].min(0) % 5 < 2, 0, 1)}
    sparse = {"train": write_volume(tmp_path / "sparse", "train", zero="unlabelled", **eroded)}
    with pytest.raises(InputError, match="volumes train is negative"):
        train(sparse, tmp_path / "sparse.json", section(erode_labels=True), validation=())
    dense = {"train": write_volume(tmp_path / "dense", "train", **eroded)}
    outputs = [
        train(v, tmp_path / f"{i}/weights.json", section(steps=1), validation=())
        for i, v in enumerate((dense, volumes))
    ]
    shares = [manifest.read(output)["run"]["negative_pairs"] for output in outputs]
    assert shares[0] > shares[1] > 0.01


def test_seed_decides_the_weights(volumes, tmp_path):
    text = section(steps=2)
    outputs = [train(volumes, tmp_path / f"{i}/weights.json", text, seed=seed) for i, seed in enumerate((0, 0, 1))]
    first, same, other = (manifest.content(output)["weights"] for output in outputs)
    assert first == same != other


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"erode_labels": True, "balance": "channel"},
        {"loss": "bce", "erode_labels": "3d", "augment": c.Augment(elastic=1)},
    ],
)
def test_labels_outside_the_mask_train_and_validate_nothing(tmp_path, options):
    mask = np.ones((9, 40, 52), np.uint8)
    mask[:2], mask[:, 9:], mask[3, 4, ::3] = 0, 0, 0
    changes = {
        "plain": lambda labels: labels,
        "garbage": lambda labels: np.where(mask, labels, np.random.default_rng(1).integers(0, 99, labels.shape)),
        "absent": lambda labels: labels * mask,
    }
    made = []
    for name, change in changes.items():
        volumes = {"train": write_volume(tmp_path / name, "train", relabel=change, mask=mask)}
        output = train(volumes, tmp_path / name / "weights.json", section(**options), validation=("train",))
        made.append((output.with_name("weights.safetensors").read_bytes(), log_of(output)))
    for weights, log in made[1:]:
        assert weights == made[0][0]
        assert [{**row, "seconds": 0} for row in log] == [{**row, "seconds": 0} for row in made[0][1]]


@pytest.mark.parametrize(
    "options",
    [
        {"precision": "bf16-mixed"},
        {"precision": "bf16-mixed", "train": "lora", "lora": {}},
        {"loss": "bce", "ema": 0.5, "checkpoint": "last"},
    ],
)
def test_options_run_to_the_end(volumes, tmp_path, options):
    output = train(volumes, tmp_path / "weights.json", section(steps=3, warmup_steps=2, clip_norm=None, **options))
    assert all(torch.isfinite(t.float()).all() for t in load_file(output.with_name("weights.safetensors")).values())


@pytest.mark.parametrize(
    "network",
    [
        c.Pea(filters=(2, 3), embedding=4),
        c.Unetr(patch=(4, 16, 4), feature=2, hidden=6, mlp=8, heads=1, layers=4),
        c.ResUnet(filters=(2, 3), kernels=((1, 3, 3), (3, 3, 3)), poolings=((1, 2, 2),)),
        c.Vit(patch=(2, 4, 5), hidden=12, mlp=9, heads=2, layers=1, feature=2),
    ],
    ids=lambda network: network.name,
)
def test_every_network_learns(volumes, tmp_path, network):
    options = {"network": network, "steps": 60, "validate_every": 59, "loss": "mse", "learning_rate": 3e-3}
    rows = log_of(train(volumes, tmp_path / "weights.json", section(**options)))
    losses = [float(row["loss"]) for row in rows]
    assert losses[-1] < losses[0]


def test_valid_convolutions_learn_the_middle_of_a_crop(tmp_path):
    """The smallest crop of MALA: targets of 1 x 2 x 2 voxels."""
    raw = {name: write_volume(tmp_path, name, shape=(30, 216, 243)) for name in ("train", "other")}
    text = section(network=c.Mala(filters=(2, 2, 2, 2)), crop=(29, 214, 214), steps=2, validation_crops=1)
    output = train(raw, tmp_path / "models/weights.json", text)
    samples = finetune.training_samples(sections.from_json("finetune", text)[0], [raw["train"]], seed=0)
    assert samples[0]["targets"].shape == (3, 1, 2, 2)
    assert checkpoint.rebuild(output)[1]["network"]["name"] == "mala"


def test_low_precision_is_used_in_training(volumes, tmp_path, monkeypatch):
    loss, seen = finetune.objectives.affinity_loss, []

    def watched(logits, *others):
        seen.append(logits.dtype)
        return loss(logits, *others)

    monkeypatch.setattr(finetune.objectives, "affinity_loss", watched)
    train(volumes, tmp_path / "weights.json", section(steps=1, precision="bf16-mixed"), validation=())
    assert set(seen) == {torch.bfloat16}


def test_without_validation_the_last_weights_are_kept(volumes, tmp_path):
    output = train(volumes, tmp_path / "weights.json", section(steps=3), validation=())
    assert manifest.read(output)["run"]["best_validation_loss"] is None


def test_validation_chooses_the_best_weights(volumes, tmp_path):
    output = train(volumes, tmp_path / "weights.json", section(learning_rate=0.3))
    rows = {int(r["step"]): float(r["validation_loss"]) for r in log_of(output) if r["validation_loss"]}
    assert manifest.read(output)["run"]["best_step"] == min(rows, key=rows.get)


def test_learning_rate_warms_up_and_falls():
    config = c.Finetune(steps=12, warmup_steps=4, learning_rate=1.0, final_learning_rate=0.1)
    rates = [optimisation.learning_rate(step, config) for step in range(12)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4] == 1.0 and rates[8] == pytest.approx(0.55)
    assert all(a > b for a, b in pairwise(rates[4:]))


def test_batches_keep_their_order_and_are_shared_between_ranks():
    source = [{"raw": np.full(1, i)} for i in range(24)]
    config = c.Finetune(batch_size=4, accumulate=2)
    ranks = [
        [
            [batch["raw"].ravel().tolist() for batch in batches]
            for batches in loop.steps(source, config, range(2, 6), rank, threads=3)
        ]
        for rank in (SimpleNamespace(global_rank=r, world_size=2) for r in range(2))
    ]
    assert ranks[0] == [[[8], [10]], [[12], [14]], [[16], [18]], [[20], [22]]]
    assert ranks[1] == [[[9], [11]], [[13], [15]], [[17], [19]], [[21], [23]]]


def test_accumulation_changes_no_loss(volumes, tmp_path):
    """Crops whose numbers of known voxels differ, so that a mean of means would differ."""
    same = {"batch_size": 4, "network": c.Superhuman(filters=(2, 3), normalisation="instance"), "loss": "bce"}
    whole = train(volumes, tmp_path / "1/weights.json", section(**same))
    parts = train(volumes, tmp_path / "2/weights.json", section(**same, accumulate=3))
    losses = [[float(row["loss"]) for row in log_of(output)] for output in (whole, parts)]
    assert losses[0] == pytest.approx(losses[1], abs=2e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"ema": 0.9},
        {"train": "decoder"},
        {"network": EMMAMBA, "train": "lora", "lora": {}, "precision": "bf16-mixed"},
    ],
)
def test_recomputation_changes_no_bit(volumes, tmp_path, options):
    """Of batch normalisation too, whether it learns or is frozen."""
    same = {"batch_size": 3, "accumulate": 2, **options}
    kept = train(volumes, tmp_path / "1/weights.json", section(**same))
    recomputed = train(volumes, tmp_path / "2/weights.json", section(**same, checkpoint_activations=True))
    assert (
        recomputed.with_name("weights.safetensors").read_bytes() == kept.with_name("weights.safetensors").read_bytes()
    )
    assert manifest.content(recomputed)["finetune"]["checkpoint_activations"]


@pytest.mark.parametrize(
    ("options", "names", "words"),
    [
        (
            {"crop": (4, 16, 60)},
            ("train",),
            r"\[4, 16, 60\] does not fit into training volume train.* use \[4, 16, \d\d\], the largest that fits",
        ),
        ({"sections": ((20, 30),)}, ("train",), "sections of training volume train.*9 sections"),
        ({}, ("unlabelled",), "volume unlabelled has no labels"),
        ({"crop": (4, 16, 19)}, ("train",), "crop must be a multiple of .* got .4, 16, 19."),
    ],
)
def test_bad_input_is_explained(volumes, tmp_path, options, names, words):
    with pytest.raises(InputError, match=words):
        train(volumes, tmp_path / "weights.json", section(**options), train=names)


def test_a_diverging_loss_stops_with_advice(volumes, tmp_path, monkeypatch):
    monkeypatch.setattr(finetune.objectives, "affinity_loss", lambda logits, *_: logits.sum() * float("nan"))
    with pytest.raises(InputError, match=r"became nan at step 1: lower finetune\.learning_rate"):
        train(volumes, tmp_path / "weights.json")


def test_a_gradient_that_is_not_finite_stops_with_advice(volumes, tmp_path, monkeypatch):
    monkeypatch.setattr(finetune.objectives, "affinity_loss", lambda logits, *_: (logits.sum() * 0).sqrt())
    with pytest.raises(InputError, match=r"a gradient became infinite or nan at step 1: lower finetune\.learning_rate"):
        train(volumes, tmp_path / "weights.json")


def validation_losses(monkeypatch, value):
    """Let every validation crop have this loss; training's losses stay."""
    forward = objectives.AffinityTask.forward

    def changed(self, batch):
        losses = forward(self, batch)
        return losses if self.training else {"affinities": torch.tensor(value)}

    monkeypatch.setattr(objectives.AffinityTask, "forward", changed)


def test_a_validation_loss_that_is_not_finite_stops_with_advice(volumes, tmp_path, monkeypatch):
    validation_losses(monkeypatch, float("inf"))
    with pytest.raises(InputError, match=r"the validation loss became inf at step 4: lower finetune\.learning_rate"):
        train(volumes, tmp_path / "weights.json")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_not_handed_on(volumes, tmp_path, monkeypatch, value):
    step = loop.Training.step

    def spoiling(self, *arguments):
        step(self, *arguments)
        with torch.no_grad():
            self.task.network.out_put[0].bias[1] = value

    monkeypatch.setattr(loop.Training, "step", spoiling)
    with pytest.raises(InputError, match="weights became infinite or nan in the last step"):
        train(volumes, tmp_path / "weights.json", section(steps=1), validation=())
    assert not (tmp_path / "weights.json").exists()


def test_losses_that_part_are_told_in_log_and_manifest(volumes, tmp_path, monkeypatch, caplog):
    validation_losses(monkeypatch, 536.0)
    output = train(volumes, tmp_path / "weights.json")
    assert manifest.read(output)["run"]["losses_part_at_steps"] == [4, 8, 11]
    assert "step 8: validation loss 536 and training loss" in caplog.text


def test_damaged_weights_are_named(volumes, tmp_path):
    output = train(volumes, tmp_path / "weights.json", section(steps=1))
    output.with_name("weights.safetensors").write_bytes(b"half")
    with pytest.raises(InputError, match=r"weights.safetensors has SHA-256 .* expected .*snakemake"):
        checkpoint.rebuild(output)
    output.with_name("weights.safetensors").unlink()
    with pytest.raises(InputError, match=r"weights.safetensors does not exist: delete"):
        checkpoint.rebuild(output)


def flipped(data, share):
    """The bytes with one bit changed at a share of their length."""
    place = int(share * (len(data) - 1))
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


def saved(value):
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


@pytest.fixture(scope="module")
def trained(volumes, tmp_path_factory):
    """A training that is done, and another's state."""
    folder = tmp_path_factory.mktemp("trained")
    whole = train(volumes, folder / "weights.json", section(steps=4))
    train(volumes, folder / "other" / "weights.json", section(steps=4), seed=1)
    (other,) = (folder / "other").glob("training/*/last.ckpt")
    return whole, other.read_bytes()


DAMAGE = {
    **{f"bit at {share}": lambda data, _, share=share: flipped(data, share) for share in (0, 0.01, 0.3, 0.5, 0.8, 1)},
    **{f"{length} bytes": lambda data, _, length=length: data[:length] for length in (0, 10, 32, 100, -1)},
    "text": lambda *_: b"hello, text\n" * 9,
    "longer": lambda data, _: data + b"\0",
    "plain state": lambda data, _: data[checkpoint.DIGEST :],
    "foreign": lambda *_: bytes(32) + saved({"model": {"a": torch.ones(2)}}),
    "another training": lambda _, other: other,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_training_state_is_named_with_the_command_that_mends_it(volumes, trained, tmp_path, damage):
    shutil.copytree(trained[0].parent / "training", tmp_path / "training")
    (state,) = tmp_path.glob("training/*/last.ckpt")
    state.write_bytes(damage(state.read_bytes(), trained[1]))
    with pytest.raises(
        InputError, match=r"last\.ckpt is damaged or of another training .* `rm -r .*` and run snakemake"
    ):
        train(volumes, tmp_path / "weights.json", section(steps=4))
    assert not (tmp_path / "weights.json").exists()


@pytest.mark.parametrize("damage", [*(DAMAGE[key] for key in ("bit at 0.3", "bit at 1", "0 bytes", "text")), None])
def test_damaged_best_weights_are_named_and_the_command_mends_them(volumes, trained, tmp_path, damage):
    shutil.copytree(trained[0].parent / "training", tmp_path / "training")
    (best,) = tmp_path.glob("training/*/best-4.safetensors")
    if damage:
        best.write_bytes(damage(best.read_bytes(), b""))
    else:
        best.unlink()
    with pytest.raises(InputError, match=r"best-4\.safetensors is damaged") as error:
        train(volumes, tmp_path / "weights.json", section(steps=4))
    subprocess.run(re.search("`(.*)`", str(error.value))[1], shell=True, check=True)
    mended = train(volumes, tmp_path / "weights.json", section(steps=4))
    assert manifest.content(mended) == manifest.content(trained[0])


@pytest.mark.parametrize(
    "rows", [b"\xff\xfe\x00", b"step,loss\n", b"", b"x,1,2,3,4\n", b"2,a,,1,1\n", b"1,1,1,1,1,1\n"]
)
def test_a_spoiled_log_is_cut_to_its_whole_rows(tmp_path, rows):
    log = Log(tmp_path, 0, finetune.COLUMNS)
    log.write({"step": 4, "loss": 0.5, "validation_loss": "", "learning_rate": 0.1, "seconds": 1.0})
    path = tmp_path / "log.csv"
    whole = path.read_bytes()
    path.write_bytes(whole + rows)
    Log(tmp_path, 4, finetune.COLUMNS)
    assert path.read_bytes() == whole
    path.write_bytes(rows)
    Log(tmp_path, 4, finetune.COLUMNS)
    assert path.read_bytes() == whole[: whole.index(b"\n") + 1]


def test_a_pretrained_body_is_what_training_starts_from(volumes, tmp_path):
    pretrained = pretrain(tmp_path / "pretrain")
    frozen = {"start": "p", "train": "lora", "steps": 1, "learning_rate": 1e-30, "checkpoint": "last"}
    output = train(volumes, tmp_path / "weights.json", section(**frozen, lora={}), pretrained=[pretrained])
    found, given, fresh = tensors_of(output), tensors_of(pretrained), build_fresh(seed=0)
    rows = {row["name"]: row["status"] for row in transfer_of(output)}
    assert rows.keys() == found.keys()
    for name, tensor in found.items():
        head = name.startswith("out_put.")
        assert rows[name] == ("new" if head else "loaded")
        torch.testing.assert_close(tensor, fresh[name] if head else given[name], rtol=0, atol=1e-20)
    content = manifest.content(output)
    assert content["pretraining"] == "p"
    assert content["inputs"]["starting weights"] == manifest.content_hash(pretrained)
    assert manifest.read(output)["run"]["trained_parameters"] < content["parameters"] == num_parameters(output)


def build_fresh(seed):
    torch.manual_seed(seed)
    return networks.build(NETWORK.model_dump(mode="json")).state_dict()


def num_parameters(output):
    return sum(p.numel() for p in checkpoint.rebuild(output)[0].parameters())


def test_published_weights_are_loaded_whole(volumes, tmp_path):
    torch.manual_seed(7)
    state = networks.build(NETWORK.model_dump(mode="json")).state_dict()
    published = publish(tmp_path / "data", {"model": {f"module.{name}": tensor for name, tensor in state.items()}})
    text = section(start="published", steps=1, learning_rate=1e-30, weight_decay=0, checkpoint="last")
    output = train(volumes, tmp_path / "weights.json", text, published=[published])
    assert {(row["status"], row["source_name"]) for row in transfer_of(output)} == {
        ("loaded", f"module.{name}") for name in state
    }
    for name, parameter in checkpoint.rebuild(output)[0].named_parameters():
        torch.testing.assert_close(parameter.data, state[name], rtol=0, atol=1e-20)
    assert manifest.content(output)["pretraining"] == "published"


@pytest.mark.parametrize(("part", "trained"), [("encoder", "encoder"), ("decoder", "decoder"), ("lora", "lora")])
def test_what_is_frozen_keeps_its_bits(volumes, tmp_path, part, trained):
    """Weights and statistics; and all that is trained changes."""
    pretrained = pretrain(tmp_path / "pretrain")
    lora = {"lora": {}} if part == "lora" else {}
    text = section(start="p", train=part, steps=3, checkpoint="last", ema=0.5, **lora)
    output = train(volumes, tmp_path / "weights.json", text, pretrained=[pretrained])
    given = tensors_of(pretrained) | {n: t for n, t in build_fresh(seed=0).items() if n.startswith("out_put.")}
    changed = {name for name, tensor in tensors_of(output).items() if not torch.equal(tensor, given[name])}
    own = {
        "encoder": ("embed_in.", "conv0.", "center."),
        "decoder": ("up0.", "cat0.", "conv1.", "embed_out."),
        "lora": ("up0.1.weight",),
    }[trained]
    assert changed == {name for name in given if name.startswith((*own, "out_put."))}


@pytest.mark.parametrize(
    ("options", "given", "words"),
    [
        ({"start": "p"}, (), "start 'p' takes 1 of --pretrained and 0 of --published, got 0 and 0"),
        ({}, ("pretrained",), "start 'none' takes 0 .* got 1 and 0"),
        ({"start": "p", "network": c.Superhuman(filters=(2, 4))}, ("pretrained",), r"filters: \[2, 4\] in"),
        ({"start": "published"}, ("published",), "m.json does not fit .* 3 tensors are left over"),
    ],
)
def test_a_start_that_cannot_be_is_explained_before_training(volumes, tmp_path, options, given, words, monkeypatch):
    state = build_fresh(seed=1)
    state["odd"] = state.pop("embed_in.0.weight")
    state["center.block3.weight"] = torch.ones(9)
    files = {"pretrained": pretrain(tmp_path / "pretrain"), "published": publish(tmp_path / "data", state)}
    monkeypatch.setattr(loop, "fit", None)
    with pytest.raises(InputError, match=words):
        train(volumes, tmp_path / "w.json", section(**options), **{kind: [files[kind]] for kind in given})


def test_partial_transfer_goes_on_with_what_fits(volumes, tmp_path):
    state = build_fresh(seed=1)
    del state["embed_in.0.weight"]
    text = section(start="published", transfer="partial", steps=1)
    output = train(volumes, tmp_path / "w.json", text, published=[publish(tmp_path / "data", state)])
    assert [row["name"] for row in transfer_of(output) if row["status"] != "loaded"] == ["embed_in.0.weight"]


def test_freezing_a_random_start_is_warned_of(volumes, tmp_path, caplog):
    train(volumes, tmp_path / "weights.json", section(train="decoder", steps=1))
    assert "train is decoder and the network starts from scratch" in caplog.text


def test_config_json_holds_everything(volumes):
    assert set(json.loads(section())) >= {"network", "crop", "offsets", "sections", "version"}
