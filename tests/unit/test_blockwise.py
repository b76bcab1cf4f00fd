"""Ledger, parts and locks."""

import json
import multiprocessing
import os
import socket
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from tokenunify.errors import InputError
from tokenunify.geometry import Blocks, Roi
from tokenunify.store import arrays, blockwise, lock_holders, manifest

BLOCKS = Blocks((5, 12, 9), (2, 4, 8))


def test_each_block_once_over_parts(tmp_path: Path):
    seen: list[int] = []
    runs = [
        blockwise.run_part(tmp_path, BLOCKS, lambda i, _: seen.append(i), part=part, num_parts=3) for part in range(3)
    ]
    assert seen == list(range(len(BLOCKS)))
    assert sum(run["voxels"] for run in runs) == 5 * 12 * 9
    assert sum(run["blocks"] for run in runs) == len(BLOCKS)


def test_resumes_at_the_next_block_with_other_parts(tmp_path: Path):
    seen: list[int] = []

    def dies_at_four(index: int, _: Roi) -> None:
        if index == 4:
            raise KeyboardInterrupt
        seen.append(index)

    with pytest.raises(KeyboardInterrupt):
        blockwise.run_part(tmp_path, BLOCKS, dies_at_four)
    (ledger,) = (tmp_path / "ledger").iterdir()
    with open(ledger, "a") as file:
        file.write('{"block": 4, "vox')  # the line being written when the process was killed
    run = blockwise.run_part(tmp_path, BLOCKS, lambda i, _: seen.append(i), part=0, num_parts=2)
    blockwise.run_part(tmp_path, BLOCKS, lambda i, _: seen.append(i), part=1, num_parts=2)
    assert seen == list(range(len(BLOCKS)))
    assert run["blocks_computed_now"] == len(BLOCKS.part(0, 2)) - 4
    assert blockwise.finished_blocks(tmp_path) == set(range(len(BLOCKS)))


@pytest.mark.parametrize("lose", [Path.unlink, lambda path: path.write_bytes(b"")])
def test_a_vanished_or_empty_shard_is_written_again(tmp_path: Path, lose):
    array = arrays.create(
        tmp_path / "a.zarr",
        shape=BLOCKS.volume_shape,
        dtype="uint8",
        chunk_shape=(2, 4, 4),
        shard_shape=(2, 4, 8),
        attributes={},
    )

    def write(index: int, roi: Roi) -> None:
        array[roi.slices] = np.full(roi.shape, index, np.uint8)

    blockwise.run_part(tmp_path, BLOCKS, write, written=array)
    lose(tmp_path / "a.zarr/c/1/2/0")
    with pytest.raises(InputError, match=r"lacks 1 of its shard files, the first is c/1/2/0; mend it"):
        arrays.open_complete(tmp_path / "a.zarr", "mend it")
    seen: list[int] = []
    blockwise.run_part(tmp_path, BLOCKS, lambda i, roi: seen.append(i) or write(i, roi), written=array)
    assert [BLOCKS.roi(i).offset for i in seen] == [(2, 8, 0)]


HOLLOW = [
    b"{}",
    b"[3]",
    b'{"block": "3", "voxels": 64, "seconds": 1.0}',
    b'{"block": 99, "voxels": 64, "seconds": 1.0}',
    b'{"block": -1, "voxels": 64, "seconds": 1.0}',
    b'{"block": 3, "voxels": 63, "seconds": 1.0}',
    b'{"block": 3, "voxels": 64}',
    b'{"block": 3, "voxels": 64, "seconds": NaN}',
    b'{"block": 3, "voxels": 64, "seconds": 1.0, "shards": 5}',
    b'{"block": ' + b"1" * 5000 + b"}",
    b"[" * 100_000,
    b"\xff\xfe{",
]


