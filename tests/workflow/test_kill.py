"""SIGKILL in the middle of every stage, and of Snakemake with its children: the rerun ends as if nothing had been."""

import json
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import psutil
import pytest

from tests.workflow.conftest import TARGETS, Checkout

pytestmark = [pytest.mark.workflow, pytest.mark.timeout(600)]

BLOCKWISE = {"ingest", "baseline", "predict", "fragments", "rag", "relabel", "evaluate"}
TRAININGS = {"pretrain", "finetune"}
STAGES = BLOCKWISE | TRAININGS | {"download", "prepare", "tune", "agglomerate", "metrics", "report"}

# Every job imports this from the clone's folder, which is on its path. The job that takes `armed-STAGE` is interrupted
# in the middle of its work: with two blocks recorded and the third written; a training with one saved state, at the
# second; any other in front of its first manifest. Every block that a job records is noted in recorded.jsonl.
INTERRUPTION = """
import json
import os
import signal
import sys
import time
from pathlib import Path

words = sys.orig_argv
stage = words[words.index("tokenunify") + 1] if "tokenunify" in words[:-1] else ""


def interrupted(function, at_call, after=lambda *arguments: None):
    calls = []

    def call(*arguments, **options):
        calls.append(1)
        if len(calls) == at_call and taken():
            interrupt(*arguments)
        function(*arguments, **options)
        after(*arguments)

    return call


def taken():
    try:
        os.rename(f"armed-{stage}", f"reached-{stage}")
        return True
    except FileNotFoundError:
        return False


def note(ledger, entry):
    with open("recorded.jsonl", "a") as file:
        print(json.dumps([stage, str(ledger), entry["block"]]), file=file)


if stage in BLOCKWISE:
    from tokenunify.store import blockwise

    blockwise._record = interrupted(blockwise._record, 3, note)
elif stage in TRAININGS:
    from tokenunify.learning import checkpoint

    checkpoint.save_state = interrupted(checkpoint.save_state, 2)
elif stage:
    from tokenunify.store import manifest

    manifest.write_text = interrupted(manifest.write_text, 1)


def interrupt(*arguments):
"""
# The job dies; a block-wise one with half a line in its ledger.
DIE = """
    if stage in BLOCKWISE:
        arguments[0].parent.mkdir(parents=True, exist_ok=True)
        with open(arguments[0], "a") as file:
            file.write('{"block": 1')
    os.kill(os.getpid(), signal.SIGKILL)
"""
# The job stands still until the test kills or releases it.
WAIT = """
    deadline = time.monotonic() + 240
    while not Path(f"released-{stage}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
"""


@pytest.fixture
def checkout(clone: Checkout, tmp_path: Path) -> Checkout:
    return clone.copy(tmp_path / "tokenunify")


def arm(checkout: Checkout, *stages: str, then: str) -> None:
    """Let the next job of each stage be interrupted."""
    (checkout.path / "sitecustomize.py").write_text(
        f"BLOCKWISE, TRAININGS = {BLOCKWISE}, {TRAININGS}\n{INTERRUPTION}{then}"
    )
    for stage in stages:
        (checkout.path / f"armed-{stage}").touch()


def results(checkout: Checkout) -> dict[str, bytes]:
    """Every shard, the weights and the table, by path."""
    paths = [*checkout.path.glob("data/volumes/*.zarr/**/c/**/*"), *checkout.path.glob("results/**/c/**/*")]
    paths += [*checkout.path.glob("models/**/weights.safetensors"), checkout.path / TARGETS[0]]
    return {str(p.relative_to(checkout.path)): p.read_bytes() for p in paths if p.is_file()}


def assert_same_results(checkout: Checkout, expected: Checkout) -> None:
    found, wanted = results(checkout), results(expected)
    assert len(wanted) > 50
    assert found.keys() == wanted.keys()
    assert [name for name in wanted if found[name] != wanted[name]] == []


