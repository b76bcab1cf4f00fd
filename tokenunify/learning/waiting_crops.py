"""Arrays that wait for a block: in memory up to a bound, the rest in files."""

from pathlib import Path

import numpy as np

MOST_BYTES = 2**28
"""Held in memory, whatever the volume's size."""


class Waiting:
    """Arrays that wait, by block and number, each to be taken once; blocks take theirs in rising order.

    Where memory is full those of the last block go to files of the folder: what comes next is held. A file is removed
    when its array is taken.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.held: dict[tuple[int, int], np.ndarray] = {}
        self.num_bytes = 0

    def put(self, block: int, number: int, array: np.ndarray) -> None:
        """Keep an array, which may be a part of another, for the block."""
        self.held[block, number] = array
        self.num_bytes += array.nbytes
        while self.num_bytes > MOST_BYTES:
            last = max(self.held)
            np.save(self._path(*last), self._pop(*last))
        if (block, number) in self.held:
            self.held[block, number] = array.copy()  # not before it is known to stay: it may be large

    def take(self, block: int, number: int) -> np.ndarray:
        """The array that was put there, in C order; it waits no more."""
        if (block, number) in self.held:
            return self._pop(block, number)
        path = self._path(block, number)
        array = np.load(path)
        path.unlink()
        return array

    def _pop(self, block: int, number: int) -> np.ndarray:
        array = self.held.pop((block, number))
        self.num_bytes -= array.nbytes
        return array

    def _path(self, block: int, number: int) -> Path:
        return self.folder / f"{block}.{number}.npy"
