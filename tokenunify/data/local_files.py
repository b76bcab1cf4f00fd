"""Find source files on this machine and identify what is in them."""

import errno
import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from tokenunify.data import file_kind
from tokenunify.data.formats.image_files import image_files
from tokenunify.errors import InputError
from tokenunify.store import manifest

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
    elif not file_kind.is_file(path) and not os.path.isdir(path):
        raise InputError(f"{path} does not exist; put the file there or correct the path")
    return path


def checksum(path: str | Path, format: str) -> str:
    """SHA-256 of a file; of a folder or glob, over the sorted (name, size, SHA-256) of its files.

    Names count from the folder that all the files have in common: they tell the order of images. Raises InputError for
    what lies outside the folder and is only linked from it.
    """
    if file_kind.is_file(path):
        return manifest.file_sha256(path)
    entries = sorted((name, file.stat().st_size, manifest.file_sha256(file)) for name, file in _named(path, format))
    text = "".join(f"{sha256}  {size}  {name}\n" for name, size, sha256 in entries)
    return hashlib.sha256(text.encode()).hexdigest()


def _named(path: str | Path, format: str) -> list[tuple[str, Path]]:
    """Files of a folder or glob, each with the name under which its checksum counts.

    Raises InputError for what lies outside the folder and is only linked from it.
    """
    if format != "images":
        return list(files(Path(path)))
    found = image_files(path)
    root = Path(os.path.commonpath([file.parent for file in found]))
    inside = root.resolve()
    for file in found:
        _check_link(root, inside, file)
    return [(file.relative_to(root).as_posix(), file) for file in found]


def state(path: str | Path, format: str) -> str:
    """Size and time of change of a file; of a folder or glob, a digest of those of its files."""
    if file_kind.is_file(path):
        return _size_and_time(Path(path))
    entries = [f"{name}  {_size_and_time(file)}" for name, file in _named(path, format)]
    return manifest.digest(sorted(entries))


def _size_and_time(file: Path) -> str:
    found = file.stat()
    return f"{found.st_size} {found.st_mtime_ns}"


def _check_link(root: Path, inside: Path, path: Path) -> Path:
    """Where the path leads to, which must be in the folder."""
    try:
        target = path.resolve()
    except RuntimeError:
        raise InputError(f"{path} is a link that leads to itself; remove it, or put the file in its place") from None
    if not target.is_relative_to(inside):
        raise InputError(
            f"{path} is a link to {target}, outside {root}: what is read must be inside the folder, as its checksum "
            "covers nothing else; copy the file there, or give the folder that holds both"
        )
    return target


def files(root: Path) -> Iterator[tuple[str, Path]]:
    """Name (with /, from the folder on) and path of each file of a folder; links that stay inside it are followed.

    Raises InputError for a link that leads outside, nowhere or to a folder around it, and for what is no file.
    """
    inside = root.resolve()
    yield from _files(root, inside, "", (inside,))


def check_links(root: Path | None) -> None:
    """Refuse a folder of this machine with links that `files` refuses."""
    if root is not None and root.is_dir():
        for _ in files(root):
            pass


def _files(root: Path, inside: Path, name: str, around: tuple[Path, ...]) -> Iterator[tuple[str, Path]]:
    folder = root / name
    with os.scandir(folder) as entries:
        for entry in entries:
            path, inner = folder / entry.name, f"{name}/{entry.name}".lstrip("/")
            target = _check_link(root, inside, path) if entry.is_symlink() else around[-1] / entry.name
            if target in around:
                raise InputError(f"{path} is a link to {target}, the folder it is in; remove the link")
            if entry.is_dir():
                yield from _files(root, inside, inner, (*around, target))
            elif entry.is_file():
                yield inner, path
            else:
                try:
                    kind = file_kind.special(path) or "no file"
                except FileNotFoundError:
                    kind = "a link to a file that is not there"
                raise InputError(f"{path} is {kind}; replace it by the file, or remove it")


def verify(path: str | Path, format: str, expected: str | None) -> str:
    """Checksum of a local source; InputError with both values where another one is expected."""
    found = checksum(path, format)
    if expected is not None and found != expected:
        raise InputError(
            f"{path} is not the expected file and is not used: expected sha256 {expected}, found {found}; "
            "get the right file or correct sha256 in the configuration"
        )
    return found
