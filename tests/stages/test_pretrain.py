"""Pre-training: it learns, switches its objectives on time, and survives kills without a trace."""

import csv
import random
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from tests.stages.test_finetune import KILLER, log_of, tensors_of, write_volume
from tokenunify import config as c
from tokenunify.geometry import Roi
from tokenunify.learning import checkpoint, finetune, loop, networks, pretrain
from tokenunify.learning.tokens import corpus, patches, reconstructions
from tokenunify.stages import sections
from tokenunify.store import manifest

SUPERHUMAN = c.Superhuman(filters=(2, 3), norm_momentum=0.1)
EMMAMBA = c.EMmamba(
    features=(3, 4), hidden=5, depths=(1, 1), kernel=(1, 3, 3), strides=((1, 2, 2), (2, 2, 2)), slices="sections"
)
CROP, PATCH = (4, 16, 24), (2, 4, 8)  # 2 x 4 x 3 patches
LOSSES = ("loss_random", "loss_next", "loss_next_all")


@pytest.fixture(scope="module")
def volumes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("volumes")
    return [write_volume(folder, "a", labelled=False), write_volume(folder, "b", shape=(12, 36, 48), seed=1)]


def section(**given):
    """A pre-training of seconds; what travels on the command line, with its version."""
    tiny = {
        "network": SUPERHUMAN,
        "datasets": [[{"volume": name, "box": None, "avoid": ()}] for name in "ab"],
        "crop": CROP,
        "patch": PATCH,
        "resampler": {"latents": 3, "width": 8, "heads": 2, "layers": 1},
        "mode": "joint",
        "batch_size": 2,
        "steps": 11,
        "checkpoint_every": 3,
        "picture_every": 4,
        "learning_rate": 1e-2,
    }
    return sections.to_json("pretrain", sections.Pretrain(**{**tiny, **given}))


def train(volumes, output, text=None, *, seed=0):
    parsed, plain = sections.from_json("pretrain", text or section())
    pretrain.run(parsed, plain, volumes=volumes, output=output, seed=seed, threads=1, device="cpu")
    return output


def test_slow_statistics_are_taken_anew_at_the_end(volumes, tmp_path):
    fast, slow = (
        train(volumes, tmp_path / f"{m}/weights.json", section(network=c.Superhuman(filters=(2, 3), norm_momentum=m)))
        for m in (0.1, 0.0001)
    )
    assert all(torch.equal(tensor, tensors_of(slow)[name]) for name, tensor in tensors_of(fast).items())
    assert tensors_of(slow)["center.block3.running_var"].sub(1).abs().min() > 0.01


def samples_of(text, volumes, *, seed=0):
    parsed, _ = sections.from_json("pretrain", text)
    source = corpus.Corpus.open(parsed, volumes, seed)
    number = patches.PatchGrid.of(parsed.network, parsed.crop, parsed.patch).number
    return pretrain.TokenSamples(source, parsed, number, seed, source.statistics())


def test_outputs(volumes, tmp_path):
    output = train(volumes, tmp_path / "models/pretrain/p/seed0/weights.json")
    content, run = manifest.content(output), manifest.read(output)["run"]
    network = networks.build(SUPERHUMAN.model_dump(mode="json"), None)
    assert content["network"] == SUPERHUMAN.model_dump(mode="json")
    assert content["parameters"] == sum(p.numel() for p in network.parameters())
    assert content["weights"] == manifest.file_sha256(output.with_name("weights.safetensors"))
    assert content["pretrain"]["steps"] == 11 and "network" not in content["pretrain"] and content["seed"] == 0
    assert content["inputs"] == {path.stem: manifest.content_hash(path) for path in volumes}
    assert run["voxels"] == 11 * 2 * 4 * 16 * 24 and run["attempts"] == run["processes"] == 1
    assert checkpoint.load_released(network, tensors_of(output)).loaded
    header = output.with_name("log.csv").read_text().splitlines()[0]
    columns = "step,epoch,objective,loss,loss_random,loss_next,loss_next_all,variance_ratio,learning_rate,seconds"
    assert header == columns
    assert [int(row["step"]) for row in log_of(output)] == [10, 11]


