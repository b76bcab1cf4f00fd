"""Which neurons are split and which segments merge neurons, by what that costs, and where to look."""

from dataclasses import dataclass

import numpy as np

from tokenunify.evaluation.metrics import Contingency
from tokenunify.geometry import Coordinate

WORST = 10
PIECES = 5


@dataclass(frozen=True)
class Piece:
    """What a neuron and a segment have in common."""

    id: int
    """Of the segment in a split neuron, of the neuron in a merging segment."""
    voxels: int
    position: Coordinate
    """Its first voxel (z, y, x) in raster order."""


@dataclass(frozen=True)
class Error:
    """A neuron that is split, or a segment that merges."""

    id: int
    voxels: int
    bits: float
    """Its share of voi_split or voi_merge, which are the sums over all neurons or segments."""
    pieces: tuple[Piece, ...]
    """The largest."""


def worst_splits(table: Contingency, shape: Coordinate) -> list[Error]:
    """Neurons of a volume of that shape, those that cost most first."""
    return _worst(table.labels, table.segments, table, shape)


def worst_merges(table: Contingency, shape: Coordinate) -> list[Error]:
    """Segments, those that cost most first."""
    return _worst(table.segments, table.labels, table, shape)


def _worst(owners: np.ndarray, others: np.ndarray, table: Contingency, shape: Coordinate) -> list[Error]:
    names, index = np.unique(owners, return_inverse=True)
    counts = table.counts.astype(np.float64)
    sizes = np.bincount(index, counts)
    bits = np.bincount(index, counts * np.log2(sizes[index] / counts)) / counts.sum()
    chosen = np.argsort(-bits, kind="stable")[:WORST]
    return [
        Error(int(names[o]), int(sizes[o]), float(bits[o]), _pieces(np.flatnonzero(index == o), others, table, shape))
        for o in chosen
        if bits[o] > 0
    ]


def _pieces(rows: np.ndarray, others: np.ndarray, table: Contingency, shape: Coordinate) -> tuple[Piece, ...]:
    largest = rows[np.argsort(-table.counts[rows].astype(np.int64), kind="stable")][:PIECES]
    z, y, x = (axis.tolist() for axis in np.unravel_index(table.firsts[largest].astype(np.int64), shape))
    positions = zip(z, y, x, strict=True)
    return tuple(map(Piece, others[largest].tolist(), table.counts[largest].tolist(), positions))
