"""Voxels that a volume does not store: its format reads them as its fill value, mostly 0, and so would a bad copy."""

import logging
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from math import prod
from typing import NamedTuple, Protocol

import numpy as np

from tokenunify.errors import InputError
from tokenunify.geometry import Coordinate, Roi

logger = logging.getLogger(__name__)

ALLOWED = 0.01
"""Share that may be absent where the configuration does not say."""
ASKED_AT_ONCE = 16
Index = tuple[int, ...]
"""Position of a chunk, in the order of the file's axes."""


class Count(NamedTuple):
    """How many chunks or voxels of a box are absent."""

    absent: int
    total: int
    unit: str = "chunks"


class Absence(Protocol):
    """What an array does not store."""

    def absent(self, box: Roi) -> Count:
        """How much of a box is absent."""

    def absent_of_block(self, values: np.ndarray, block: Roi, box: Roi) -> int:
        """How much one block of the box adds to what is absent of the box, given the `values` read of the block."""

    def size(self, box: Roi) -> Count:
        """The count of a box of which nothing is absent."""


class Stored(Protocol):
    """The chunks that are there."""

    def has(self, index: Index) -> bool:
        """Whether a chunk is there."""

    def within(self, low: Index, high: Index) -> Iterable[Index]:
        """The chunks from `low` to before `high`; the folder is listed, which only a local one allows."""


class Chunks(NamedTuple):
    """Where the chunks of an array (z, y, x) are, and which are stored."""

    shape: Coordinate
    stored: Stored
    order: tuple[int, int, int] = (0, 1, 2)
    """Positions of z, y and x among the file's axes."""
    num_axes: int = 3
    start: Coordinate = (0, 0, 0)
    """The voxel of the grid of chunks that is the array's first."""

    def absent(self, box: Roi) -> Count:
        """Count the chunks that touch the box; what is stored is listed."""
        low, high = self._range(box)
        total = prod(h - n for n, h in zip(low, high, strict=True))
        stored = self.stored.within(self._in_file(low, 0), self._in_file(high, 1))
        return Count(total - sum(1 for _ in stored), total)

    def absent_of_block(self, values: np.ndarray, block: Roi, box: Roi) -> int:
        """Count the absent chunks whose first voxel in the box lies in the block: each is counted with one block.

        Only chunks of a single value are asked for: one that has several values is there.
        """
        asked = []
        for z, y, x in product(*map(range, *self._range(block))):
            start = [i * n - s for i, n, s in zip((z, y, x), self.shape, self.start, strict=True)]
            chunk = Roi((start[0], start[1], start[2]), self.shape)
            part, inside = chunk.overlap(block), chunk.overlap(box)
            assert part is not None and inside is not None
            if inside.offset == part.offset:
                voxels = values[part.within(block)]
                first = voxels.flat[0]
                if (voxels == first).all() or (first != first and np.isnan(voxels).all()):
                    asked.append(self._in_file((z, y, x), 0))
        with ThreadPoolExecutor(ASKED_AT_ONCE) as pool:
            return sum(not found for found in pool.map(self.stored.has, asked))

    def size(self, box: Roi) -> Count:
        """The chunks that touch the box."""
        return Count(0, prod(h - n for n, h in zip(*self._range(box), strict=True)))

    def _range(self, box: Roi) -> tuple[Coordinate, Coordinate]:
        """Index of the box's first chunk, and one past that of its last."""
        moved = box.moved(self.start)
        z, y, x = (o // n for o, n in zip(moved.offset, self.shape, strict=True))
        beyond = [-(-e // n) for e, n in zip(moved.end, self.shape, strict=True)]
        return (z, y, x), (beyond[0], beyond[1], beyond[2])

    def _in_file(self, index: Coordinate, other: int) -> Index:
        """The index by the file's axes; along those that are neither z, y nor x it is `other`."""
        by_axis = dict(zip(self.order, index, strict=True))
        return tuple(by_axis.get(axis, other) for axis in range(self.num_axes))


class Unwritten(NamedTuple):
    """Voxels that an HDF5 array has by its shape, but that nobody has written."""

    count: Callable[[Roi], int]
    """How many of a box were never written."""

    def absent(self, box: Roi) -> Count:
        """Count the voxels of the box."""
        return self.size(box)._replace(absent=self.count(box))

    def absent_of_block(self, values: np.ndarray, block: Roi, box: Roi) -> int:
        """Count the voxels of the block."""
        return self.count(block)

    def size(self, box: Roi) -> Count:
        """The voxels of the box."""
        return Count(0, box.num_voxels, "voxels")


def check(path: str, counted: Count, allowed: float) -> None:
    """Log what is absent; InputError where its share is above `allowed`."""
    number, total, unit = counted
    if number == 0:
        return
    told = f"{path}: {number} of the {total} {unit} in the volume's box are absent ({100 * number / total:.3g} %)"
    if number > allowed * total:
        raise InputError(
            f"{told}, more than the {100 * allowed:g} % that allow_missing allows, and would be read as the fill "
            "value, mostly 0; get the volume again, or, where it is sparse, set allow_missing of this source to the "
            "share that may be absent (1: all)"
        )
    logger.warning("%s and are read as the fill value, mostly 0", told)
