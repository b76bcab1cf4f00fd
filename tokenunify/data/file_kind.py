"""Only files and folders are read: opening a pipe waits for a writer for ever, and a device may never end."""

import os
import stat

from tokenunify.errors import InputError

KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def is_file(path: str | os.PathLike) -> bool:
    """Whether there is a file, not a folder or nothing; InputError for what is neither, behind a link or not."""
    if not os.path.exists(path):
        return False
    if kind := special(path):
        raise InputError(f"{path} is {kind}: expected a file or folder; write its content to a file and give that")
    return os.path.isfile(path)


def special(path: str | os.PathLike) -> str | None:
    """What it is that is there and neither a file nor a folder; None for files and folders."""
    return KINDS.get(stat.S_IFMT(os.stat(path).st_mode))
