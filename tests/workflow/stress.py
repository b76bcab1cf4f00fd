"""SIGKILL at random moments, again and again: for minutes, so `make stress` runs it, and pytest alone does not.

TOKENUNIFY_SEED decides the moments, TOKENUNIFY_KILLS their number.
"""

import os
import random
import secrets
import shutil
import signal
import subprocess
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.workflow.conftest import TARGETS, Checkout
from tests.workflow.test_kill import BLOCKWISE, assert_same_results, output, recorded

pytestmark = pytest.mark.timeout(3600)

SEED = int(os.environ.get("TOKENUNIFY_SEED", secrets.randbelow(10**6)))
KILLS = int(os.environ.get("TOKENUNIFY_KILLS", "30"))

# Every job imports this from the clone's folder, which is on its path: it notes each block that it has recorded.
NOTES = """
import json
import sys

words = sys.orig_argv
stage = words[words.index("tokenunify") + 1] if "tokenunify" in words[:-1] else ""

if stage in BLOCKWISE:
    from tokenunify.store import blockwise

    record = blockwise._record

    def record_and_note(ledger, entry):
        record(ledger, entry)
        with open("recorded.jsonl", "a") as file:
            print(json.dumps([stage, str(ledger), entry["block"]]), file=file)

    blockwise._record = record_and_note
"""


@pytest.fixture
def empty(clone: Checkout, tmp_path: Path) -> Checkout:
    """Nothing has run yet; every stage that can be in parts is two jobs, which run at once."""
    checkout = clone.copy(tmp_path / "empty")
    parts = {stage: {"parts": 2, "threads": 1} for stage in BLOCKWISE - {"ingest", "evaluate"}}
    checkout.edit(lambda config: config["resources"].update(parts))
    (checkout.path / "sitecustomize.py").write_text(f"BLOCKWISE = {BLOCKWISE}\n{NOTES}")
    return checkout


def start(checkout: Checkout) -> subprocess.Popen:
    """Snakemake in the background, as leader of a process group that holds all its jobs."""
    command = checkout.command(*TARGETS)
    with open(checkout.path / "output.txt", "w") as file:
        return subprocess.Popen(command, cwd=checkout.path, stdout=file, stderr=file, start_new_session=True)


def kill(snakemake: subprocess.Popen) -> set[str]:
    """Kill Snakemake and all its jobs at once; returns the stages at work."""
    jobs = psutil.Process(snakemake.pid).children(recursive=True)
    stages = set(filter(None, map(stage_of, jobs)))
    os.killpg(snakemake.pid, signal.SIGKILL)
    snakemake.wait()
    assert not [job for job in psutil.wait_procs(jobs, timeout=10)[1] if job.status() != psutil.STATUS_ZOMBIE]
    return stages


def stage_of(job: psutil.Process) -> str | None:
    with suppress(psutil.Error):  # it may just have ended
        words = job.cmdline()
        return words[words.index("tokenunify") + 1] if "tokenunify" in words[:-1] else None


def ended(snakemake: subprocess.Popen, within: float) -> bool:
    """Wait some seconds for the end."""
    with suppress(subprocess.TimeoutExpired):
        snakemake.wait(within)
    return snakemake.returncode is not None


def assert_as_undisturbed(checkout: Checkout, snakemake: subprocess.Popen, expected: Checkout) -> None:
    """Snakemake comes to its end, with the same bytes, and no finished block was computed again."""
    assert snakemake.wait(600) == 0, output(checkout)
    assert_same_results(checkout, expected)
    for stage in BLOCKWISE:
        assert set(recorded(checkout, stage).values()) == {1}, f"{stage} computed a finished block again"


def test_killed_at_random_moments(empty: Checkout, tmp_path: Path):
    """One run is killed again and again; where it comes to its end before the last kill, another one begins."""
    undisturbed, begun = empty.copy(tmp_path / "undisturbed"), time.monotonic()
    assert_as_undisturbed(undisturbed, start(undisturbed), undisturbed)
    length = time.monotonic() - begun
    print(f"\nTOKENUNIFY_SEED={SEED}; undisturbed, a run takes {length:.0f} s")
    rng, kills, runs, at_work = random.Random(SEED), 0, 0, Counter()
    while kills < KILLS:
        runs += 1
        checkout = empty.copy(tmp_path / f"run{runs}")
        snakemake = start(checkout)
        while kills < KILLS and not ended(snakemake, within=rng.uniform(0, length / 4)):
            at_work.update(stages := kill(snakemake))
            kills += 1
            print(f"kill {kills}, run {runs}, at {time.monotonic() - begun:.0f} s: {', '.join(sorted(stages)) or '-'}")
            checkout.snakemake("--unlock", *TARGETS)
            snakemake = start(checkout)
        assert_as_undisturbed(checkout, snakemake, undisturbed)
        shutil.rmtree(checkout.path)
    print(f"{kills} kills in {runs} runs; jobs killed: {dict(at_work)}")
