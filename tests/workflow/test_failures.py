"""What a user sees when a folder is read-only, the disk is full or a store is damaged; and that the mend works."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.workflow.conftest import TARGETS, Checkout

pytestmark = pytest.mark.workflow

TABLE = TARGETS[0]
RUN = "results/tiny/small/seed0"
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting a file system needs root")


@pytest.fixture
def checkout(finished: Checkout, tmp_path: Path) -> Checkout:
    return finished.copy(tmp_path / "tokenunify")


@contextmanager
def mounted(path: Path, *options: str) -> Iterator[None]:
    """A tmpfs at `path`."""
    path.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", path], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", path], check=True)


def on_terminal(checkout: Checkout, *words) -> str:
    """What Snakemake and the jobs print; the logs are not looked into."""
    done = checkout.snakemake(*words, check=False)
    assert done.returncode != 0
    return done.stdout + done.stderr


def shown(checkout: Checkout, *words) -> str:
    """What the user sees of a failing run: Snakemake's output and the logs it points to."""
    return on_terminal(checkout, *words) + checkout.logs()


@needs_root
def test_results_read_only(checkout: Checkout):
    shutil.rmtree(checkout.path / "results")
    with mounted(checkout.path / "results", "ro"):
        text = shown(checkout, TABLE)
    assert "Read-only file system" in text
    assert "results" in text


@needs_root
def test_stage_output_read_only(checkout: Checkout, tmp_path: Path):
    """The stage's own words, for a folder that it may not write to."""
    command = [
        sys.executable,
        "-m",
        "tokenunify",
        "download",
        "--downloads",
        tmp_path / "ro/files",
        "--output",
        tmp_path / "ro/a.json",
    ]
    section = '{"sources": [{"phantom": {"seed": 1, "shape": [8, 16, 16]}}]}'
    with mounted(tmp_path / "ro", "ro"):
        done = subprocess.run([*command, "--config-json", section], cwd=checkout.path, capture_output=True, text=True)
    assert done.returncode == 1
    assert "Read-only file system" in done.stderr
    assert "choose another folder with --directory" in done.stderr
    assert "Traceback" not in done.stderr


@needs_root
def test_disk_full(checkout: Checkout, finished: Checkout):
    """The message says what to do; with space again the run goes on and ends with the same bytes."""
    kept = checkout.path / "kept"
    (checkout.path / "results").rename(kept)
    with mounted(checkout.path / "results", "size=120k"):
        text = shown(checkout, TABLE)
        subprocess.run(["mount", "-o", "remount,size=100m", checkout.path / "results"], check=True)
        checkout.snakemake(TABLE)
        assert (checkout.path / TABLE).read_bytes() == (finished.path / TABLE).read_bytes()
    assert "No space left on device" in text
    assert "free space and run snakemake again" in text


def one_shard(checkout: Checkout, store: str) -> Path:
    return next(p for p in sorted(checkout.path.glob(f"{store}/**/c/0/**/*")) if p.is_file())


