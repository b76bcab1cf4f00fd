"""Arrays that lie uncompressed in a file: npy, and the voxels behind the headers of other formats."""

import os
from math import prod
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np

from tokenunify.data.formats.source_array import Opening, SourceArray
from tokenunify.errors import InputError


class Flat:
    """An array of a file, mapped only while a box is copied out of it: mapped pages count as memory of the process.

    Raises ValueError where the file does not hold what its header says.
    """

    def __init__(self, path: str | Path, dtype: Any, shape: tuple[int, ...], offset: int = 0, order: str = "C"):
        self.path, self.offset, self.order = path, offset, order
        self.dtype, self.shape = np.dtype(dtype), tuple(map(int, shape))
        end, size = offset + prod(self.shape) * self.dtype.itemsize, os.path.getsize(path)
        if offset < 0 or any(n < 0 for n in self.shape):
            raise ValueError(f"its header tells of voxels of shape {list(self.shape)} from byte {offset}")
        if end > size:
            raise ValueError(f"its header tells of voxels up to byte {end}, it has {size}")

    def __getitem__(self, index: Any) -> np.ndarray:
        mapped = np.memmap(self.path, self.dtype, "r", self.offset, self.shape, self.order)  # type: ignore[call-overload]
        return np.array(mapped[index])


def open_npy(path: str, dataset: str | None, opening: Opening) -> SourceArray:
    """An array that numpy saved; InputError for an archive of several."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OverflowError, TokenError) as error:
        raise ValueError(f"its header makes no sense ({error})") from error
    if isinstance(array, np.lib.npyio.NpzFile):
        with array:
            raise InputError(f"{path} is an archive of the arrays {array.files}; save one of them alone (numpy.save)")
    order = "C" if array.flags.c_contiguous else "F"
    return SourceArray(path, Flat(path, array.dtype, array.shape, array.offset, order))
