"""Where pieces of an object touch: neurons within the segment that merges them, segments within the neuron they split.

Two pieces touch where on a line along an axis voxels of both follow each other. Between them may be voxels of the
object whose label is not scored, as in a membrane or at an eroded border, as far as REACH_NM.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import product
from typing import NamedTuple

import numpy as np

from tokenunify.evaluation.metrics import Contingency
from tokenunify.evaluation.objects import PIECES, Contacts, Error
from tokenunify.geometry import Blocks, Coordinate, Roi, VoxelSize
from tokenunify.kernels import ids
from tokenunify.kernels.compiled import loop

REACH_NM = 150
"""From one piece's voxel to the other's, at most; neighbours touch whatever the voxel size."""


class Objects(NamedTuple):
    """Errors of one kind."""

    errors: Sequence[Error]
    merges: bool
    """Whether they are segments, with neurons as pieces, or neurons, with segments as pieces."""
    unscored: np.ndarray
    """Ids (n,), uint64, of labels that are no pieces."""

    def codes(self, labels: np.ndarray, segments: np.ndarray) -> np.ndarray:
        """For overlaps (n,): 1 + PIECES * error + piece, or -1 - error where the label is not scored, else 0; int8."""
        owners, others = (segments, labels) if self.merges else (labels, segments)
        codes, known = np.zeros(labels.size, np.int8), ~np.isin(labels, self.unscored)
        for number, error in enumerate(self.errors):
            mine = np.flatnonzero(owners == error.id)
            codes[mine[~known[mine]]] = -1 - number
            for place, piece in enumerate(error.pieces):
                codes[mine[(others[mine] == piece.id) & known[mine]]] = 1 + PIECES * number + place
        return codes

    def codes_of_voxels(self, labels: np.ndarray, segments: np.ndarray) -> np.ndarray:
        """The same for the voxels of a box."""
        flat = labels.ravel(), segments.ravel()
        starts = ids.run_starts(*flat)
        codes = self.codes(flat[0][starts], flat[1][starts])
        return np.repeat(codes, np.diff(starts, append=labels.size)).reshape(labels.shape)


def of_volume(
    objects: Objects,
    read: Callable[[Roi], tuple[np.ndarray, np.ndarray]],
    table: Callable[[int], Contingency],
    blocks: Blocks,
    voxel_size_nm: VoxelSize,
) -> Contacts:
    """A place (z, y, x) for each two pieces of an error that touch: amid their contact, where most of it is.

    `read` gives segments and labels of a box, `table` the overlaps in a block. Only blocks in which pieces may touch
    are read; the result does not depend on them.
    """
    z, y, x = (max(1, int(REACH_NM / size)) for size in voxel_size_nm)
    held = [objects.codes(*table(index)[:2]) for index in range(len(blocks))]
    present = [set(codes[codes > 0].tolist()) for codes in held]
    found: dict[tuple[int, int, int], list[np.ndarray]] = defaultdict(list)
    for index in range(len(blocks)):
        roi = blocks.roi(index)
        outer = roi.grow((z, y, x), (0, 0, 0), blocks.volume_shape)
        # Whether another piece of an error that has one here lies near: in this block or those before it in `outer`.
        lowest = (offset // size for offset, size in zip(outer.offset, blocks.block_shape, strict=True))
        own = np.unravel_index(index, blocks.grid)
        places = product(*(range(low, int(high) + 1) for low, high in zip(lowest, own, strict=True)))
        near = set().union(*(present[np.ravel_multi_index(place, blocks.grid)] for place in places))
        if not any((one - 1) // PIECES == (two - 1) // PIECES for one in present[index] for two in near - {one}):
            continue
        segments, labels = read(outer)
        first = tuple(o - p for o, p in zip(roi.offset, outer.offset, strict=True))
        touching, between = touching_pieces(objects.codes_of_voxels(labels, segments), first, (z, y, x))
        pairs, order, starts = ids.group_pairs(touching)
        for (one, two), rows in zip(pairs.tolist(), np.split(order, starts[1:]) if len(order) else (), strict=True):
            error, piece = divmod(one - 1, PIECES)
            found[error, piece, (two - 1) % PIECES].append(between[rows] + np.array(outer.offset))
    contacts: Contacts = {}
    for pair, parts in found.items():
        between = np.concatenate(parts)
        sections, counts = np.unique(between[:, 0], return_counts=True)
        most = np.unique(between[between[:, 0] == sections[np.argmax(counts)]], axis=0)  # in the section with most
        z, y, x = most[np.argmin(((most - most.mean(axis=0)) ** 2).sum(axis=1))].tolist()
        contacts[pair] = z, y, x
    return contacts


@loop
def touching_pieces(codes: np.ndarray, first: Coordinate, reach: Coordinate) -> tuple[np.ndarray, np.ndarray]:
    """Codes (n, 2) of pieces that touch, and the places between (n, 3); the upper voxel is at `first` or behind it."""
    pairs, places, count = np.empty((64, 2), np.int64), np.empty((64, 3), np.int64), 0
    _, rows, columns = codes.shape
    flat, steps = codes.ravel(), (rows * columns, columns, 1)
    for z in range(first[0], codes.shape[0]):
        for y in range(first[1], codes.shape[1]):
            for x in range(first[2], codes.shape[2]):
                voxel = (z * rows + y) * columns + x
                code = np.int64(flat[voxel])
                if code <= 0:
                    continue
                gap = -1 - (code - 1) // PIECES  # a voxel of the same object that belongs to no piece
                for axis, place in enumerate((z, y, x)):
                    step, farthest = steps[axis], min(place, reach[axis])
                    away = 1
                    while away < farthest and flat[voxel - away * step] == gap:
                        away += 1
                    away = min(away, farthest)
                    other = np.int64(flat[voxel - away * step])
                    if away == 0 or other == code or other <= 0 or (other - 1) // PIECES != (code - 1) // PIECES:
                        continue
                    if count == len(pairs):
                        pairs, places = np.concatenate((pairs, pairs)), np.concatenate((places, places))
                    pairs[count] = min(code, other), max(code, other)
                    places[count] = z, y, x
                    places[count, axis] -= away // 2
                    count += 1
    return pairs[:count], places[:count]
