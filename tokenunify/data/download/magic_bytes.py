"""Whether what has arrived can be what was asked for, by its first bytes."""

import os
from pathlib import Path

from tokenunify.errors import InputError

GZIP = b"\x1f\x8b"
PACKED = (GZIP, b"BZh", b"\xfd7zXZ\x00")
HDF5 = b"\x89HDF\r\n\x1a\n"
MAGIC = {
    "hdf5": (HDF5, GZIP),
    "neuroproof": (HDF5, GZIP),
    "tiff": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", GZIP),
}
"""What a file of the format begins with; other formats are judged when they are read."""
PAGE = (b"<!doctype", b"<html", b"<?xml")
"""How a web page or a message of a server in place of the file begins."""
USER_BLOCK_BYTES = 2048
"""An HDF5 file may begin with so much of something else."""


def accept(arrived: Path, target: Path, address: str, format: str) -> None:
    """Move what has arrived from `address` to `target`; what cannot be of the format is removed, with an InputError."""
    try:
        check(arrived, address=address, format=format)
    except InputError:
        arrived.unlink()
        raise
    os.replace(arrived, target)


def check(path: Path, *, address: str, format: str) -> None:
    """Raise InputError, with what was found, for a file that cannot be of the format."""
    with open(path, "rb") as file:
        head = file.read(USER_BLOCK_BYTES)
    if not head:
        raise InputError(f"{address} gave an empty file; check the address, then run snakemake again to ask once more")
    if head.lstrip().lower().startswith(PAGE):
        raise InputError(
            f"{address} gave a web page, not a file of format {format}: it begins with {_shown(head)}; open the "
            "address in a browser to see what the server says, and correct it"
        )
    magic = MAGIC.get(format)
    if magic and not head.startswith(magic) and not (HDF5 in magic and HDF5 in head):
        raise InputError(
            f"{address} gave a file that is not of format {format}: it begins with {_shown(head)}; correct the "
            "address, format or member"
        )


def _shown(head: bytes) -> str:
    return repr(head[:40])
