"""Two jobs never write one file: every file that the jobs of a real run write is recorded, with its writer."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from tests.workflow.conftest import Checkout

pytestmark = pytest.mark.workflow

IN_PARTS = {"predict", "baseline", "fragments", "rag", "relabel"}
WHOLE = {"ingest", "agglomerate", "evaluate"}
PARTS = 3
BASELINE = "results/tiny/raw-watershed/seed0/predict"
TARGETS = ["results/tiny/small/seed0/multicut/scores.json"] + [
    f"{BASELINE}/part{i}of{PARTS}.json" for i in range(PARTS)
]

# Every job imports this from the clone's folder, which is on its path: Python tells of each file that is opened to be
# written, and of each that takes its name, as shards and tables do when they are whole.
RECORDER = """
import json
import os
import sys

words = sys.orig_argv
stage = words[words.index("tokenunify") + 1] if "tokenunify" in words[:-1] else ""
part = words[words.index("--part") + 1] if "--part" in words else "0/1"


def record(event, arguments):
    if event == "os.rename":
        note(arguments[1])
    elif event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR):
        note(arguments[0])


def note(path):
    path = os.path.relpath(os.fsdecode(path)) if not isinstance(path, int) else ""
    if path.startswith(("data/", "models/", "results/")):
        os.write(file, json.dumps([path, stage, part, os.getpid()]).encode() + b"\\n")


if stage:
    file = os.open("written.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    sys.addaudithook(record)
"""


@pytest.fixture
def checkout(finished: Checkout, tmp_path: Path) -> Checkout:
    """The tiny configuration has run; what runs now is recorded."""
    checkout = finished.copy(tmp_path / "tokenunify")
    (checkout.path / "sitecustomize.py").write_text(RECORDER)
    return checkout


def writers(checkout: Checkout) -> dict[str, list[tuple]]:
    """Path -> stage, part and process that opened it to write or put it in place, once for each time.

    A volume is built under another name than its own.
    """
    found = defaultdict(list)
    for path, *job in map(json.loads, (checkout.path / "written.jsonl").read_text().splitlines()):
        found[re.sub(r"/\.([^/]+)\.\w+\.partial\.zarr/", r"/\1.zarr/", path)].append(tuple(job))
    return found


def holds_data(path: str) -> bool:
    """Whether it is a shard or a table."""
    return "/c/" in path or path.endswith((".npz", ".npy"))


def offences(checkout: Checkout) -> list[str]:
    """Files that several jobs wrote, locks aside, and shards and tables that one wrote more than once."""
    return [
        path
        for path, jobs in writers(checkout).items()
        if Path(path).name != ".claim" and (len(set(jobs)) > 1 or (holds_data(path) and len(jobs) > 1))
    ]


def test_one_job_writes_a_file_once(checkout: Checkout):
    """All block-wise stages of the test volume run again, in parts where they can."""
    checkout.edit(lambda config: config["resources"].update({s: {"parts": PARTS, "threads": 1} for s in IN_PARTS}))
    (checkout.path / "data/volumes/tiny.json").unlink()
    for made in ("data/volumes/tiny.zarr", "results"):
        shutil.rmtree(checkout.path / made)
    checkout.snakemake(*TARGETS)
    assert offences(checkout) == []
    written = {path: jobs for path, jobs in writers(checkout).items() if holds_data(path)}
    in_parts = {(stage, f"{part}/{PARTS}") for stage in IN_PARTS for part in range(PARTS)}
    assert {job[:2] for (job,) in written.values()} == {(stage, "0/1") for stage in WHOLE} | in_parts
    files = [path for made in ("data/volumes/tiny.zarr", "results") for path in (checkout.path / made).rglob("*")]
    names = {str(path.relative_to(checkout.path)) for path in files if path.is_file()}
    assert set(filter(holds_data, names)) <= set(written)


def test_jobs_that_share_a_shard_are_found_out(checkout: Checkout):
    """The configuration is refused, and the stage by hand; without the check two jobs write the shard they meet in."""
    block_shape = [8, 32, 48]
    section = json.loads((checkout.path / BASELINE / "prepared.json").read_text())["content"]["config"]
    checkout.edit(lambda config: config["storage"].update(block_shape=block_shape))
    refused = checkout.snakemake("data/volumes/tiny.json", "--dry-run", check=False)
    assert "storage.block_shape must be a multiple of shard_shape [8, 32, 32]" in refused.stdout + refused.stderr

    prepared, raw = "results/by-hand/prepared.json", "data/volumes/tiny.json"
    settings = ["--config-json", json.dumps(section | {"block_shape": block_shape})]
    prepare = ["prepare", "--stage", "baseline", *settings, "--inputs", raw, "--output", prepared]
    with pytest.raises(subprocess.CalledProcessError):
        run_stage(checkout, *prepare)
    checks = checkout.path / "tokenunify/config/base.py"
    checks.write_text(checks.read_text().replace("if any(v % u for", "if False and any(v % u for"))
    run_stage(checkout, *prepare)
    for part in ("0/8", "1/8"):
        output = f"results/by-hand/{part[0]}.json"
        run_stage(
            checkout, "baseline", *settings, "--raw", raw, "--prepared", prepared, "--part", part, "--output", output
        )
    (offence,) = offences(checkout)
    assert offence.startswith("results/by-hand/") and offence.endswith("/affinities.zarr/c/0/0/0/1")


def run_stage(checkout: Checkout, *words: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(checkout.path)}
    subprocess.run([sys.executable, "-m", "tokenunify", *words], cwd=checkout.path, env=environment, check=True)
