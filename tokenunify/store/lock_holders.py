"""Who holds the blocks of a lock file, and whether that process lives.

The system tells whether a process lives that this one can see. Of others, on another host or in another container,
only the lock file tells: its owner renews it. Its age says little, as clocks differ; so it is watched for some time.
"""

import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import psutil
from pydantic import Field, ValidationError

from tokenunify.store.forms import Form

logger = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 10
"""Time between two renewals of a lock by its owner."""
STALE_SECONDS = 120
"""A lock that was watched for so long, and not renewed, has no living owner."""
OLD_SECONDS = 86400
"""A lock that is so old has no living owner, whatever the clocks."""
SAME_START_SECONDS = 2
"""Two readings of one process's start differ by less: the system rounds them."""


class Holder(Form):
    """a lock"""

    host: str
    pid: Annotated[int, Field(gt=0, lt=2**31)]
    created: float
    booted: float | None = None
    """When the machine started, by the same clock as `created`: their difference stays when a clock is set."""
    machine: str | None = None
    start: int
    stop: int


UNKNOWN = Holder(host="an unknown host", pid=1, created=0, machine="", start=0, stop=2**63)
"""The holder of a lock file that cannot be read: it holds all blocks."""


def own(claimed: range) -> dict:
    """The lock of this process on these blocks, as it is written."""
    known = {"host": socket.gethostname(), "machine": _machine(), "pid": os.getpid()}
    started = {"created": psutil.Process().create_time(), "booted": psutil.boot_time()}
    return {**known, **started, "start": claimed.start, "stop": claimed.stop}


def read(path: Path) -> Holder | None:
    """Who holds a lock file; None where it has just been removed."""
    try:
        return Holder.model_validate_json(path.read_bytes(), strict=True)
    except FileNotFoundError:
        return None
    except (ValidationError, OSError):
        return UNKNOWN


class Watch:
    """The lock files of others: when each was last seen to change."""

    def __init__(self) -> None:
        self.seen: dict[Path, tuple[int, float]] = {}

    def is_alive(self, path: Path, holder: Holder) -> bool:
        """Whether the holder lives, as far as is known now."""
        # Locks of earlier versions name the host only.
        is_near = holder.host == socket.gethostname() if holder.machine is None else holder.machine == _machine()
        if is_near:
            try:
                process = psutil.Process(holder.pid)
                booted = psutil.boot_time()
                started = process.create_time() - booted
                same = abs(started - (holder.created - (holder.booted or booted))) < SAME_START_SECONDS
                return same and process.status() != psutil.STATUS_ZOMBIE
            except psutil.NoSuchProcess:
                return False
        try:
            changed = path.stat().st_mtime_ns
        except FileNotFoundError:
            return False
        last, since = self.seen.get(path, (None, 0.0))
        if changed != last:
            last, since = self.seen[path] = changed, time.monotonic()
        return time.monotonic() - since < STALE_SECONDS and time.time() - changed / 1e9 < OLD_SECONDS

    def holders(self, folder: Path) -> Iterator[tuple[Path, Holder, bool]]:
        """The lock files in a folder, each with its holder and whether that lives, as far as is known now."""
        for path in sorted(folder.glob("*.json")):
            if holder := read(path):  # else its owner has just ended
                yield path, holder, self.is_alive(path, holder)


def renew(path: Path, ended: threading.Event, lost: threading.Event) -> None:
    """Renew an own lock until it has ended; set `lost` when its file is gone: another process has taken over."""
    while not (ended.wait(HEARTBEAT_SECONDS) or lost.is_set()):
        try:
            os.utime(path)
        except FileNotFoundError:
            lost.set()
        except OSError as error:
            logger.warning("%s cannot be renewed now (%s)", path, error)  # a network file system may be slow


def _machine() -> str:
    """The running kernel and the part of its processes that are seen: containers may share a host's name."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()
