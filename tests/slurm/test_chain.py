"""The workflow on SLURM: every stage goes through sbatch, and jobs or Snakemake itself may be killed at any time."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest
import yaml

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(2700)]

ON_GPU = {"pretrain", "finetune", "predict"}
STEPS = 150
RESULT = "results/tiny/metrics.csv"
WEIGHTS = "models/small/seed0/weights.json"
TARGETS = {
    "pretrain": "models/pretrain/tiny/seed0/weights.json",
    "finetune": WEIGHTS,
    "predict": "results/tiny/small/seed0/predict/part0of2.json",
}
MADE = {"pretrain": ("models", "results"), "finetune": ("models/small", "results"), "predict": ("results",)}
"""By each of these rules and those after it."""


@pytest.fixture(scope="module")
def configfile(root, tmp_path_factory):
    """The tiny configuration with one segmentation, two jobs that predict, and GPUs asked for, which the jobs lack.

    Training takes long enough to be cancelled in the middle.
    """
    config = yaml.safe_load((root / "tests" / "config" / "tiny.yaml").read_text())
    config["device"] = "auto"
    config["finetune"].update(steps=STEPS, validate_every=STEPS, checkpoint_every=5)
    config["resources"] |= {"predict": {"parts": 2, "threads": 1}, "relabel": {"threads": 3}}
    config["segmentations"] = {"waterz": config["segmentations"]["waterz"]}
    path = tmp_path_factory.mktemp("config") / "slurm.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.fixture(scope="module")
def undisturbed(submit, configfile, tmp_path_factory):
    """Folder and Snakemake's output of a run that nothing disturbs."""
    folder = tmp_path_factory.mktemp("undisturbed")
    done = submit(RESULT, "--configfile", configfile, directory=folder)
    return folder, done.stdout


@pytest.fixture
def run_up_to(undisturbed, tmp_path):
    """Make a folder in which everything before a rule has run, and nothing was logged."""

    def copy(rule: str) -> Path:
        folder = tmp_path / "run"
        shutil.copytree(undisturbed[0], folder, symlinks=True)
        for name in (*MADE[rule], "logs"):
            shutil.rmtree(folder / name)
        return folder

    return copy


