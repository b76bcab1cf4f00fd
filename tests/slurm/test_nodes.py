"""Trainings that two nodes share: one job of SLURM, in which srun starts a task on each."""

import json
import subprocess
import sys

import pytest
import yaml
from safetensors.torch import load_file
from torch.testing import assert_close

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]

NETWORK = {
    "name": "emmamba",
    **{"features": [3, 4], "hidden": 5, "depths": [1, 1], "kernel": [1, 3, 3]},
    **{"strides": [[1, 2, 2], [1, 2, 2]], "slices": "sections"},
}
FOLDERS = {"pretrain": "models/pretrain/tiny/seed0", "finetune": "models/small/seed0"}
TARGETS = [f"{folder}/weights.json" for folder in FOLDERS.values()]
TOLERANCE = 1e-5
"""Of weights in float32."""


@pytest.fixture(scope="module")
def configfile(root, tmp_path_factory):
    """The tiny configuration with another network, trained on two nodes; fine-tuning starts from scratch."""
    config = yaml.safe_load((root / "tests" / "config" / "tiny.yaml").read_text())
    config["resources"] = {stage: {"nodes": 2, "threads": 1} for stage in FOLDERS}
    config["pretrainings"]["tiny"] |= {"network": NETWORK, "batch_size": 4}
    config["finetune"] |= {"batch_size": 4, "learning_rate": 0.001}
    config["models"] = {"small": {"network": NETWORK, "dataset": "tiny"}}
    path = tmp_path_factory.mktemp("config") / "nodes.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.fixture(scope="module")
def shared(submit, configfile, tmp_path_factory):
    """Folder of a run on the cluster, whose nodes' names no name server knows."""
    folder = tmp_path_factory.mktemp("shared")
    submit(*TARGETS, "--configfile", configfile, directory=folder, MASTER_ADDR="127.0.0.1")
    return folder


@pytest.fixture(scope="module")
def alone(root, configfile, tmp_path_factory):
    """Folder of the same without a cluster: one process, which computes the tasks' shares of a batch in turn.

    All of a batch at once has other rounding, of which Adam makes steps where gradients are small.
    """
    folder = tmp_path_factory.mktemp("alone")
    config = yaml.safe_load(configfile.read_text())
    for section in (config["pretrainings"]["tiny"], config["finetune"]):
        section["accumulate"] = 2
    in_turn = folder / "in_turn.yaml"
    in_turn.write_text(yaml.safe_dump(config))
    words = [*TARGETS, "--cores", "1", "--configfile", in_turn, "--directory", folder]
    command = [sys.executable, "-m", "snakemake", *map(str, words)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("stage", FOLDERS)
def test_a_training_is_one_job_with_a_task_on_each_node(cluster, shared, stage):
    jobs = [job for job in cluster.jobs(WorkDir=str(shared)) if job["Comment"].startswith(f"rule_{stage}_")]
    found = [[job[key] for key in ("JobState", "NodeList", "NumNodes", "NumTasks")] for job in jobs]
    assert found == [["COMPLETED", "node,other", "2", "2"]]


@pytest.mark.parametrize("stage", FOLDERS)
def test_both_tasks_take_part_and_end_with_the_weights_of_one_process(shared, alone, stage):
    manifests = [json.loads((run / FOLDERS[stage] / "weights.json").read_text()) for run in (shared, alone)]
    assert [manifest["run"]["processes"] for manifest in manifests] == [2, 1]
    sections = [manifest["content"][stage] for manifest in manifests]
    assert [section.pop("accumulate") for section in sections] == [1, 2]
    assert sections[0] == sections[1]
    found, expected = (load_file(run / FOLDERS[stage] / "weights.safetensors") for run in (shared, alone))
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert_close(found[name], tensor, rtol=0, atol=TOLERANCE)
