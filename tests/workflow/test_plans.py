"""What the README promises of dry runs in a fresh clone: the whole plan, without network."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.workflow.conftest import Checkout, listed
from tokenunify.cli import COMMANDS

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
    assert {rule for rule in planned if not rule.startswith("prepare_")} == set(COMMANDS) - {"prepare", "report"}
    assert {f"prepare_{stage}" for stage in ("predict", "baseline", "fragments", "relabel")} < planned
    for rule in ("download", "ingest"):
        assert {job.wildcards for job in jobs if job.rule == rule} == {f"volume={wafer}" for wafer in WAFERS}


def test_other_configuration_replaces_the_wafers(clone: Checkout, tmp_path: Path):
    output = dry_run(clone, tmp_path, "--cores", "2", "--configfile", "config/demo.yaml")
    assert {"metrics", "report"} <= {job.rule for job in listed(output)}
    assert "wafer" not in output
