"""Several processes that share every batch end where one process ends."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tokenunify import config as c
from tokenunify.errors import InputError
from tokenunify.geometry import Roi
from tokenunify.learning import loop, networks, objectives, pretrain, processes
from tokenunify.learning.tokens import corpus, patches, token_prediction

CROP, PATCH, STEPS = (2, 8, 12), (1, 4, 4), 10
NETWORK = {
    "name": "emmamba",
    **{"features": [3, 4], "hidden": 5, "depths": [1, 1], "kernel": [1, 3, 3]},
    **{"strides": [[1, 2, 2], [1, 2, 2]], "slices": "sections"},
}
FEW = {"crop": CROP, "batch_size": 4, "accumulate": 2, "steps": STEPS, "checkpoint_every": STEPS, "ema": 0.9}


class Affinities:
    """Crops that differ in their share of ones and in their number of known voxels."""

    def __getitem__(self, index):
        rng = np.random.default_rng(index)
        targets, mask = (rng.random((3, *CROP)) < rng.uniform(0.02, 0.9) for _ in range(2))
        return {"raw": rng.random((1, *CROP)), "targets": targets.astype(np.float32), "mask": mask}


def affinity():
    config = c.Finetune(**FEW)
    return objectives.AffinityTask(networks.build(NETWORK), config), Affinities(), config, True


def token(mode, ordering):
    few = {**FEW, "patch": PATCH, "mode": mode, "samples_per_epoch": 8, "period_epochs": 1, "mask_ratio": (0.1, 0.9)}
    few |= {"ordering": ordering, "augment": {"flip": 0, "rotate": 0}}
    config = c.Pretrain(**few, fill="learned", resampler={"latents": 3, "width": 8, "heads": 2, "layers": 1})
    rng = np.random.default_rng(0)
    usual = rng.random(PATCH)
    raw = (np.tile(usual, (6, 2, 3)) * rng.uniform(100, 255, (6, 8, 12))).astype(np.uint8)
    region = corpus.Region("a", raw, Roi((0, 0, 0), raw.shape), (), (40.0, 8.0, 8.0))
    network = networks.build(NETWORK, None)
    grid = patches.PatchGrid.of(network.config, CROP, PATCH)
    source = corpus.Corpus([[region]], CROP, config.augment, 0)
    samples = pretrain.TokenSamples(source, config, grid.number, 0, (0.5, 0.3))
    task = token_prediction.TokenTask(network, config, grid)
    with torch.no_grad():  # no order is judged until a patch is predicted better than by its mean
        task.resampler.out[1].weight.mul_(0.1)
        task.resampler.out[1].bias.copy_(torch.from_numpy(0.7 * usual.ravel()))
    return task, samples, config, mode == "joint"


RELEVANCE = c.Relevance(iterations=3, width=8)
TASKS = {
    "affinity": affinity,
    "joint": lambda: token("joint", "raster"),
    "joint-relevance": lambda: token("joint", RELEVANCE),
    "alternate": lambda: token("alternate", "raster"),
    "alternate-relevance": lambda: token("alternate", RELEVANCE),
}


def train(name, folder):
    """Ten steps in float64, as every process does them; of some tasks two processes recompute the network's stages."""
    torch.manual_seed(0)
    task, samples, config, all_used = TASKS[name]()
    fabric = processes.make_fabric("cpu", "64-true", batch_size=config.batch_size, threads=1, all_used=all_used)
    fabric.launch()
    folder.mkdir(exist_ok=True)
    config = config.model_copy(update={"checkpoint_activations": fabric.world_size > 1 and "relevance" in name})
    training = loop.Training(fabric, task, config, folder, stage="pretrain")
    loop.fit(training, samples, [], seed=0, threads=1, columns=("step", "loss"))
    state = {f"task.{n}": t.contiguous() for n, t in task.state_dict().items()}
    average = {f"average.{n}": t.contiguous() for n, t in training.average.state_dict().items()}
    save_file(state | average, folder / f"weights-{fabric.global_rank}of{fabric.world_size}.safetensors")
    return fabric


def slurm(rank, number, **others):
    """What srun tells the tasks of one node."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    told = {"STEP_NUM_TASKS": number, "NTASKS": number, "NTASKS_PER_NODE": number, "NNODES": 1, "PROCID": rank}
    told |= {"LOCALID": rank, "NODEID": 0, "NODELIST": "127.0.0.1", "JOB_NAME": "test"}
    return {**{f"SLURM_{key}": str(value) for key, value in told.items()}, "MASTER_PORT": str(port), **others}


@pytest.fixture(scope="module")
def two(tmp_path_factory, root):
    """A folder for each task, as two processes leave it; the scan's plain loop saves its compilation in float64."""
    folder, first = tmp_path_factory.mktemp("two"), slurm(0, 2)
    both = [first, slurm(1, 2, MASTER_PORT=first["MASTER_PORT"])]
    command = [sys.executable, "-m", "tests.unit.test_processes", str(folder)]
    options = {"cwd": root, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    loops = {**os.environ, "TOKENUNIFY_SCAN": "loop"}
    started = [subprocess.Popen(command, env={**loops, **told}, **options) for told in both]
    for process in started:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    return folder


@pytest.mark.parametrize("name", TASKS)
def test_two_processes_end_with_the_weights_of_one(tmp_path, two, name, monkeypatch):
    monkeypatch.setenv("TOKENUNIFY_SCAN", "loop")
    assert train(name, tmp_path).world_size == 1
    expected = load_file(tmp_path / "weights-0of1.safetensors")
    for rank in range(2):
        found = load_file(two / name / f"weights-{rank}of2.safetensors")
        assert found.keys() == expected.keys()
        for key, tensor in expected.items():
            torch.testing.assert_close(found[key], tensor, rtol=0, atol=1e-6)
    torch.manual_seed(0)
    begun = TASKS[name]()[0].state_dict()
    changes = {key: (expected[f"task.{key}"] - tensor).abs().max() for key, tensor in begun.items()}
    assert max(changes.values()) > 1e-3
    assert changes.get("ordering.expected", 1) > 1e-3


def test_a_batch_that_tasks_cannot_share_is_explained(monkeypatch):
    for key, value in slurm(0, 3).items():
        monkeypatch.setenv(key, value)
    with pytest.raises(InputError, match=r"batch_size must be a multiple of the 3 tasks .* got 4"):
        processes.make_fabric("cpu", "32-true", batch_size=4, threads=1)


def test_tasks_are_counted_by_node(monkeypatch):
    made = {}
    monkeypatch.setattr(processes, "Fabric", lambda **given: made.update(given) or SimpleNamespace())
    for key, value in (slurm(0, 6) | {"SLURM_NNODES": "3", "SLURM_NTASKS_PER_NODE": "2"}).items():
        monkeypatch.setenv(key, value)
    processes.make_fabric("cpu", "32-true", batch_size=12, threads=1)
    assert (made["num_nodes"], made["devices"]) == (3, 2)
    monkeypatch.delenv("SLURM_STEP_NUM_TASKS")  # as in a job's script
    processes.make_fabric("cpu", "32-true", batch_size=12, threads=1)
    assert (made["num_nodes"], made["devices"], made["strategy"]) == (1, 1, "auto")


if __name__ == "__main__":
    for name in TASKS:
        train(name, Path(sys.argv[1]) / name)