def fingerprint(folder: Path) -> dict[str, str]:
    """Path -> hash of everything that a run makes and promises to make again, to the byte."""
    patterns = (
        "**/*.zarr/**/*",
        "results/**/*.npz",
        "results/**/lut.npy",
        "results/*/metrics.csv",
        "models/**/*.safetensors",
    )
    files = {path: path.read_bytes() for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    for path in [*folder.glob("models/**/*.json"), *folder.glob("results/**/*.json")]:
        if path not in files and path.parent.name != "locks":
            files[path] = json.dumps(json.loads(path.read_text())["content"]).encode()
    return {str(path.relative_to(folder)): hashlib.sha256(data).hexdigest() for path, data in files.items()}


def differing(folder: Path, reference: Path) -> list[str]:
    """Files of `folder` that are other than those of a run that made them and more."""
    found, expected = fingerprint(folder), fingerprint(reference)
    assert found
    return [path for path, digest in found.items() if expected.get(path) != digest]


def rule_of(job: dict[str, str]) -> str:
    """The rule that the plugin wrote into a SLURM job's comment."""
    return re.fullmatch(r"rule_(.+?)(_wildcards_.*)?", job["Comment"])[1]


def wait_for_job(cluster, rule: str, folder: Path, snakemake: subprocess.Popen) -> dict[str, str]:
    """The first running job of a rule, once its stage has begun to log."""
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline and snakemake.poll() is None:
        running = [job for job in cluster.jobs(WorkDir=str(folder), JobState="RUNNING") if rule_of(job) == rule]
        if running and any(path.stat().st_size for path in (folder / "logs" / rule).glob("*.log")):
            return running[0]
        time.sleep(0.2)
    raise AssertionError(f"no job of {rule} ran; snakemake ended with {snakemake.poll()}{cluster.logs()}")


def test_every_rule_is_submitted(cluster, undisturbed):
    folder, output = undisturbed
    planned = Counter(re.findall(r"^rule (\w+):$", output, re.MULTILINE))
    local = set(re.findall(r"^localrule (\w+):$", output, re.MULTILINE))
    jobs = cluster.jobs(WorkDir=str(folder))
    assert Counter(map(rule_of, jobs)) == planned
    assert {job["JobState"] for job in jobs} == {"COMPLETED"}
    assert output.count("has been submitted with SLURM jobid") == planned.total()
    stages = {"download", "ingest", *ON_GPU, "baseline", "fragments", "rag", "tune", "agglomerate"}
    assert set(planned) == {*stages, "relabel", "evaluate"}
    assert {rule for rule in local if not rule.startswith("prepare_")} == {"metrics"}


def test_stages_that_run_a_network_get_a_gpu(cluster, undisturbed):
    folder, _ = undisturbed
    jobs = cluster.jobs(WorkDir=str(folder))
    assert {rule_of(job) for job in jobs if job.get("TresPerJob") == "gres:gpu:1"} == ON_GPU
    assert {rule_of(job) for job in jobs if "TresPerJob" not in job}.isdisjoint(ON_GPU)


def test_memory_time_and_threads_are_requested(cluster, undisturbed):
    folder, _ = undisturbed
    jobs = {rule_of(job): job for job in cluster.jobs(WorkDir=str(folder))}
    asked = ("MinMemoryNode", "TimeLimit", "NumCPUs")
    assert [jobs["finetune"][name] for name in asked] == ["16000M", "2-00:00:00", "1"]
    assert [jobs["relabel"][name] for name in asked] == ["4000M", "02:00:00", "3"]


def test_jobs_run_the_interpreter_of_snakemake(cluster, submit, configfile, tmp_path):
    """Whatever the PATH of the shell that submits."""
    python = tmp_path / "system" / "python"
    python.parent.mkdir()
    python.write_text("#!/bin/sh\necho the wrong python >&2; exit 1\n")
    python.chmod(0o755)
    path = f"{cluster.folder / 'bin'}:{python.parent}:/usr/sbin:/usr/bin:/sbin:/bin"
    submit("data/downloads/tiny.json", "--configfile", configfile, directory=tmp_path, PATH=path)
    assert (tmp_path / "data/downloads/tiny.json").exists()


def test_every_submitted_rule_leaves_its_log(undisturbed):
    folder, output = undisturbed
    for rule, number in Counter(re.findall(r"^rule (\w+):$", output, re.MULTILINE)).items():
        logs = [path for path in (folder / "logs" / rule).glob("*.log") if path.stat().st_size]
        assert len(logs) == number, rule


def test_job_cancelled_in_the_middle_goes_on_with_more_memory(cluster, submit, configfile, undisturbed, run_up_to):
    folder = run_up_to("finetune")
    snakemake = submit(WEIGHTS, "--configfile", configfile, directory=folder, background=True)
    job = wait_for_job(cluster, "finetune", folder, snakemake)
    while not list(folder.glob("models/small/seed0/training/**/last.ckpt")):
        assert snakemake.poll() is None, (folder / "output.txt").read_text()
        time.sleep(0.05)
    cluster.command("scancel", job["JobId"])
    assert snakemake.wait(timeout=600) == 0, (folder / "output.txt").read_text()
    jobs = [j for j in cluster.jobs(WorkDir=str(folder)) if rule_of(j) == "finetune"]
    attempts = sorted((int(j["JobId"]), j["JobState"], j["MinMemoryNode"]) for j in jobs)
    assert [attempt[1:] for attempt in attempts] == [("CANCELLED", "16000M"), ("COMPLETED", "32000M")]
    run = json.loads((folder / WEIGHTS).read_text())["run"]
    assert (run["attempts"], run["steps"]) == (2, STEPS), "training did not go on from its saved state"
    assert differing(folder, undisturbed[0]) == []


@pytest.mark.parametrize("rule", sorted(TARGETS))
def test_killed_snakemake_goes_on_to_the_same_bytes(rule, cluster, submit, configfile, undisturbed, run_up_to):
    """Its jobs live on, and those of the second run take over from them."""
    folder, words = run_up_to(rule), (TARGETS[rule], "--configfile", configfile)
    snakemake = submit(*words, directory=folder, background=True)
    wait_for_job(cluster, rule, folder, snakemake)
    os.kill(snakemake.pid, signal.SIGKILL)
    snakemake.wait()
    submit(*words, "--unlock", directory=folder)
    submit(*words, directory=folder)
    assert differing(folder, undisturbed[0]) == []
