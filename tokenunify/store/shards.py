"""The shard files of an array, and what binds them to their places.

A shard is whole by its own checksums wherever it lies, in another's place and in another store too: so a mark of its
content is recorded when it is written, and compared when it is read.
"""

import os
import stat
import zlib
from collections import defaultdict
from collections.abc import Iterable
from itertools import product
from math import ceil, prod
from pathlib import Path

import numpy as np
import zarr

DIGITS = 8
"""Hexadecimal digits of a mark."""
CHECKSUM_BYTES = 4

Marks = dict[Path, set[str]]
"""The marks that a shard's file may have: one for each time that its block was recorded."""


def files(array: zarr.Array, roi_slices: tuple[slice, ...] | None = None) -> list[Path]:
    """Where the shard files are, of the whole array or those that a box of the last three axes touches."""
    shards = array.shards or array.chunks
    full = [range(ceil(n / s)) for n, s in zip(array.shape, shards, strict=True)]
    if roi_slices is not None:
        for axis, (cut, size) in enumerate(zip(roi_slices, shards[-3:], strict=True), start=len(full) - 3):
            full[axis] = range(cut.start // size, ceil(cut.stop / size))
    root = Path(str(array.store_path.store.root), array.store_path.path, "c")
    return [root.joinpath(*map(str, index)) for index in product(*full)]


def is_there(file: Path) -> bool:
    """Whether a shard file is there, and not empty as a machine that crashed may leave it: zarr would read zeros."""
    try:
        found = file.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return stat.S_ISREG(found.st_mode) and found.st_size > 0


def in_its_place(file: Path) -> str:
    """What a message about a missing file adds where something else lies in its place."""
    return " (a folder or device lies in its place)" if file.exists() and not file.is_file() else ""


def mark(file: Path, array: zarr.Array) -> str:
    """A checksum of the shard's index and of its chunks' checksums: some bytes of a page of each are read."""
    num_chunks = prod(s // c for s, c in zip(array.shards, array.chunks, strict=True))
    length = 16 * num_chunks + CHECKSUM_BYTES
    with open(file, "rb", buffering=0) as opened:
        size = os.fstat(opened.fileno()).st_size
        index = os.pread(opened.fileno(), length, max(0, size - length))
        places = np.frombuffer(index[: len(index) // 16 * 16], "<u8").reshape(-1, 2)
        ends = places.sum(axis=1, dtype=np.uint64)  # of a chunk outside the array it is beyond any file
        known = ends[(ends >= CHECKSUM_BYTES) & (ends <= size)].tolist()
        checksums = [os.pread(opened.fileno(), CHECKSUM_BYTES, end - CHECKSUM_BYTES) for end in known]
    return f"{zlib.crc32(index + b''.join(checksums)):0{DIGITS}x}"


def is_as_recorded(file: Path, array: zarr.Array, marks: Marks) -> bool:
    """Whether a shard's file has one of its marks; one without any was written before marks were recorded."""
    expected = marks.get(file)
    return expected is None or mark(file, array) in expected


def marks(array: zarr.Array, roi_slices: tuple[slice, ...] | None = None) -> str:
    """The marks of the files of an array or of a box, one behind the other: as they are recorded."""
    return "".join(mark(file, array) for file in files(array, roi_slices))


def by_file(recorded: Iterable[tuple[list[Path], str]]) -> Marks:
    """The marks of each file, from those recorded of groups of files; those of other groups are passed over."""
    found: Marks = defaultdict(set)
    for files, text in recorded:
        if len(text) == DIGITS * len(files):
            for number, file in enumerate(files):
                found[file].add(text[number * DIGITS : (number + 1) * DIGITS])
    return dict(found)


def box(index: object, shape: tuple[int, ...]) -> tuple[slice, ...]:
    """The box of the last three axes that an index of an array reads from."""
    words = list(index) if isinstance(index, tuple) else [index]
    for place, word in enumerate(words):
        if word is Ellipsis:
            words[place : place + 1] = [slice(None)] * (len(shape) - len(words) + 1)
            break
    words += [slice(None)] * (len(shape) - len(words))
    found = []
    for word, length in zip(words, shape, strict=True):
        first, stop = 0, length
        if isinstance(word, slice):
            read = range(*word.indices(length))
            first, stop = (min(read), max(read) + 1) if read else (0, 0)
        elif isinstance(word, (int, np.integer)):
            first, stop = int(word) % length, int(word) % length + 1
        found.append(slice(first, stop))
    return tuple(found[-3:])
