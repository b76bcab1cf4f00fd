"""`tokenunify clean`: stale stores go, whatever is referred to, unfinished or in use stays."""

import json
import os
import shutil
import time
from pathlib import Path

import psutil
import pytest

from tokenunify import cli
from tokenunify.errors import InputError
from tokenunify.store import blockwise, clean, manifest

HASHES = [letter * 16 for letter in "abcd"]


def age(path: Path, seconds: float) -> None:
    for part in (*path.rglob("*"), path):
        os.utime(part, (time.time() - seconds,) * 2, follow_symlinks=False)


def store(folder: Path, name: str, *, seconds: float = 5000) -> Path:
    """A store of 1000 bytes that was last touched so long ago."""
    (folder / name / "ledger").mkdir(parents=True)
    (folder / name / "segmentation.zarr" / "c").mkdir(parents=True)
    (folder / name / "segmentation.zarr" / "c" / "0").write_bytes(bytes(1000))
    age(folder / name, seconds)
    return folder / name


def kept(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.fixture
def predict(tmp_path: Path) -> Path:
    folder = tmp_path / "results" / "v" / "m" / "seed0" / "predict"
    for name in HASHES[:2]:
        store(folder, name)
    manifest.write(folder / "prepared.json", {"store": f"{HASHES[1]}/affinities.zarr"})
    return folder


def test_a_store_that_no_manifest_names_is_removed(tmp_path, predict, caplog):
    caplog.set_level("INFO")
    clean.run([tmp_path], dry_run=False)
    assert kept(predict) == {HASHES[1], "prepared.json"}
    assert (predict / HASHES[1] / "segmentation.zarr" / "c" / "0").exists()
    assert f"1.0 kB  {predict / HASHES[0]}" in caplog.text
    assert "1.0 kB  removed" in caplog.text


def test_a_dry_run_only_lists(tmp_path, predict, caplog):
    caplog.set_level("INFO")
    arguments = cli.parser().parse_args(["clean", str(tmp_path), "--dry-run"])
    cli.run(arguments)
    assert kept(predict) == {*HASHES[:2], "prepared.json"}
    assert str(predict / HASHES[0]) in caplog.text
    assert "would be removed" in caplog.text


def test_nothing_is_left_to_remove_the_second_time(tmp_path, predict):
    clean.run([tmp_path], dry_run=False)
    assert list(clean.stale(tmp_path)) == []


@pytest.mark.parametrize("change", ["no manifest", "newer than the manifest"])
def test_unfinished_work_stays(tmp_path, predict, change):
    if change == "no manifest":
        (predict / "prepared.json").unlink()
    else:
        age(predict / HASHES[0], -5)
    clean.run([tmp_path], dry_run=False)
    assert set(HASHES[:2]) <= kept(predict)


def test_a_store_in_use_stays(tmp_path, predict, monkeypatch):
    locks = predict / HASHES[0] / "locks"
    process = psutil.Process()
    owner = {"host": blockwise.socket.gethostname(), "pid": process.pid, "created": process.create_time()}
    manifest.write_text(locks / "0-4.json", json.dumps({**owner, "start": 0, "stop": 4}))
    age(predict / HASHES[0], 5000)
    assert list(clean.stale(tmp_path)) == []
    assert not clean.remove(predict / HASHES[0])
    manifest.write_text(locks / "0-4.json", json.dumps({**owner, "created": 1, "start": 0, "stop": 4}))
    age(predict / HASHES[0], 5000)
    assert list(clean.stale(tmp_path)) == [predict / HASHES[0]]


def test_trainings_that_the_weights_do_not_come_from_are_removed(tmp_path):
    folder = tmp_path / "models" / "m" / "seed1"
    for name in HASHES[:3]:
        (folder / "training" / name).mkdir(parents=True)
        (folder / "training" / name / "last.ckpt").write_bytes(bytes(10))
        age(folder / "training" / name, 5000)
    clean.run([tmp_path], dry_run=False)
    assert kept(folder / "training") == set(HASHES[:3])  # no weights yet: any of them may be continued
    manifest.write(folder / "weights.json", {"weights": ""}, {"training": f"training/{HASHES[2]}"})
    clean.run([tmp_path], dry_run=False)
    assert kept(folder / "training") == {HASHES[2]}


def test_left_overs_of_ingest_go_when_the_volume_is_there(tmp_path):
    folder = tmp_path / "data" / "volumes"
    for volume in ("made", "unmade"):
        for name in (f".{volume}.{HASHES[0]}.partial.zarr", f".{volume}.{HASHES[0]}.progress"):
            (folder / name).mkdir(parents=True)
            age(folder / name, 50)
    (folder / "made.zarr" / HASHES[0] / "blocks").mkdir(parents=True)
    manifest.write(folder / "made.json", {})
    clean.run([tmp_path], dry_run=False)
    left = {f".unmade.{HASHES[0]}.partial.zarr", f".unmade.{HASHES[0]}.progress"}
    assert kept(folder) == {"made.json", "made.zarr", *left}
    assert kept(folder / "made.zarr") == {HASHES[0]}


def test_temporary_files_of_ended_processes_go(tmp_path, predict):
    old, new, other = (predict / name for name in (".prepared.json.77", ".prepared.json.78", ".notes.79"))
    for path in (old, new, other):
        path.write_text("x")
    age(old, 5000)
    age(other, 5000)
    clean.run([tmp_path], dry_run=False)
    assert kept(predict) == {HASHES[1], "prepared.json", new.name, other.name}


def test_folders_that_only_look_like_stores_and_links_stay(tmp_path, predict):
    (predict / HASHES[2] / "seed0").mkdir(parents=True)
    shutil.move(predict / HASHES[0], tmp_path / "elsewhere")
    (predict / HASHES[0]).symlink_to(tmp_path / "elsewhere")
    age(predict / HASHES[2], 5000)
    clean.run([tmp_path], dry_run=False)
    assert set(HASHES[:3]) <= kept(predict)


def test_the_stores_of_finished_stages_are_all_named(tmp_path, workspace, labels):
    """Every stage with a store, run with two settings: the first one's stores go, the second one's stay."""
    volume = workspace.volume("test", labels)
    for block_shape in ((2, 22, 30), (4, 22, 60)):
        workspace.block_shape = block_shape
        segmented = workspace.segment(workspace.perfect(volume, labels))
        workspace.evaluate(segmented, volume)
    before = {path for path in tmp_path.rglob("*") if clean.STORE.fullmatch(path.name)}
    clean.run([tmp_path], dry_run=False)
    after = {path for path in tmp_path.rglob("*") if clean.STORE.fullmatch(path.name)}
    assert {path.parent for path in after} == {path.parent for path in before}
    assert len(after) == 5  # affinities, fragments, rag, segmentation, tables of evaluate
    assert len(before) == 10


def test_what_is_no_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match="none is not a folder"):
        clean.run([tmp_path / "none"], dry_run=True)
