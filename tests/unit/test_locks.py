"""Locks of blocks: on file systems without locks, over hosts whose clocks differ, and in containers of one name."""

import errno
import fcntl
import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from filelock import FileLock

from tokenunify.errors import InputError
from tokenunify.store import blockwise, file_lock, lock_holders

HOUR = 3600


@pytest.fixture(autouse=True)
def soon_stale(monkeypatch):
    monkeypatch.setattr(lock_holders, "STALE_SECONDS", 1.0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "locks").mkdir()
    return tmp_path / "locks"


def write(folder: Path, age: float = 0, **changes) -> Path:
    """The lock file of a process on another host, with a clock that is `age` behind."""
    path = folder / "0-4.other.json"
    known = {"host": "another-node", "pid": 7, "created": 1.0, "booted": 0.5, "machine": "other", "start": 0, "stop": 4}
    path.write_text(json.dumps({**known, **changes}))
    os.utime(path, (time.time() - age,) * 2)
    return path


@pytest.mark.parametrize("code", [errno.ENOTSUP, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_named(folder: Path, monkeypatch, code: int):
    def flock(_descriptor: int, _operation: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)
    told = pytest.raises(InputError, match=rf"{folder}/\.claim cannot be locked .* mount it .* or choose a folder")
    with told, blockwise.lock(folder, range(4)):
        pytest.fail("locked")


def test_locks_that_never_become_free_are_named(folder: Path, monkeypatch):
    monkeypatch.setattr(blockwise, "CLAIM_SECONDS", 0.2)
    told = pytest.raises(InputError, match=r"\.claim was locked for 0\.2 s: end the process")
    with FileLock(folder / ".claim"), told, blockwise.lock(folder, range(4)):
        pytest.fail("locked")


def test_an_error_inside_a_lock_is_not_taken_for_one_of_it(folder: Path):
    with pytest.raises(OSError, match="none left"), file_lock.alone(folder / "a"):
        raise OSError(errno.ENOLCK, "none left")


@pytest.mark.parametrize("age", [-HOUR, 10 * 60, 3 * HOUR])
def test_clocks_that_differ_do_not_displace_a_living_holder(folder: Path, age: float):
    """Its lock is renewed all the time, by a clock that is behind or ahead."""
    path, ended = write(folder, age), threading.Event()

    def renew() -> None:
        while not ended.wait(0.3):
            os.utime(path, (time.time() - age,) * 2)
        path.unlink()

    renewing = threading.Thread(target=renew)
    renewing.start()
    threading.Timer(2, ended.set).start()
    with blockwise.lock(folder, range(3, 6)):
        assert ended.is_set()
    renewing.join()


@pytest.mark.parametrize("age", [-HOUR, 0, 3 * HOUR])
def test_a_lock_that_nobody_renews_is_dropped(folder: Path, age: float):
    path, started = write(folder, age), time.monotonic()
    with blockwise.lock(folder, range(3, 6)):
        assert not path.exists()
    assert time.monotonic() - started >= lock_holders.STALE_SECONDS


@pytest.mark.parametrize("name", [socket.gethostname(), "another-node"])
def test_a_process_of_another_container_is_not_looked_for_here(folder: Path, name: str):
    """There is no process 2^22 - 1 here; in a container of the same name there may be one."""
    assert not psutil.pid_exists(2**22 - 1)
    path, started = write(folder, host=name, pid=2**22 - 1), time.monotonic()
    threading.Timer(0.8, path.unlink).start()
    with blockwise.lock(folder, range(4)):
        assert time.monotonic() - started >= 0.8


def test_the_clock_may_be_set_while_a_process_runs(folder: Path, monkeypatch):
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        known = lock_holders.own(range(4)) | {"pid": process.pid, "created": psutil.Process(process.pid).create_time()}
        (folder / "0-4.json").write_text(json.dumps(known))
        boot_time = psutil.boot_time()
        monkeypatch.setattr(psutil, "boot_time", lambda: boot_time + 600)
        monkeypatch.setattr(psutil._pslinux, "boot_time", lambda: boot_time + 600)
        assert blockwise.in_use(folder)
        process.communicate(b"\n")
        assert not blockwise.in_use(folder)


def test_a_process_with_the_number_of_a_dead_one_is_another(folder: Path):
    (folder / "0-4.json").write_text(json.dumps(lock_holders.own(range(4)) | {"created": 5.0, "booted": 1.0}))
    assert not blockwise.in_use(folder)


@pytest.mark.parametrize("text", [b"", b"\xff\xfe", b'{"host": "x"}', b'{"pid": ' + b"1" * 5000 + b"}"])
def test_a_lock_file_that_cannot_be_read_holds_all_blocks_for_a_while(folder: Path, text: bytes):
    path = folder / "damaged.json"
    path.write_bytes(text)
    assert blockwise.in_use(folder)
    started = time.monotonic()
    with blockwise.lock(folder, range(90, 95)):
        assert not path.exists()
    assert time.monotonic() - started >= lock_holders.STALE_SECONDS


def test_two_locks_of_one_process_have_files_of_their_own(folder: Path):
    with blockwise.lock(folder, range(2)), blockwise.lock(folder, range(2, 4)):
        assert len(list(folder.glob("*.json"))) == 2
    assert not list(folder.glob("*.json"))
