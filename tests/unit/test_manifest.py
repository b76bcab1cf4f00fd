"""Manifests are written whole, and only their content is hashed."""

from pathlib import Path

import pytest

from tokenunify.errors import InputError
from tokenunify.store import manifest


def test_run_is_not_hashed(tmp_path: Path):
    hashes = set()
    for seconds in (1, 2):
        manifest.write(tmp_path / "a.json", {"b": [1, 2], "a": "x"}, {"seconds": seconds})
        hashes.add(manifest.content_hash(tmp_path / "a.json"))
    assert len(hashes) == 1
    assert manifest.read(tmp_path / "a.json")["run"]["seconds"] == 2
    assert manifest.digest({"a": "x", "b": [1, 2]}) in hashes
    assert manifest.digest({"a": "x", "b": [2, 1]}) not in hashes


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "a.json"
    manifest.write(path, {"a": 1})

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(manifest.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        manifest.write(path, {"a": 2})
    assert manifest.content(path) == {"a": 1}


def test_missing_and_broken_manifests_are_explained(tmp_path: Path):
    with pytest.raises(InputError, match=r"a\.json does not exist: make it with `snakemake .*a\.json`"):
        manifest.read(tmp_path / "a.json")
    (tmp_path / "a.json").write_text('{"content"')
    with pytest.raises(InputError, match="is not a manifest"):
        manifest.read(tmp_path / "a.json")


def test_the_most_memory_is_remembered_after_it_was_freed(tmp_path: Path):
    before = manifest.peak_mb()
    held = bytearray(b"x") * (before + 50 << 20)
    del held
    manifest.write(tmp_path / "a.json", {})
    assert before + 50 <= manifest.read(tmp_path / "a.json")["run"]["peak_mb"] < 2 * before + 500