@pytest.mark.parametrize("line", HOLLOW)
def test_lines_of_a_ledger_that_are_none_of_its_blocks_are_passed_over(tmp_path: Path, line: bytes):
    assert BLOCKS.roi(3).num_voxels == 8
    assert BLOCKS.roi(2).num_voxels == 64
    (tmp_path / "ledger").mkdir()
    known = b'{"block": 2, "voxels": 64, "seconds": 1.0}'
    (tmp_path / "ledger" / "part0of2.jsonl").write_bytes(line.replace(b"64", b"8") + b"\n" + known + b"\n" + line)
    seen: list[int] = []
    run = blockwise.run_part(tmp_path, BLOCKS, lambda i, _: seen.append(i))
    assert seen == [i for i in range(len(BLOCKS)) if i != 2]
    assert (run["blocks"], run["voxels"]) == (len(BLOCKS), 5 * 12 * 9)


def test_a_ledger_of_other_parts_counts_and_a_folder_among_ledgers_does_not(tmp_path: Path):
    for part in range(3):
        blockwise.run_part(tmp_path, BLOCKS, lambda *_: None, part=part, num_parts=5)
    (tmp_path / "ledger" / "x.jsonl").mkdir()
    seen: list[int] = []
    blockwise.run_part(tmp_path, BLOCKS, lambda i, _: seen.append(i), part=1, num_parts=2)
    assert seen == [i for i in BLOCKS.part(1, 2) if i >= BLOCKS.part(2, 5).stop]


def test_one_block_is_written_while_the_next_is_processed(tmp_path: Path):
    """A block's record comes after its write, and the block after the next is not begun before."""
    begun = [threading.Event() for _ in range(len(BLOCKS) + 2)]
    written: list[int] = []

    def process(index: int, _: Roi) -> int:
        begun[index].set()
        return index

    def write(_: Roi, index: int) -> None:
        assert index + 1 == len(BLOCKS) or begun[index + 1].wait(10)
        assert not begun[index + 2].is_set()
        assert index not in blockwise.finished_blocks(tmp_path)
        written.append(index)

    blockwise.run_part(tmp_path, BLOCKS, process, write=write)
    assert written == list(range(len(BLOCKS)))
    assert blockwise.finished_blocks(tmp_path) == set(range(len(BLOCKS)))


@pytest.mark.parametrize("failing", [1, len(BLOCKS) - 1])
def test_an_error_of_the_writer_stops_the_part(tmp_path: Path, failing: int):
    seen: list[int] = []

    def write(roi: Roi, index: int) -> None:
        if index == failing:
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        blockwise.run_part(tmp_path, BLOCKS, lambda i, _: seen.append(i) or i, write=write)
    assert max(seen) <= failing + 1
    assert blockwise.finished_blocks(tmp_path) == set(range(failing))


def test_seconds_add_up_to_the_time_that_passed(tmp_path: Path):
    started = time.perf_counter()
    run = blockwise.run_part(
        tmp_path, BLOCKS, lambda i, _: time.sleep(0.02), write=lambda *_: time.sleep(0.03), num_parts=2
    )
    passed = time.perf_counter() - started
    assert 0.03 * run["blocks"] <= run["seconds"] <= passed


def test_a_flipped_byte_is_named(tmp_path: Path):
    path = tmp_path / "a.zarr"
    array = arrays.create(
        path, shape=(4, 8, 8), dtype="uint8", chunk_shape=(2, 4, 4), shard_shape=(4, 8, 8), attributes={}
    )
    array[:] = np.random.default_rng(0).integers(0, 255, array.shape, np.uint8)
    shard = path / "c/0/0/0"
    damaged = bytearray(shard.read_bytes())
    damaged[10] ^= 1
    shard.write_bytes(damaged)
    with pytest.raises(InputError, match=r"a\.zarr is damaged .*; run it again"):
        arrays.Store(path, "run it again")[:]


def _hold(folder: Path, started, released) -> None:
    with blockwise.lock(folder, range(0, 4)):
        started.set()
        released.wait(60)
        (folder.parent / "done").touch()


def test_waits_for_a_living_holder(tmp_path: Path):
    started, released = multiprocessing.Event(), multiprocessing.Event()
    holder = multiprocessing.Process(target=_hold, args=(tmp_path / "locks", started, released))
    holder.start()
    started.wait()
    with blockwise.lock(tmp_path / "locks", range(4, 8)):
        assert not (tmp_path / "done").exists(), "other blocks are free"
    threading.Timer(0.5, released.set).start()
    with blockwise.lock(tmp_path / "locks", range(3, 5)):
        assert (tmp_path / "done").exists()
    holder.join()
    assert list((tmp_path / "locks").glob("*.json")) == []


