"""Stages in four parts that run at once: what is cancelled or lacks memory is submitted again, bad input is not."""

import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]

RUN = "results/tiny/small/seed0"
STAGES = ("predict", "fragments", "rag", "relabel")
PARTS = 4
BAD = "data/volumes/bad.json"
TARGETS = [*(f"{RUN}/multicut/relabel/part{part}of{PARTS}.json" for part in range(PARTS)), BAD]
MEMORY_MB = 1500
"""Of each job at its first attempt."""

# Every job imports this from the folder of the workflow, which is on its path. The four of a stage wait for each other;
# two of predict come to grief: one waits, with a block recorded, to be cancelled; one needs 2 GB, at each attempt.
SCENARIO = """
import sys
import time
from pathlib import Path

words = sys.orig_argv
stage = words[words.index("tokenunify") + 1] if "tokenunify" in words[:-1] else ""
part = words[words.index("--part") + 1] if "--part" in words else ""


def wait(condition, seconds):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.1)


if part:
    Path(f"begun-{stage}-{part[0]}").touch()
    wait(lambda: len(list(Path().glob(f"begun-{stage}-*"))) == int(part[2]), 60)

if (stage, part) == ("predict", "1/4") and not Path("held").exists():
    from tokenunify.store import blockwise

    record = blockwise._record

    def record_one(*arguments):
        record(*arguments)
        Path("held").touch()
        wait(lambda: False, 60)

    blockwise._record = record_one

if (stage, part) == ("predict", "2/4"):
    hoard = b"." * 2 * 10**9
    time.sleep(4)
    del hoard
"""


def write_config(root, folder, parts: int):
    """The tiny configuration with a bad volume, one model from scratch and one segmentation with nothing to tune."""
    config = yaml.safe_load((root / "tests" / "config" / "tiny.yaml").read_text())
    config["resources"] |= {stage: {"parts": parts, "threads": 1, "mem_mb": MEMORY_MB} for stage in STAGES}
    del config["pretrainings"], config["corpora"], config["models"]["small"]["pretraining"]
    config["volumes"]["bad"] = config["volumes"]["tiny"] | {"voxel_size_nm": [35, 8, 9]}
    config["segmentations"] = {"multicut": config["segmentations"]["multicut"]}
    path = folder / f"parts{parts}.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.fixture(scope="module")
def alone(root, tmp_path_factory):
    """Folder of a run without a cluster, each stage one process."""
    folder = tmp_path_factory.mktemp("alone")
    words = [f"{RUN}/multicut/relabel/part0of1.json", "data/downloads/bad.json", "--cores", "2", "--directory", folder]
    words += ["--configfile", write_config(root, folder, parts=1)]
    command = [sys.executable, "-m", "snakemake", *map(str, words)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def disturbed(root, cluster, submit, alone, tmp_path_factory):
    """Folder of the same volume and weights, run in four parts on the cluster under SCENARIO."""
    workflow = tmp_path_factory.mktemp("workflow")
    for name in ("Snakefile", "workflow", "tokenunify", "envs"):
        (workflow / name).symlink_to(root / name)
    (workflow / "sitecustomize.py").write_text(SCENARIO)
    folder = tmp_path_factory.mktemp("parts") / "run"
    shutil.copytree(alone, folder, ignore=shutil.ignore_patterns("results"))
    words = ["--snakefile", workflow / "Snakefile", "--configfile", write_config(root, folder, parts=PARTS)]
    # Four jobs at once on two cores take ten to twenty seconds; a check before their end puts off the next one far.
    words += ["--keep-going", "--slurm-init-seconds-before-status-checks", 20]
    snakemake = submit(*TARGETS, *words, directory=folder, background=True)
    while not (folder / "held").exists():
        assert snakemake.poll() is None, (folder / "output.txt").read_text()
        time.sleep(0.1)
    (job,) = attempts(cluster, folder, f"predict_wildcards_tiny_small_0_1_{PARTS}")
    cluster.command("scancel", job["JobId"])
    snakemake.wait(timeout=600)
    return folder


def attempts(cluster, folder, name: str) -> list[dict[str, str]]:
    """The jobs that were submitted for a rule and its wildcards, the first one first."""
    jobs = [job for job in cluster.jobs(WorkDir=str(folder)) if re.fullmatch(f"rule_{name}", job["Comment"])]
    return sorted(jobs, key=lambda job: int(job["JobId"]))


def outcomes(jobs) -> list[tuple[str, str]]:
    return [(job["JobState"], job["MinMemoryNode"]) for job in jobs]


@pytest.mark.parametrize("stage", STAGES)
def test_the_four_jobs_of_a_stage_run_at_once(cluster, disturbed, stage):
    jobs = attempts(cluster, disturbed, rf"{stage}_wildcards_.*_\d_{PARTS}")[:PARTS]
    assert len({job["Comment"] for job in jobs}) == PARTS
    assert max(job["StartTime"] for job in jobs) < min(job["EndTime"] for job in jobs)


def test_the_others_are_submitted_once(cluster, disturbed):
    jobs = [job for stage in STAGES[1:] for job in attempts(cluster, disturbed, f"{stage}_wildcards_.*")]
    assert outcomes(jobs) == 3 * PARTS * [("COMPLETED", f"{MEMORY_MB}M")]


def test_a_cancelled_job_is_submitted_again_and_goes_on_behind_its_finished_block(cluster, disturbed):
    jobs = attempts(cluster, disturbed, f"predict_wildcards_tiny_small_0_1_{PARTS}")
    assert outcomes(jobs) == [("CANCELLED", f"{MEMORY_MB}M"), ("COMPLETED", f"{2 * MEMORY_MB}M")]
    run = json.loads((disturbed / RUN / f"predict/part1of{PARTS}.json").read_text())["run"]
    assert (run["blocks"], run["blocks_computed_now"]) == (2, 1)


def test_a_job_that_lacked_memory_is_submitted_again_with_more(cluster, disturbed):
    jobs = attempts(cluster, disturbed, f"predict_wildcards_tiny_small_0_2_{PARTS}")
    assert outcomes(jobs) == [("FAILED", f"{MEMORY_MB}M"), ("COMPLETED", f"{2 * MEMORY_MB}M")]
    assert "exceeded memory limit" in Path(jobs[0]["StdOut"]).read_text()


def test_a_job_with_bad_input_is_not_submitted_again(cluster, disturbed):
    (job,) = attempts(cluster, disturbed, "ingest_wildcards_bad")
    assert job["JobState"] == "FAILED"
    assert "bad input: voxel_size_nm is [35.0, 8.0, 9.0]" in (disturbed / "output.txt").read_text()


def test_the_result_is_that_of_one_process(alone, disturbed):
    assert all((disturbed / target).exists() for target in TARGETS if target != BAD)
    found, expected = stores(disturbed), stores(alone)
    assert len(expected) > 20
    assert found == expected


def stores(folder: Path) -> dict[str, bytes]:
    """Every shard by its path."""
    return {
        str(path.relative_to(folder)): path.read_bytes() for path in folder.glob("results/**/c/**/*") if path.is_file()
    }
