"""What the README promises of dry runs in a fresh clone: the whole plan, without network."""

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.workflow.conftest import Checkout, listed
from tokenunify.config import load
from tokenunify.plan import estimate
from tokenunify.plan.plan import Plan
from tokenunify.plan.workload import Workload
from tokenunify.stages.table import STAGES

pytestmark = pytest.mark.workflow

WAFERS = {"wafer4", "wafer25", "wafer26", "wafer26-2", "wafer36", "wafer36-2"}
# Python imports this from PYTHONPATH in every process.
NO_NETWORK = """
import os
import sys


def refuse(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname"):
        print("the network was used:", event, arguments, file=sys.stderr, flush=True)
        os._exit(1)


sys.addaudithook(refuse)
"""


PRETRAINED = "models/pretrain/tokenunify/seed1/weights.json"
LONGEST_ARGUMENT = 128 * 1024
"""Bytes that Linux takes as one argument, which a job's whole command is to the shell."""
SHARED = """
device: {device}
resources: {{pretrain: {{gpus: {gpus}, nodes: {nodes}, threads: 3}}}}
"""


def dry_run(clone: Checkout, folder: Path, *words: str) -> str:
    """Output of a dry run in the clone that ends at once where it touches the network."""
    (folder / "sitecustomize.py").write_text(NO_NETWORK)
    command = [sys.executable, "-m", "snakemake", "--dry-run", *words]
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    done = subprocess.run(command, cwd=clone.path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_promised_cluster_command_plans_everything(clone: Checkout, tmp_path: Path):
    words = ("--profile", "slurm", "--cores", "32", "results/wafer36-2/metrics.csv")
    jobs = listed(dry_run(clone, tmp_path, *words))
    planned = {job.rule for job in jobs}
    unasked = {"blockings", "segmentations", "report"}
    assert {rule for rule in planned if not rule.startswith("prepare_")} == set(STAGES) - unasked
    assert {f"prepare_{stage}" for stage in ("predict", "baseline", "fragments", "relabel")} < planned
    for rule in ("download", "ingest"):
        assert {job.wildcards for job in jobs if job.rule == rule} == {f"volume={wafer}" for wafer in WAFERS}


@pytest.mark.parametrize(
    ("config", "volume"),
    [
        ("config", "wafer36-2"),
        ("config", "ac3"),
        ("config", "cremi-a"),
        ("demo", "demo"),
        ("fib25", "fib25-test"),
        ("fib25-pretraining", "fib25-test"),
    ],
)
def test_the_printed_plan_counts_the_jobs_of_the_dry_run(clone: Checkout, tmp_path: Path, config: str, volume: str):
    path = f"config/{config}.yaml"
    jobs = listed(dry_run(clone, tmp_path, f"results/{volume}/metrics.csv", "--cores", "2", "--configfile", path))
    planned = Counter(job.rule.replace("download_weights", "download") for job in jobs)
    plan = Plan(load(clone.path / path))
    found = Counter()
    for task in Workload(plan, estimate.shapes(plan)).tasks(volume):
        found[task.stage] += task.jobs
    assert found == {rule: n for rule, n in planned.items() if not rule.startswith("prepare_") and rule != "metrics"}


def test_the_whole_catalogue_is_planned(clone: Checkout, tmp_path: Path):
    plan = Plan(load(clone.path / "config/config.yaml"))
    splits = [volume for d in plan.config.datasets.values() for volume in (*d.validation, *d.test)]
    assert {"ac3", "cremi-a", "wafer36-2"} <= set(splits)
    targets = [f"data/volumes/{name}.json" for name in plan.config.volumes]
    jobs = listed(dry_run(clone, tmp_path, *targets, *(f"results/{name}/metrics.csv" for name in splits), "-c", "2"))
    for rule in ("download", "ingest"):
        assert sorted(job.wildcards for job in jobs if job.rule == rule) == sorted(
            f"volume={name}" for name in plan.config.volumes
        )
    assert {job.wildcards for job in jobs if job.rule == "metrics"} == {f"volume={name}" for name in splits}


def test_commands_are_short_enough_for_the_shell(clone: Checkout, tmp_path: Path):
    """Half of what is allowed at most: the configuration may grow."""
    targets = ("results/wafer36-2/metrics.csv", "results/report.html")
    commands = re.findall(
        r"^Shell command: (.*)$", dry_run(clone, tmp_path, *targets, "-p", "--cores", "2"), re.MULTILINE
    )
    assert any("tokenunify report" in command for command in commands)
    assert max(len(command.encode()) for command in commands) < LONGEST_ARGUMENT / 2


def test_other_configuration_replaces_the_wafers(clone: Checkout, tmp_path: Path):
    output = dry_run(clone, tmp_path, "--cores", "2", "--configfile", "config/demo.yaml")
    assert {"metrics", "report"} <= {job.rule for job in listed(output)}
    assert "wafer" not in output


@pytest.mark.parametrize(("config", "volume", "number"), [("fib25", "fib25-test", 3), ("demo", "demo", 0)])
def test_blockings_are_compared_for_the_report_where_configured(
    clone: Checkout, tmp_path: Path, config: str, volume: str, number: int
):
    words = ("--cores", "2", "--configfile", f"config/{config}.yaml")
    jobs = listed(dry_run(clone, tmp_path, "results/report.html", *words))
    found = [job.wildcards for job in jobs if job.rule == "blockings"]
    assert len(found) == number
    assert all(wildcards.startswith(f"volume={volume}, model=") for wildcards in found)


def test_pretraining_reads_the_raw_of_its_corpus_alone(clone: Checkout, tmp_path: Path):
    words = ("--cores", "2", "--configfile", "config/fib25-pretraining.yaml")
    jobs = listed(dry_run(clone, tmp_path, PRETRAINED, *words))
    assert [job.wildcards for job in jobs if job.rule == "pretrain"] == ["pretraining=tokenunify, seed=1"]
    corpus = {"volume=fib25-unlabelled-1", "volume=fib25-unlabelled-2"}
    assert {job.wildcards for job in jobs if job.rule == "ingest"} == corpus
    assert {job.rule for job in jobs} == {"download", "ingest", "pretrain"}


SAMPLED = """
volumes:
  large:
    sources: [{raw: {url: "gs://nowhere/em", format: precomputed}}]
    voxel_size_nm: [40, 4, 4]
    roi: {offset: [0, 0, 0], shape: [7000, 130000, 240000]}
corpora:
  sampled: {datasets: {one: [tiny-train], two: [{volume: large, sample: {number: 750, shape: [128, 1024, 1024]}}]}}
pretrainings:
  tiny: {corpus: sampled}
"""


def test_a_sampled_corpus_is_downloaded_region_by_region(clone: Checkout, tmp_path: Path):
    sampled = tmp_path / "sampled.yaml"
    sampled.write_text(SAMPLED)
    words = ("models/pretrain/tiny/seed0/weights.json", "-p", "--cores", "2")
    output = dry_run(clone, tmp_path, *words, "--configfile", "tests/config/tiny.yaml", str(sampled))
    names = {f"volume={name}" for name in ["tiny-train", *(f"large-region{index}" for index in range(750))]}
    for rule in ("download", "ingest"):
        assert sorted(job.wildcards for job in listed(output) if job.rule == rule) == sorted(names)
    commands = re.findall(r"^Shell command: (.*)$", output, re.MULTILINE)
    assert max(len(command.encode()) for command in commands) < LONGEST_ARGUMENT


@pytest.mark.parametrize(
    ("device", "gpus", "nodes", "resources", "launch"),
    [
        ("auto", 4, 1, {"nodes": "1", "gpu": "4"}, ""),
        ("cpu", 4, 1, {"nodes": "1", "gpu": "0"}, ""),
        (
            *("auto", 4, 2),
            {"nodes": "2", "tasks_per_node": "4", "gres": "gpu:4", "mpi": "srun"},
            "srun --nodes=2 --ntasks=8 --ntasks-per-node=4 --cpus-per-task=3 ",
        ),
        (
            *("cpu", 4, 2),
            {"nodes": "2", "tasks": "2", "tasks_per_gpu": "0", "mpi": "srun"},
            "srun --nodes=2 --ntasks=2 --ntasks-per-node=1 --cpus-per-task=3 ",
        ),
    ],
)
def test_a_training_asks_for_its_gpus_and_nodes(
    clone: Checkout, tmp_path: Path, device, gpus, nodes, resources, launch
):
    shared = tmp_path / "shared.yaml"
    shared.write_text(SHARED.format(device=device, gpus=gpus, nodes=nodes))
    words = (PRETRAINED, "--printshellcmds", "--profile", "slurm", "--configfile", "config/config.yaml", str(shared))
    output = dry_run(clone, tmp_path, *words)
    block = re.search(r"^rule pretrain:\n(?:.*\n)*?Shell command: (.*)$", output, re.MULTILINE)
    asked = dict(re.findall(r"(\w+)=([^,]*)", re.search(r"resources: (.*)", block[0])[1]))
    wanted = {"gpu", "nodes", "tasks", "tasks_per_node", "gres", "tasks_per_gpu", "mpi"}
    assert {key: value for key, value in asked.items() if key in wanted} == resources
    assert block[1].startswith(f"{launch}python -m tokenunify pretrain ")


def test_one_machine_is_one_node(clone: Checkout, tmp_path: Path):
    shared = tmp_path / "shared.yaml"
    shared.write_text(SHARED.format(device="cpu", gpus=1, nodes=2))
    words = (PRETRAINED, "--printshellcmds", "--cores", "2", "--configfile", "config/config.yaml", str(shared))
    assert "srun" not in dry_run(clone, tmp_path, *words)
