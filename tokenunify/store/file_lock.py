"""A file's lock, for what one process does at a time."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from tokenunify.errors import InputError

NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)
"""Error numbers of a file system without locks."""
ADVICE = "mount it with locks (flock), or choose a folder of another file system with --directory"


@contextmanager
def alone(path: Path, seconds: float = -1) -> Iterator[None]:
    """Hold the lock of a file; wait for it for so long, or, by default, until it is free.

    Raises InputError where the file system has no locks, or this one does not become free in time.
    """
    lock = FileLock(path, timeout=seconds)
    try:
        lock.acquire()
    except Timeout:
        raise InputError(
            f"{path} was locked for {seconds} s: end the process that holds it, or, if there is none, the locks of its "
            f"file system do not work: {ADVICE}"
        ) from None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        raise InputError(
            f"{path} cannot be locked ({error.strerror}), its file system has no locks: {ADVICE}"
        ) from None
    try:
        yield
    finally:
        lock.release()