@pytest.mark.parametrize("damage", ["deleted", "flipped byte"])
@pytest.mark.parametrize(
    ("store", "rerun", "delete"),
    [
        (f"{RUN}/predict", "fragments", f"{RUN}/predict"),
        (f"{RUN}/multicut/relabel", "evaluate", f"{RUN}/multicut/relabel"),
        ("data/volumes/tiny.zarr/labels/0", "evaluate", "data/volumes/tiny.zarr"),
    ],
)
def test_damaged_store(checkout: Checkout, finished: Checkout, damage: str, store: str, rerun: str, delete: str):
    """The store is named with the folder to delete; deleting it and running again mends everything."""
    shard = one_shard(checkout, store)
    if damage == "deleted":
        shard.unlink()
    else:
        content = bytearray(shard.read_bytes())
        content[len(content) // 3] ^= 0x10
        shard.write_bytes(content)
    for ledger in sorted(checkout.path.glob("results/**/ledger")):
        if _belongs(ledger, rerun):
            shutil.rmtree(ledger)
    text = shown(checkout, TABLE, "--forcerun", rerun)
    assert ("lacks 1 of its shard files" if damage == "deleted" else "is damaged") in text
    assert f"delete {delete}" in text or f"and {delete}" in text
    shutil.rmtree(checkout.path / delete)
    if delete.endswith(".zarr"):
        (checkout.path / "data/volumes/tiny.json").unlink()
    checkout.snakemake(TABLE)
    assert (checkout.path / TABLE).read_bytes() == (finished.path / TABLE).read_bytes()


def _belongs(ledger: Path, stage: str) -> bool:
    """Whether the ledger is one of the stage that is to read the damaged store again."""
    folder = str(ledger.parent)
    if stage == "fragments":
        return "/fragments/" in folder
    return (ledger.parent / "blocks").is_dir() and "/rag/" not in folder


def test_unknown_volume_names_the_known(clone: Checkout):
    done = clone.snakemake("results/typo/metrics.csv", "--dry-run", check=False)
    text = done.stdout + done.stderr
    assert done.returncode != 0
    assert "no model is evaluated on volume 'typo'; volumes with a table: tiny, tiny-validation" in text


@pytest.mark.parametrize(
    ("target", "unknown", "known"),
    [
        ("models/typo/seed0/weights.json", "unknown model 'typo'", ["small"]),
        ("data/volumes/typo.json", "unknown volume 'typo'", ["tiny-train", "tiny-validation", "tiny"]),
    ],
)
def test_unknown_name_in_a_target(clone: Checkout, target: str, unknown: str, known: list[str]):
    done = clone.snakemake(target, "--dry-run", check=False)
    assert done.returncode != 0
    message = next((line for line in (done.stdout + done.stderr).splitlines() if unknown in line), "")
    assert set(known) <= set(re.findall(r"[\w-]+", message)), done.stdout + done.stderr


def test_unknown_key_stops_before_any_job(clone: Checkout, tmp_path: Path):
    checkout = clone.copy(tmp_path / "tokenunify")
    checkout.edit(lambda config: config["finetune"].update(stepz=3))
    done = checkout.snakemake(TABLE, "--dry-run", check=False)
    assert done.returncode != 0
    assert "finetune.stepz: unknown key, did you mean steps?" in done.stdout + done.stderr


def test_bad_input_is_not_tried_again(clone: Checkout, tmp_path: Path):
    """What was killed is."""
    checkout = clone.copy(tmp_path / "tokenunify")
    checkout.edit(lambda config: config["volumes"]["tiny"].update(voxel_size_nm=[35, 8, 9]))
    text = shown(checkout, "data/volumes/tiny.json", "--retries", "1")
    assert "bad input: voxel_size_nm is [35.0, 8.0, 9.0] in the configuration" in text
    assert "Trying to restart" not in text
    (checkout.path / "sitecustomize.py").write_text("import os, sys\nif 'ingest' in sys.orig_argv: os.abort()")
    text = shown(checkout, "data/volumes/tiny.json", "--retries", "1")
    assert text.count("Trying to restart") == 1


@pytest.mark.parametrize("words", [(), ("--show-failed-logs",)], ids=["plain", "with failed logs"])
def test_bad_input_is_told_on_the_terminal_once(clone: Checkout, tmp_path: Path, words: tuple[str, ...]):
    checkout = clone.copy(tmp_path / "tokenunify")
    checkout.edit(lambda config: config["volumes"]["tiny"].update(voxel_size_nm=[35, 8, 9]))
    text = on_terminal(checkout, "data/volumes/tiny.json", *words)
    assert text.count("bad input: voxel_size_nm is [35.0, 8.0, 9.0] in the configuration") == 1


@pytest.mark.parametrize(
    ("defect", "words"),
    [
        ("raise ArithmeticError('a defect of ours')", ["exit status 1:", "ArithmeticError: a defect of ours"]),
        ("print('the last words', file=sys.stderr, flush=True); os.abort()", ["exit status 134:", "the last words"]),
        ("os._exit(7)", ["logs/download/tiny.log, exit status 7:"]),
    ],
    ids=["traceback", "aborted", "nothing in the log"],
)
def test_the_end_of_a_log_is_shown_on_the_terminal(clone: Checkout, tmp_path: Path, defect: str, words: list[str]):
    checkout = clone.copy(tmp_path / "tokenunify")
    with open(checkout.path / "tokenunify/data/download/download.py", "a") as file:
        file.write(f"\nimport os, sys\n{defect}\n")
    text = on_terminal(checkout, "data/downloads/tiny.json")
    assert all(word in text for word in words), text


@pytest.mark.parametrize("name", ["it's 100% {a}", 'Größe "q" $HOME {x}{{y}}'])
def test_checkout_whose_path_has_odd_characters(clone: Checkout, tmp_path: Path, name: str):
    checkout = clone.copy(tmp_path / name / "tokenunify")
    checkout.snakemake("data/volumes/tiny.json", "--directory", tmp_path / f"run {name}")
    assert json.loads((tmp_path / f"run {name}" / "data/volumes/tiny.json").read_text())["content"]["raw"]


def test_checkout_whose_path_ends_pythonpath(clone: Checkout, tmp_path: Path):
    checkout = clone.copy(tmp_path / "a:b" / "tokenunify")
    assert "has a :, at which PYTHONPATH ends" in on_terminal(checkout, "data/volumes/tiny.json")
