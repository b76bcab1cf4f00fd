"""SIGKILL in the middle of every stage, and of Snakemake with its children: the rerun ends as if nothing had been."""

import json
import os
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

from tests.workflow.conftest import TARGETS, Checkout

pytestmark = [pytest.mark.workflow, pytest.mark.timeout(600)]

# Every job imports this from the clone's folder, which is on its path. Each stage dies once: with two blocks finished,
# the third written but not recorded and its line in the ledger torn; finetune behind its second saved state;
# any other in front of its first manifest.
KILLER = """
import os
import signal
import sys
from pathlib import Path

words = sys.orig_argv
stage = words[words.index("tokenunify") + 1] if "tokenunify" in words[:-1] else ""
marker = Path(f"killed-{stage}")


def dying(function, calls, before=lambda *arguments: None):
    def call(*arguments, **options):
        calls.append(1)
        if len(calls) == count and not marker.exists():
            before(*arguments)
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)

    return call


def tear(ledger, entry):
    ledger.parent.mkdir(parents=True, exist_ok=True)
    with open(ledger, "a") as file:
        file.write('{"block": 1')


if stage and not marker.exists():
    if stage in ("ingest", "baseline", "predict", "fragments", "rag", "relabel", "evaluate"):
        from tokenunify import blockwise

        count = 3
        blockwise._record = dying(blockwise._record, [], tear)
    elif stage == "finetune":
        from tokenunify.learning import checkpoint

        count = 2
        checkpoint.save_state = dying(checkpoint.save_state, [])
    else:
        from tokenunify import manifest

        count = 1
        manifest.write_text = dying(manifest.write_text, [])
"""
STAGES = {
    *("download", "ingest", "finetune", "prepare", "predict", "baseline", "fragments", "rag", "tune", "agglomerate"),
    *("relabel", "evaluate", "metrics", "report"),
}


def results(checkout: Checkout) -> dict[str, bytes]:
    """Every shard, the weights and the table, by path."""
    paths = [*checkout.path.glob("data/volumes/*.zarr/**/c/**/*"), *checkout.path.glob("results/**/c/**/*")]
    paths += [*checkout.path.glob("models/*/*/weights.safetensors"), checkout.path / TARGETS[0]]
    return {str(p.relative_to(checkout.path)): p.read_bytes() for p in paths if p.is_file()}


def assert_same_results(checkout: Checkout, expected: Checkout) -> None:
    found, wanted = results(checkout), results(expected)
    assert len(wanted) > 50
    assert found.keys() == wanted.keys()
    assert [name for name in wanted if found[name] != wanted[name]] == []


def recorded_blocks(checkout: Checkout) -> list[Counter]:
    """For each ledger, how often each block was finished."""
    ledgers = [p.read_text().splitlines() for p in checkout.path.glob("results/**/ledger/*.jsonl")]
    return [Counter(json.loads(line)["block"] for line in lines if line.endswith("}")) for lines in ledgers]


def test_every_stage_killed_once(clone: Checkout, finished: Checkout, tmp_path: Path):
    checkout = clone.copy(tmp_path / "tokenunify")
    (checkout.path / "sitecustomize.py").write_text(KILLER)
    for _ in range(30):
        if checkout.snakemake(*TARGETS, check=False).returncode == 0:
            break
    assert {p.name.removeprefix("killed-") for p in checkout.path.glob("killed-*")} == STAGES
    assert_same_results(checkout, finished)
    ledgers = recorded_blocks(checkout)
    assert len(ledgers) > 10
    assert all(set(counts.values()) == {1} for counts in ledgers), "a finished block was computed again"


@pytest.mark.parametrize("with_children", [True, False], ids=["with its children", "alone"])
def test_snakemake_killed(clone: Checkout, finished: Checkout, tmp_path: Path, with_children: bool):
    """Killed when each of some stages begins; children that survive are waited for, not raced."""
    checkout = clone.copy(tmp_path / "tokenunify")
    for stage in ("ingest", "finetune", "predict", "relabel", "evaluate"):
        _start_and_kill(checkout, stage, with_children)
    checkout.snakemake("--unlock", *TARGETS)
    checkout.snakemake(*TARGETS)
    assert_same_results(checkout, finished)
    assert all(set(counts.values()) == {1} for counts in recorded_blocks(checkout))


def _start_and_kill(checkout: Checkout, stage: str, with_children: bool) -> None:
    checkout.snakemake("--unlock", *TARGETS)
    with open(checkout.path / f"{stage}.out", "w") as output:
        process = subprocess.Popen(checkout.command(*TARGETS), cwd=checkout.path, stdout=output, stderr=output)
    while not (children := _running(process, stage)):
        assert process.poll() is None, (checkout.path / f"{stage}.out").read_text() + checkout.logs()
        time.sleep(0.02)
    time.sleep(0.3)
    process.send_signal(signal.SIGKILL)
    process.wait()
    for child in children if with_children else []:
        try:
            os.kill(child.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def _running(process: subprocess.Popen, stage: str) -> list[psutil.Process]:
    """Snakemake's children, if one of them runs the stage."""
    try:
        children = psutil.Process(process.pid).children(recursive=True)
        return children if any(stage in child.cmdline() for child in children) else []
    except psutil.NoSuchProcess:
        return []