@pytest.mark.parametrize("objectives", [("random", "next", "next-all"), ("next",)])
def test_picture_shows_raw_what_is_seen_and_what_is_made_of_it(volumes, tmp_path, objectives):
    text = section(objectives=objectives)
    output = train(volumes, tmp_path / "weights.json", text)
    image = np.asarray(Image.open(output.with_name("reconstructions.png")))
    (_, height, width), gap, number = CROP, reconstructions.GAP, len(objectives)
    assert image.dtype == np.uint8
    assert image.shape == (number * (height + gap) - gap, 3 * (width + gap) - gap)
    shown = np.rint(samples_of(text, volumes)[pretrain.SHOWN]["raw"][0] * 255)
    for row in range(number):
        panels = [image[row * (height + gap) :][:height, i * (width + gap) :][:, :width] for i in range(3)]
        assert any((panels[0] == raw).all() for raw in shown)
        changed = [(a != b).reshape(4, 4, 3, 8).any((1, 3)) for a, b in ((panels[0], panels[1]), panels[1:])]
        assert (changed[0] | ~changed[1]).all()  # what is predicted was hidden
        assert changed[1].any()
    drawn = sorted(path.name for path in tmp_path.glob("training/*/pictures/*.png"))
    assert drawn == [f"step{step:08d}.png" for step in (4, 8, 11)]


@pytest.mark.parametrize(
    "options",
    [{"network": SUPERHUMAN, "ordering": c.Relevance(iterations=3, width=8), "ema": 0.9}, {"network": EMMAMBA}],
    ids=lambda options: options["network"].name,
)
def test_killed_training_ends_with_the_same_bits(volumes, tmp_path, root, options):
    """Killed at five steps; objectives take turns of two steps."""
    turns = {"mode": "alternate", "samples_per_epoch": 4, "period_epochs": 1, "fill": "learned", "steps": 20}
    text = section(**turns, **options)
    whole = train(volumes, tmp_path / "whole/weights.json", text)
    output = tmp_path / "killed/weights.json"
    words = ["pretrain", "--config-json", text, "--volumes", *volumes, "--output", output]
    words += ["--seed", "0", "--threads", "1", "--device", "cpu"]
    for step in sorted(random.Random(3).sample(range(1, 20), 5)):
        command = [sys.executable, "-c", KILLER, "step", str(step), *map(str, words)]
        assert subprocess.run(command, cwd=root, capture_output=True).returncode == -signal.SIGKILL
        assert not output.exists()
    train(volumes, output, text)
    assert manifest.read(output)["run"]["attempts"] > 3  # of those that reached a state to save
    assert manifest.content(output) == manifest.content(whole)
    for name in ("weights.safetensors", "reconstructions.png"):
        assert output.with_name(name).read_bytes() == whole.with_name(name).read_bytes()
    for a, b in zip(log_of(output), log_of(whole), strict=True):
        assert {**a, "seconds": 0} == {**b, "seconds": 0}


