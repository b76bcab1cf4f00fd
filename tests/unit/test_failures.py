"""What the command line says when a command fails, and how it ends when nobody listens."""

import errno
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tokenunify import cli
from tokenunify.errors import InputError
from tokenunify.store import arrays, manifest

FULL = "the disk is full: free space and run snakemake again, finished blocks are kept"
NOISE = np.random.default_rng(0).integers(0, 256, (10, 100, 1000), np.uint8)


def told(error: Callable[[], None], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> str:
    """The message of a command that ends so."""
    monkeypatch.setattr(cli, "run", lambda _arguments: error())
    with caplog.at_level(logging.ERROR):
        assert cli.main(["schema"]) == 1
    assert "Traceback" not in caplog.text
    return caplog.text


def raiser(error: BaseException) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "the disk is full: free space and run snakemake again"),
        (errno.EDQUOT, "the disk quota is used up: free space and run snakemake again"),
        (errno.EACCES, "no permission: make it readable or, for results, writable, or choose another folder with"),
        (errno.EROFS, "the file system is read-only: choose another folder with --directory"),
    ],
)
def test_os_error_says_what_to_do(
    number: int, words: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    text = told(raiser(OSError(number, "refused", "a.json")), caplog, monkeypatch)
    assert "a.json" in text
    assert words in text


@pytest.mark.parametrize(
    "error",
    [
        OSError("2048 requested and 1024 written"),
        RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598"),
        ValueError("RESOURCE_EXHAUSTED: Error writing: No space left on device"),
    ],
)
def test_libraries_that_hide_a_full_disk(error, caplog, monkeypatch):
    assert FULL in told(raiser(error), caplog, monkeypatch)


def test_a_full_disk_behind_another_error(caplog, monkeypatch):
    def fail() -> None:
        try:
            raise OSError(errno.EDQUOT, "Disk quota exceeded", "a.npz")
        finally:
            raise ValueError("Can't close the ZIP file while there is an open writing handle on it")

    text = told(fail, caplog, monkeypatch)
    assert "the disk quota is used up" in text
    assert "a.npz" in text


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Path]:
    """A folder with 300 KB of space."""
    if os.geteuid() != 0:
        pytest.skip("mounting a file system needs root")
    folder = tmp_path / "full"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", folder], check=True)
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize(
    "write",
    [
        lambda path: np.save(path.with_suffix(".npy"), NOISE),
        lambda path: torch.save({"a": torch.from_numpy(NOISE)}, path),
        lambda path: save_file({"a": torch.from_numpy(NOISE)}, path),
        lambda path: path.write_bytes(NOISE.tobytes()),
        lambda path: np.savez(path, a=NOISE),
    ],
    ids=["np.save", "torch.save", "safetensors", "bytes", "np.savez"],
)
def test_a_disk_that_fills_up(write, full: Path, caplog, monkeypatch):
    """The file is named, and what was written of it is removed."""
    text = told(lambda: manifest.replace(full / "made", write), caplog, monkeypatch)
    assert FULL in text
    assert f"while writing {full / 'made'}" in text
    assert not (full / "made").exists()


def test_a_disk_that_fills_up_inside_a_store(full: Path, caplog, monkeypatch):
    grid = {"chunk_shape": (10, 100, 100), "shard_shape": (10, 100, 1000)}
    array = arrays.create(full / "store", shape=NOISE.shape, dtype="uint8", attributes={}, **grid)
    assert FULL in told(lambda: array.__setitem__(slice(None), NOISE), caplog, monkeypatch)


def test_too_little_memory(caplog, monkeypatch):
    text = told(lambda: np.empty((1 << 40, 1 << 20), np.uint8).fill(1), caplog, monkeypatch)
    assert "not enough memory (" in text
    assert "choose smaller blocks or crops" in text


def test_a_defect_is_told_in_one_line_with_its_places(caplog, monkeypatch):
    text = told(lambda: manifest.replace(Path("a"), lambda _path: json.loads("{")), caplog, monkeypatch)
    (line,) = (line for line in text.splitlines() if "ERROR" in line)
    assert "unexpected JSONDecodeError: Expecting property name" in line
    assert "while writing a" in line
    assert "cli.py:" in line
    assert "replace > decoder.py:" in line
    assert "bad input" not in line  # it may be tried again


def test_bad_input_keeps_its_lines(caplog, monkeypatch):
    assert "bad input: a:\n  b" in told(raiser(InputError("a:\n  b")), caplog, monkeypatch)


def run(*words: str, shell: str = "", **environment: str) -> subprocess.CompletedProcess:
    command = f"{sys.executable} -m tokenunify {' '.join(words)} {shell}"
    return subprocess.run(["bash", "-c", command], capture_output=True, env={**os.environ, **environment}, check=False)


@pytest.mark.parametrize("words", [("schema",), ("datasets",), ("download", "--help")])
def test_a_reader_that_stops_early_is_no_error(words: tuple[str, ...], root: Path):
    done = run(*words, shell="| head -c 1; exit ${PIPESTATUS[1]}", PYTHONPATH=str(root))
    assert (done.returncode, len(done.stdout), done.stderr) == (0, 1, b"")


ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
LATIN = {"PYTHONUTF8": "0", "PYTHONIOENCODING": "latin-1"}


@pytest.mark.parametrize("locale", [ASCII, LATIN], ids=["ASCII", "Latin-1"])
def test_tables_and_logs_in_other_locales(locale: dict[str, str], tmp_path: Path):
    """A table has a question mark for what the terminal lacks, and files are UTF-8."""
    source = {"phantom": {"seed": 1, "shape": [10, 48, 64]}}
    volume = {"sources": [source], "voxel_size_nm": [35, 8, 8], "license": "Größe → ω"}
    config = {"volumes": {"v": volume}, "datasets": {}, "models": {}, "segmentations": {}}
    (tmp_path / "my.yaml").write_text(json.dumps(config, ensure_ascii=False), encoding="utf-8")
    done = run("datasets", "--configfile", str(tmp_path / "my.yaml"), **locale)
    assert done.returncode == 0, done.stderr
    assert b"? ?" in done.stdout
    (tmp_path / "my.yaml").write_text("volumes: {ω: 1}", encoding="utf-8")
    done = run("datasets", "--configfile", str(tmp_path / "my.yaml"), **locale)
    assert done.returncode == 1
    assert b"volumes.\\u03c9" in done.stderr
    assert b"Traceback" not in done.stderr
