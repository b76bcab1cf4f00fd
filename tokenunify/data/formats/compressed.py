"""Unpack a gzip or zlib stream into a file, up to the number of bytes that is allowed."""

import gzip
import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from tokenunify.data.formats.source_array import Opening
from tokenunify.errors import InputError

GZIP_MAGIC = b"\x1f\x8b"
PIECE_BYTES = 2**20


def is_gzip(path: str) -> bool:
    """Whether a file is gzip, by its content: an address need not end like the file behind it."""
    if not os.path.isfile(path):
        return False
    with open(path, "rb") as file:
        return file.read(len(GZIP_MAGIC)) == GZIP_MAGIC


def unpacked(path: Path, opening: Opening) -> Path:
    """The content of a gzip file, as a file of the scratch folder; InputError where it is larger than allowed."""

    def pieces(file: IO[bytes]) -> Iterator[bytes]:
        with gzip.open(file) as stream:
            while piece := stream.read(PIECE_BYTES):
                yield piece

    return _written(path, opening.scratch / path.name.removesuffix(".gz"), pieces, opening.max_bytes)


def stream_of(path: Path, start: int, num_bytes: int, opening: Opening) -> Path:
    """The first bytes of the gzip or zlib stream that begins at a byte of a file, as a file of the scratch folder."""

    def pieces(file: IO[bytes]) -> Iterator[bytes]:
        file.seek(start)
        unpack, left = zlib.decompressobj(zlib.MAX_WBITS | 32), num_bytes
        packed = file.read(PIECE_BYTES)
        while packed and left > 0:
            piece = unpack.decompress(packed, min(left, PIECE_BYTES))
            left -= len(piece)
            yield piece
            packed = unpack.unconsumed_tail or file.read(PIECE_BYTES)

    return _written(path, opening.scratch / f"{path.name}.raw", pieces, opening.max_bytes)


def _written(path: Path, target: Path, pieces: Callable[[IO[bytes]], Iterator[bytes]], max_bytes: float) -> Path:
    """Write the pieces to a file that appears when it is whole; after an error nothing is left of it."""
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with open(path, "rb") as packed, open(temporary, "wb") as file:
            for piece in pieces(packed):
                if file.tell() + len(piece) > max_bytes:
                    raise InputError(
                        f"{path}: unpacked it exceeds {max_bytes / 1e9:g} GB; if the file is right, raise "
                        "download.max_unpacked_gb"
                    )
                file.write(piece)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    return target