def test_objectives_take_turns_of_the_configured_epochs(volumes, tmp_path, monkeypatch):
    """Epochs of two steps, turns of two epochs."""
    monkeypatch.setattr(loop, "LOG_EVERY", 1)
    turns = {"mode": "alternate", "samples_per_epoch": 4, "period_epochs": 2, "steps": 15}
    rows = log_of(train(volumes, tmp_path / "weights.json", section(**turns)))
    assert [int(row["epoch"]) for row in rows] == [step // 2 for step in range(15)]
    expected = [("random", "next", "next-all")[step // 4 % 3] for step in range(15)]
    assert [row["objective"] for row in rows] == expected
    for row, objective in zip(rows, expected, strict=True):
        column = f"loss_{objective.replace('-', '_')}"
        assert [name for name in LOSSES if row[name]] == [column]
        assert float(row["loss"]) == float(row[column])


def test_joint_mode_trains_all_objectives_in_every_step(volumes, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "LOG_EVERY", 1)
    weights = {"random": 2.0, "next-all": 0.5}
    rows = log_of(train(volumes, tmp_path / "weights.json", section(steps=3, loss_weights=weights)))
    for row in rows:
        assert row["objective"] == "random next next-all" and row["variance_ratio"] == ""
        random, following, all_following = (float(row[name]) for name in LOSSES)
        assert float(row["loss"]) == pytest.approx(2 * random + following + 0.5 * all_following, abs=5e-6)


def test_an_order_of_relevance_logs_the_variance_of_what_it_hides(volumes, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "LOG_EVERY", 1)
    text = section(ordering=c.Relevance(iterations=3, width=8), steps=4)
    rows = log_of(train(volumes, tmp_path / "weights.json", text))
    assert all(0.2 < float(row["variance_ratio"]) < 5 for row in rows)


@pytest.mark.parametrize("options", [{}, {"normalise": False}, {"fill": "learned"}])
def test_low_precision_runs_to_the_end(volumes, tmp_path, options):
    text = section(precision="bf16-mixed", ordering=c.Relevance(iterations=3, width=8), steps=2, **options)
    output = train(volumes, tmp_path / "weights.json", text)
    assert all(np.isfinite(tensor.float().numpy()).all() for tensor in tensors_of(output).values())
    assert len(np.unique(np.asarray(Image.open(output.with_name("reconstructions.png"))))) > 10


def test_samples_are_a_function_of_seed_and_index(volumes):
    one, two = (samples_of(section(fill="noise-released"), volumes, seed=3) for _ in range(2))
    other = samples_of(section(fill="noise-released"), volumes, seed=4)
    for index in (7, 0, 2**40):
        two[index + 1]
        a, b = one[index], two[index]
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])
    for name in ("raw", "noise", "permutation", "gumbel"):
        assert (one[0][name] != one[1][name]).any() and (one[0][name] != other[0][name]).any()


def test_hidden_shares_and_cuts_are_uniform():
    """Of 4 x 4 x 4 patches."""
    raw = np.zeros((4, 8, 12), np.uint8)
    region = corpus.Region("a", raw, Roi((0, 0, 0), raw.shape), (), (40.0, 8.0, 8.0))
    config = c.Pretrain(crop=raw.shape, patch=(1, 2, 3), mask_ratio=(0.25, 0.75))
    source = corpus.Corpus([[region]], raw.shape, config.augment, 0)
    samples = pretrain.TokenSamples(source, config, 64, 0, (0.0, 1.0))
    number = 2000
    drawn = [samples[index] for index in range(number)]
    hidden, cut = (np.concatenate([sample[name] for sample in drawn]) for name in ("hidden", "cut"))
    assert hidden.min() == 16 and hidden.max() == 48
    assert cut.min() == 1 and cut.max() == 64
    for values, mean, extent in ((hidden, 32, 32), (cut, 32.5, 64)):
        assert abs(values.mean() - mean) < 4 * extent / (12 * number) ** 0.5
        assert values.std() == pytest.approx(extent / 12**0.5, rel=0.05)
    fixed = pretrain.TokenSamples(source, c.Pretrain(crop=raw.shape, mask_ratio=0.4), 64, 0, (0.0, 1.0))
    assert {int(fixed[index]["hidden"][0]) for index in range(20)} == {26}


def test_learning_lowers_every_loss(volumes, tmp_path):
    text = section(network=c.Superhuman(filters=(6, 8), norm_momentum=0.1), steps=100)
    rows = log_of(train(volumes, tmp_path / "weights.json", text))
    for name in LOSSES:
        losses = [float(row[name]) for row in rows]
        assert np.mean(losses[-3:]) < 0.6 * losses[0], name


@pytest.mark.parametrize("network", [SUPERHUMAN, EMMAMBA], ids=lambda network: network.name)
def test_fine_tuning_starts_from_the_whole_body(volumes, tmp_path, network):
    pretrained = train(volumes, tmp_path / "p/weights.json", section(network=network, steps=2))
    given = {"network": network, "sections": (None,), "crop": CROP, "steps": 1, "start": "p"}
    parsed, plain = sections.from_json("finetune", sections.to_json("finetune", sections.Finetune(**given)))
    labelled = {"train": volumes[1:], "validation": [], "pretrained": [pretrained]}
    output = tmp_path / "m/weights.json"
    finetune.run(parsed, plain, **labelled, output=output, seed=0, threads=1, device="cpu")
    with open(output.with_name("transfer.csv"), newline="") as file:
        rows = list(csv.DictReader(file))
    head = type(networks.build(network.model_dump(mode="json"))).HEAD
    assert {row["name"] for row in rows} >= set(tensors_of(pretrained))
    for row in rows:
        assert row["status"] == ("new" if row["name"].startswith(head) else "loaded")
