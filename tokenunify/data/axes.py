"""Arrays whose axes are stored in another order than z, y, x, or beside axes of size 1: read as z, y, x."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from tokenunify.data.source_array import ArrayLike
from tokenunify.errors import InputError


def order(path: str, names: Sequence[str], shape: Sequence[int]) -> tuple[int, int, int]:
    """Positions of z, y and x among the named axes; InputError where one is missing or another has several entries."""
    lower = [name.lower() for name in names]
    others = [n for name, n in zip(lower, shape, strict=True) if name not in ("z", "y", "x")]
    if {"z", "y", "x"}.issubset(lower) and len(lower) == len(others) + 3 and set(others) <= {1}:
        return lower.index("z"), lower.index("y"), lower.index("x")
    raise InputError(
        f"{path} has axes {list(names)}, shape {list(shape)}: expected z, y, x in any order and at most t and c of "
        "size 1; store one channel of one time point"
    )


class Ordered:
    """The axes at the positions `order` of an array, as z, y, x; of the others the first entry. Nothing is copied."""

    def __init__(self, array: ArrayLike, order: tuple[int, int, int]):
        self.array, self.order, self.ndim = array, order, len(array.shape)
        self.shape, self.dtype = tuple(array.shape[axis] for axis in order), array.dtype

    def __getitem__(self, index: Any) -> np.ndarray:
        given = index if isinstance(index, tuple) else (index,)
        wanted = dict(zip(self.order, [*given, *[slice(None)] * (3 - len(given))], strict=True))
        box = np.asarray(self.array[tuple(wanted.get(axis, 0) for axis in range(self.ndim))])
        left = [axis for axis in self.order if isinstance(wanted[axis], slice)]
        return box.transpose([sorted(left).index(axis) for axis in left])

    def unwritten(self, box: Sequence[slice]) -> int:
        """Voxels of a box that the file does not have, where the array tells."""
        count = getattr(self.array, "unwritten", None)
        wanted = dict(zip(self.order, box, strict=True))
        return count([wanted.get(axis, slice(0, 1)) for axis in range(self.ndim)]) if count else 0


def ordered(path: str, array: ArrayLike, names: Sequence[str]) -> tuple[ArrayLike, tuple[int, int, int]]:
    """The array as z, y, x, and where these axes are in the file, for its other facts of each axis."""
    places = order(path, names, array.shape)
    return (array if places == (0, 1, 2) and len(names) == 3 else Ordered(array, places)), places
