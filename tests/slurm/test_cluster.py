"""The test cluster itself: jobs go through sbatch, get what they ask for, and their failures are told."""

import pytest

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(600)]

SNAKEFILE = """
rule all:
    input: "cpu.txt", "gpu.txt"

rule plain:
    output: "cpu.txt"
    threads: 2
    resources: mem_mb=700, runtime=5
    shell: "echo job $SLURM_JOB_ID cpus $SLURM_CPUS_PER_TASK > {output}"

rule accelerated:
    output: "gpu.txt"
    resources: gpu=1, mem_mb=500, runtime=5
    shell: "echo job $SLURM_JOB_ID gpus $CUDA_VISIBLE_DEVICES > {output}"

rule failing:
    output: "never.txt"
    log: "failing.log"
    resources: mem_mb=500, runtime=5
    shell: "echo this is why > {log}; exit 3"
"""


@pytest.fixture
def snakefile(tmp_path):
    path = tmp_path / "Snakefile"
    path.write_text(SNAKEFILE)
    return path


def test_jobs_get_the_resources_they_ask_for(cluster, submit, snakefile, tmp_path):
    submit("--snakefile", snakefile, directory=tmp_path)
    written = {name: (tmp_path / f"{name}.txt").read_text().split() for name in ("cpu", "gpu")}
    jobs = {job["JobId"]: job for job in cluster.jobs(WorkDir=str(tmp_path))}
    plain, accelerated = jobs[written["cpu"][1]], jobs[written["gpu"][1]]
    assert (plain["Comment"], accelerated["Comment"]) == ("rule_plain", "rule_accelerated")
    assert (plain["NumCPUs"], plain["MinMemoryNode"], plain["TimeLimit"]) == ("2", "700M", "00:05:00")
    assert "TresPerJob" not in plain
    assert accelerated["TresPerJob"] == "gres:gpu:1"
    assert written["gpu"][3] in "01"


def test_failed_job_is_explained_by_its_log(cluster, submit, snakefile, tmp_path):
    done = submit("never.txt", "--snakefile", snakefile, "--retries", 0, directory=tmp_path, check=False)
    assert done.returncode != 0
    assert "this is why" in done.stdout
    assert len(cluster.jobs(Comment="rule_failing", WorkDir=str(tmp_path), JobState="FAILED")) == 1
