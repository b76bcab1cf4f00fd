"""Find source files on this machine and identify what is in them."""

import errno
import hashlib
import os
import re
from pathlib import Path

from tokenunify import manifest
from tokenunify.data import regular
from tokenunify.data.sequences import image_files
from tokenunify.errors import InputError

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
"""Errors of this machine, not of the file that is being read."""


def expand(text: str) -> str:
    """Replace `${VARIABLE}` and a leading `~`; InputError names a variable that is not set."""
    for name in re.findall(r"\$\{(\w+)\}", text):
        if name not in os.environ:
            raise InputError(f"{text}: the environment variable {name} is not set; set it to the folder of the data")
    return os.path.expanduser(re.sub(r"\$\{(\w+)\}", lambda match: os.environ[match[1]], text))


def find(text: str, format: str) -> str:
    """Expanded path of a local file, folder or glob of images that exists; InputError says what is missing."""
    path = expand(text)
    if format == "images":
        image_files(path)
    elif not regular.is_file(path) and not os.path.isdir(path):
        raise InputError(f"{path} does not exist; put the file there or correct the path")
    return path


def checksum(path: str | Path, format: str) -> str:
    """SHA-256 of a file; of a folder or glob, over the sorted (name, size, SHA-256) of its files.

    Names count from the folder that all the files have in common: they tell the order of images.
    """
    if regular.is_file(path):
        return manifest.file_sha256(path)
    root = Path(path)
    if format == "images":
        files = image_files(path)
        root = Path(os.path.commonpath([file.parent for file in files]))
        named = [(file.relative_to(root).as_posix(), file) for file in files]
    else:
        named = [(file.relative_to(root).as_posix(), file) for file in root.rglob("*") if regular.is_file(file)]
    entries = sorted((name, file.stat().st_size, manifest.file_sha256(file)) for name, file in named)
    text = "".join(f"{sha256}  {size}  {name}\n" for name, size, sha256 in entries)
    return hashlib.sha256(text.encode()).hexdigest()


def verify(path: str | Path, format: str, expected: str | None) -> str:
    """Checksum of a local source; InputError with both values where another one is expected."""
    found = checksum(path, format)
    if expected is not None and found != expected:
        raise InputError(
            f"{path} is not the expected file and is not used: expected sha256 {expected}, found {found}; "
            "get the right file or correct sha256 in the configuration"
        )
    return found