@pytest.mark.parametrize("host", [socket.gethostname(), "another-node"])
def test_a_dead_holder_is_forgotten(tmp_path: Path, host: str):
    folder = tmp_path / "locks"
    folder.mkdir()
    stale = folder / "0-4.old.json"
    stale.write_text(json.dumps({"host": host, "pid": 2**22 - 1, "created": 1.0, "start": 0, "stop": 4}))
    os.utime(stale, (1, 1))
    assert not psutil.pid_exists(2**22 - 1)
    with blockwise.lock(folder, range(0, 4)):
        assert not stale.exists()


def test_a_living_holder_on_another_host_is_waited_for(tmp_path: Path):
    folder = tmp_path / "locks"
    folder.mkdir()
    other = folder / "0-4.other.json"
    other.write_text(json.dumps({"host": "another-node", "pid": 1, "created": 1.0, "start": 0, "stop": 4}))
    threading.Timer(1.0, other.unlink).start()
    with blockwise.lock(folder, range(3, 6)):
        assert not other.exists()


def test_the_heartbeat_renews_the_lock_and_tells_when_it_is_lost(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(lock_holders, "HEARTBEAT_SECONDS", 0.05)
    with blockwise.lock(tmp_path, range(2)) as lost:
        (own,) = tmp_path.glob("*.json")
        os.utime(own, (1, 1))
        _until(lambda: own.stat().st_mtime > 1)
        assert not lost.is_set()
        own.unlink()
        assert lost.wait(10)


def _until(condition) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_part_that_lost_its_blocks_stops(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(lock_holders, "HEARTBEAT_SECONDS", 0.01)
    seen: list[int] = []

    def loses_the_lock(index: int, _: Roi) -> None:
        seen.append(index)
        for path in (tmp_path / "locks").glob("*.json"):
            path.unlink()
        time.sleep(0.5)

    with pytest.raises(InputError, match="another process took over"):
        blockwise.run_part(tmp_path, BLOCKS, loses_the_lock)
    assert seen == [0]


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    """The empty store of a stage whose one input is given.json."""
    manifest.write(tmp_path / "given.json", {"some": "input"})
    shape = {"shape": BLOCKS.volume_shape, "chunk_shape": (1, 4, 4), "shard_shape": (2, 4, 8)}
    arrays.create(tmp_path / "store/a.zarr", dtype="uint8", attributes={}, **shape)
    content = {"store": "store/a.zarr", "shape": BLOCKS.volume_shape, "block_shape": BLOCKS.block_shape}
    inputs = blockwise.input_hashes([tmp_path / "given.json"])
    manifest.write(tmp_path / "prepared.json", {**content, "config": {"a": 1}, "inputs": inputs})
    return tmp_path / "prepared.json"


def test_zeros_are_written_so_that_a_missing_file_is_damage(prepared: Path):
    given = {"part": (0, 1), "plain": {"a": 1}, "inputs": [prepared.with_name("given.json")]}
    blockwise.fill(prepared, prepared.with_name("part.json"), lambda _, roi: np.zeros(roi.shape, np.uint8), **given)
    assert not arrays.open_prepared(prepared)[:].any()


@pytest.mark.parametrize("other", ["plain", "inputs"])
def test_a_store_of_other_settings_or_inputs_is_not_filled(prepared: Path, other: str):
    manifest.write(prepared.with_name("other.json"), {"another": "input"})
    given = {"plain": {"a": 1}, "inputs": [prepared.with_name("given.json")]}
    given |= {"plain": {"plain": {"a": 2}}, "inputs": {"inputs": [prepared.with_name("other.json")]}}[other]
    with pytest.raises(InputError, match=r"prepared\.json was made for other settings or inputs"):
        blockwise.fill(
            prepared, prepared.with_name("part.json"), lambda *_: pytest.fail("filled"), part=(0, 1), **given
        )


@pytest.mark.parametrize("text", ["4/4", "-1/2", "1", "a/b"])
def test_bad_part(text: str):
    with pytest.raises(InputError, match="--part must be i/n"):
        blockwise.parse_part(text)
