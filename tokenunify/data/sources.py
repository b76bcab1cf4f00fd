"""Find source files on this machine and identify what is in them."""

import errno
import glob
import hashlib
import os
import re
from pathlib import Path

from tokenunify import manifest
from tokenunify.errors import InputError

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
"""Errors of this machine, not of the file that is being read."""
IMAGE_SUFFIXES = (".png", ".tif", ".tiff", ".jpg", ".jpeg")


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
    elif not os.path.exists(path):
        raise InputError(f"{path} does not exist; put the file there or correct the path")
    return path


def image_files(path: str | Path) -> list[Path]:
    """Images of a folder, or of a glob pattern, in natural order (2 before 10)."""
    found = Path(path).iterdir() if os.path.isdir(path) else map(Path, glob.glob(str(path)))
    files = sorted((f for f in found if f.suffix.lower() in IMAGE_SUFFIXES and f.name[0] != "."), key=natural)
    if not files:
        raise InputError(
            f"{path} has no images ({', '.join(IMAGE_SUFFIXES)}); give a folder or a pattern such as a/*.png"
        )
    return files


def natural(path: Path) -> list:
    """Sort key that orders numbers inside a name by value."""
    return [int(word) if word.isdigit() else word for word in re.split(r"(\d+)", path.name)]


def checksum(path: str | Path, format: str) -> str:
    """SHA-256 of a file; of a folder or glob, over the sorted (name, size, SHA-256) of its files."""
    if os.path.isfile(path):
        return manifest.file_sha256(path)
    entries = sorted((name, file.stat().st_size, manifest.file_sha256(file)) for name, file in _named(path, format))
    text = "".join(f"{sha256}  {size}  {name}\n" for name, size, sha256 in entries)
    return hashlib.sha256(text.encode()).hexdigest()


def _named(path: str | Path, format: str) -> list[tuple[str, Path]]:
    """Files of a folder or glob, each with the name under which its checksum counts."""
    if format == "images":
        return [(file.name, file) for file in image_files(path)]
    root = Path(path)
    return [(file.relative_to(root).as_posix(), file) for file in root.rglob("*") if file.is_file()]


def state(path: str | Path, format: str) -> str:
    """Size and time of change of a file; of a folder or glob, a digest of those of its files."""
    if os.path.isfile(path):
        return _size_and_time(Path(path))
    entries = [f"{name}  {_size_and_time(file)}" for name, file in _named(path, format)]
    return manifest.digest(sorted(entries))


def _size_and_time(file: Path) -> str:
    found = file.stat()
    return f"{found.st_size} {found.st_mtime_ns}"


def verify(path: str | Path, format: str, expected: str | None) -> str:
    """Checksum of a local source; InputError with both values where another one is expected."""
    found = checksum(path, format)
    if expected is not None and found != expected:
        raise InputError(
            f"{path} is not the expected file and is not used: expected sha256 {expected}, found {found}; "
            "get the right file or correct sha256 in the configuration"
        )
    return found
