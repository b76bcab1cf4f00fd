"""Arrays of ids: compact indices and sums over equal pairs, by runs and sorting (volumes of ids are mostly runs)."""

from typing import Any

import numpy as np

from tokenunify.errors import InputError


def check_integers(name: str, array: Any) -> None:
    """Refuse an array that is not of integers (or bool): other values would be cut to ids without a word."""
    if array.dtype.kind not in "biu":
        raise InputError(f"{name} must be integers, found {array.dtype}; convert the ids to integers")


def check_ids(name: str, array: np.ndarray) -> None:
    """Refuse an array that is not of integers, or has negative ones, which would be taken for huge ids."""
    check_integers(name, array)
    if array.dtype.kind == "i" and array.size and (least := array.min()) < 0:
        raise InputError(f"{name} must not be negative, found {least}; give voxels without one the id 0")


def compact(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sorted distinct ids, and for each element its index among them (int64, same shape)."""
    flat = ids.ravel()
    starts = run_starts(flat)
    values, index = np.unique(flat[starts], return_inverse=True)
    return values, np.repeat(index, np.diff(starts, append=flat.size)).reshape(ids.shape)


def run_starts(*arrays: np.ndarray) -> np.ndarray:
    """Positions in flat arrays of one length where any of them changes, the first element included."""
    changes = np.ones(arrays[0].size, bool)
    changes[1:] = False
    for flat in arrays:
        changes[1:] |= flat[1:] != flat[:-1]
    return np.flatnonzero(changes)


def group_pairs(pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Group the rows of `pairs` (n, 2): the distinct rows, sorted; the order that sorts; where groups start in it.

    `np.add.reduceat(weights[order], starts)` then sums per distinct row.
    """
    order = np.lexsort((pairs[:, 1], pairs[:, 0]))
    ordered = pairs[order]
    starts = run_starts(ordered[:, 0], ordered[:, 1])
    return ordered[starts], order, starts


def find(ids: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Index of each id in the sorted array `known`, and whether it is there (else the index means nothing)."""
    if not known.size:
        return np.zeros(ids.shape, np.int64), np.zeros(ids.shape, bool)
    index = np.minimum(np.searchsorted(known, ids), known.size - 1)
    return index, known[index] == ids
