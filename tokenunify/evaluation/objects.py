"""Which neurons are split and which segments merge neurons, by what that costs, and where to look."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from tokenunify.evaluation.metrics import Contingency
from tokenunify.geometry import Coordinate

WORST = 10
PIECES = 5


@dataclass(frozen=True)
class Piece:
    """What a neuron and a segment have in common."""

    id: int
    """The segment in a split neuron, or the neuron in a merging segment."""
    voxels: int
    position: Coordinate
    """Its first voxel (z, y, x) in raster order."""
    contact: Coordinate | None = None
    """Where it touches the largest of the other pieces that it touches."""

    def moved(self, by: Coordinate) -> "Piece":
        """The same with its places counted from another origin."""
        return replace(self, position=_sum(self.position, by), contact=self.contact and _sum(self.contact, by))


@dataclass(frozen=True)
class Error:
    """A neuron that is split, or a segment that merges."""

    id: int
    voxels: int
    bits: float
    """Its share of voi_split or voi_merge, which are the sums over all neurons or segments."""
    pieces: tuple[Piece, ...]
    """The largest."""

    def moved(self, by: Coordinate) -> "Error":
        """The same with all places counted from another origin."""
        return replace(self, pieces=tuple(piece.moved(by) for piece in self.pieces))


Contacts = dict[tuple[int, int, int], Coordinate]
"""(error, piece, other piece further down its list), by their numbers there -> where the two touch."""


def worst_splits(table: Contingency, shape: Coordinate) -> list[Error]:
    """Neurons of a volume of that shape, those that cost most first."""
    return _worst(table.labels, table.segments, table, shape)


def worst_merges(table: Contingency, shape: Coordinate) -> list[Error]:
    """Segments, those that cost most first."""
    return _worst(table.segments, table.labels, table, shape)


def located(errors: Sequence[Error], found: Contacts) -> list[Error]:
    """The errors with the places where their pieces touch."""

    def contact(error: int, piece: int) -> Coordinate | None:
        pairs = ((error, min(piece, other), max(piece, other)) for other in range(PIECES))
        return next((found[pair] for pair in pairs if pair in found), None)

    return [
        replace(e, pieces=tuple(replace(p, contact=contact(number, n)) for n, p in enumerate(e.pieces)))
        for number, e in enumerate(errors)
    ]


def _sum(place: Coordinate, by: Coordinate) -> Coordinate:
    z, y, x = (p + b for p, b in zip(place, by, strict=True))
    return z, y, x


def _worst(owners: np.ndarray, others: np.ndarray, table: Contingency, shape: Coordinate) -> list[Error]:
    names, index = np.unique(owners, return_inverse=True)
    counts = table.counts.astype(np.float64)
    sizes = np.bincount(index, counts)
    bits = np.bincount(index, counts * np.log2(sizes[index] / counts)) / counts.sum()
    chosen = np.argsort(-bits, kind="stable")[:WORST]
    errors = []
    for owner in chosen[bits[chosen] > 0].tolist():
        rows = np.flatnonzero(index == owner)
        largest = rows[np.argsort(-table.counts[rows].astype(np.int64), kind="stable")][:PIECES]
        z, y, x = (axis.tolist() for axis in np.unravel_index(table.firsts[largest].astype(np.int64), shape))
        positions = zip(z, y, x, strict=True)
        pieces = map(Piece, others[largest].tolist(), table.counts[largest].tolist(), positions)
        errors.append(Error(int(names[owner]), int(sizes[owner]), float(bits[owner]), tuple(pieces)))
    return errors