def recorded(checkout: Checkout, stage: str) -> Counter:
    """How often each block of each of the stage's ledgers was recorded, by all attempts."""
    lines = map(json.loads, (checkout.path / "recorded.jsonl").read_text().splitlines())
    return Counter((ledger, block) for of_stage, ledger, block in lines if of_stage == stage)


def assert_work_was_kept(checkout: Checkout) -> None:
    """No finished block was computed again, and trainings went on from their saved states."""
    for stage in BLOCKWISE:
        assert set(recorded(checkout, stage).values()) == {1}, f"{stage} computed a finished block again"
    for folder in ("models/pretrain/tiny", "models/small"):
        assert json.loads((checkout.path / folder / "seed0/weights.json").read_text())["run"]["attempts"] == 2, folder


def test_every_stage_killed_once(checkout: Checkout, finished: Checkout):
    arm(checkout, *STAGES, then=DIE)
    for _ in range(30):
        if checkout.snakemake(*TARGETS, check=False).returncode == 0:
            break
    assert {p.name.removeprefix("reached-") for p in checkout.path.glob("reached-*")} == STAGES
    assert_same_results(checkout, finished)
    assert_work_was_kept(checkout)


@pytest.fixture
def start(checkout: Checkout) -> Iterator[Callable[[], subprocess.Popen]]:
    """Start Snakemake in the background; it is killed at the end of the test at the latest."""
    started: list[subprocess.Popen] = []

    def run() -> subprocess.Popen:
        command = checkout.command(*TARGETS)
        with open(checkout.path / "output.txt", "w") as file:
            started.append(subprocess.Popen(command, cwd=checkout.path, stdout=file, stderr=file))
        return started[-1]

    yield run
    for process in started:
        kill(process)


def kill(snakemake: subprocess.Popen, *children: psutil.Process) -> None:
    snakemake.kill()
    snakemake.wait()
    for child in children:
        with suppress(psutil.NoSuchProcess):
            child.kill()


def wait(condition: Callable[[], bool], checkout: Checkout, snakemake: subprocess.Popen) -> None:
    deadline = time.monotonic() + 240
    while not condition():
        assert snakemake.poll() is None and time.monotonic() < deadline, output(checkout)
        time.sleep(0.05)


def output(checkout: Checkout) -> str:
    return (checkout.path / "output.txt").read_text() + checkout.logs()


def reached(checkout: Checkout, stage: str) -> bool:
    return (checkout.path / f"reached-{stage}").exists()


def waits(checkout: Checkout, stage: str) -> bool:
    """Whether a job of the stage has found another one at its work."""
    logs = (checkout.path / "logs" / stage).glob("*.log")
    return any(b"are held by process" in log.read_bytes() for log in logs)


def test_snakemake_killed_with_its_children(checkout: Checkout, finished: Checkout, start):
    for stage in ("download", "ingest", "pretrain", "finetune", "predict", "fragments", "rag", "relabel", "evaluate"):
        arm(checkout, stage, then=WAIT)
        snakemake = start()
        wait(partial(reached, checkout, stage), checkout, snakemake)
        kill(snakemake, *psutil.Process(snakemake.pid).children(recursive=True))
        assert stage not in BLOCKWISE or len(recorded(checkout, stage)) >= 2
        checkout.snakemake("--unlock", *TARGETS)
    checkout.snakemake(*TARGETS)
    assert_same_results(checkout, finished)
    assert_work_was_kept(checkout)


def test_snakemake_killed_alone(checkout: Checkout, finished: Checkout, start):
    """The jobs that survive are waited for, not raced, by those of the next run."""
    stages = ("ingest", "pretrain", "finetune", "relabel")
    arm(checkout, *stages, then=WAIT)
    snakemake = start()
    for stage in stages:
        wait(partial(reached, checkout, stage), checkout, snakemake)
        kill(snakemake)
        checkout.snakemake("--unlock", *TARGETS)
        snakemake = start()
        wait(partial(waits, checkout, stage), checkout, snakemake)
        (checkout.path / f"released-{stage}").touch()
    assert snakemake.wait(240) == 0, output(checkout)
    assert_same_results(checkout, finished)
    assert_work_was_kept(checkout)
