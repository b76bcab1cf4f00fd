"""Euclidean distance to the boundary up to a cap: exact, axis by axis (Saito and Toriwaki 1994)."""

import numpy as np

from tokenunify.kernels.compiled import loop

SMALL_CAP = 2**7
"""Below this cap sums of two squares fit into 16 bits: a processor adds twice as many of them at once."""


def capped_distance(inside: np.ndarray, *, cap: int) -> np.ndarray:
    """Distance in voxels, float32, of each voxel inside to the nearest outside, or `cap` if that is less.

    inside: bool (y, x) or (z, y, x). The image's own border counts as no boundary.
    """
    squares = np.empty(inside.shape, np.uint16 if cap < SMALL_CAP else np.float32)
    volume = squares.reshape((1,) * (3 - inside.ndim) + inside.shape)
    along_x(inside.reshape(volume.shape), volume, squares.dtype.type(cap))
    for section in volume:
        _across_rows(section)
    if inside.ndim == 3:
        for y in range(volume.shape[1]):
            plane = np.ascontiguousarray(volume[:, y])
            _across_rows(plane)
            volume[:, y] = plane
    return np.sqrt(squares, dtype=np.float32)


@loop
def along_x(inside: np.ndarray, squares: np.ndarray, cap: int) -> None:
    """Squared distances within each row."""
    for z in range(inside.shape[0]):
        for y in range(inside.shape[1]):
            row, within, far = squares[z, y], inside[z, y], np.int64(cap)
            for x in range(row.size):
                far = min(far + 1, np.int64(cap)) if within[x] else np.int64(0)
                row[x] = far
            far = np.int64(cap)
            for x in range(row.size - 1, -1, -1):
                far = min(far + 1, np.int64(row[x]))
                row[x] = far
            for x in range(row.size):
                row[x] *= row[x]


@loop
def _across_rows(squares: np.ndarray) -> None:
    """For each voxel of a plane, the least over its column of a square plus the squared distance to it."""
    rows = squares.copy()
    for place in range(len(rows)):
        row, away, highest = squares[place], 1, squares[place].max()
        while away < len(rows) and away * away < highest:
            if place >= away:
                _lower(row, rows[place - away], rows.dtype.type(away * away))
            if place + away < len(rows):
                _lower(row, rows[place + away], rows.dtype.type(away * away))
            away += 1
            if away & (away - 1) == 0:  # looked up rarely: it takes longer than the rest
                highest = row.max()


@loop
def _lower(row: np.ndarray, other: np.ndarray, more: np.integer) -> None:
    for x in range(row.size):
        square = row.dtype.type(other[x] + more)
        row[x] = square if square < row[x] else row[x]
