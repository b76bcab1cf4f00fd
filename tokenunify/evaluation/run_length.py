"""Expected run length: how far a neuron's centre line can be followed in one segment, in nm (Januszewski et al. 2018).

With l_ks the length of neuron k's skeleton whose edges have both ends in segment s, and L the length of all skeletons,
ERL = Σ l_ks² / L over the segments that do not merge: one merges that holds more than TOLERANCE_NM of each of two
neurons' skeletons. `run_length_share` is its ratio to the ERL of a perfect segmentation.

Skeletons are those of the labels as they are scored, sampled at every `step`-th voxel, by thinning (Lee et al. 1994).
They are not pruned: the finer the samples, the more small branches, so that only lengths of one spacing compare.
Where two neurons touch, one of them loses a layer of samples, so a neurite of one or two samples may break or vanish.
Blocks are sampled one by one; what is skeletonised at once are boxes of samples, which do not depend on the blocks. In
volumes larger than a box the skeletons depend on where these lie, a little.
"""

from collections.abc import Callable, Sequence
from itertools import product
from math import ceil
from typing import NamedTuple

import numpy as np
from scipy.ndimage import binary_fill_holes
from skimage.morphology import skeletonize

from tokenunify.affinities import pairs
from tokenunify.geometry import Blocks, Coordinate, Roi, VoxelSize
from tokenunify.kernels import ids

TOLERANCE_NM = 200
BOX = (64, 64, 64)
"""Samples that are skeletonised at once."""
HALO = (16, 16, 16)
"""Samples around a box that are skeletonised with it."""
NEXT = [(z, y, x) for z, y, x in product((-1, 0, 1), repeat=3) if (z, y, x) > (0, 0, 0)]
"""From a sample to those of its 26 neighbours that follow in raster order."""


class Samples(NamedTuple):
    """A box of a segmentation and of its labels at every `step`-th voxel."""

    labels: np.ndarray
    segments: np.ndarray


class Lengths(NamedTuple):
    """Lengths of skeletons, sorted by (label, segment)."""

    labels: np.ndarray
    segments: np.ndarray
    """Segment at both ends; 0 where these differ or there is none."""
    nm: np.ndarray


class Grid(NamedTuple):
    """Where the samples of a volume lie."""

    blocks: Blocks
    step: Coordinate
    voxel_size_nm: VoxelSize

    @property
    def spacing_nm(self) -> list[float]:
        """From one sample to the next, per axis."""
        return [step * size for step, size in zip(self.step, self.voxel_size_nm, strict=True)]

    def share(self, roi: Roi) -> Roi:
        """The box of samples in a box of voxels."""
        low, high = (_divided_up(corner, self.step) for corner in (roi.offset, roi.end))
        z, y, x = (h - n for n, h in zip(low, high, strict=True))
        return Roi(low, (z, y, x))


def steps(voxel_size_nm: VoxelSize, spacing_nm: float | None) -> Coordinate | None:
    """Voxels from one sample to the next, so that they are about `spacing_nm` apart in every direction."""
    if spacing_nm is None:
        return None
    z, y, x = (max(1, round(spacing_nm / size)) for size in voxel_size_nm)
    return z, y, x


def sampled(labels: np.ndarray, segments: np.ndarray, roi: Roi, step: Coordinate) -> Samples:
    """The samples in a box of the volume, whose arrays are given."""
    places = tuple(slice(-o % s, None, s) for o, s in zip(roi.offset, step, strict=True))
    return Samples(labels[places], segments[places])


def of_volume(samples: Callable[[int], Samples], grid: Grid, unscored: np.ndarray) -> Lengths:
    """Lengths in a volume, whose samples are given block by block; labels `unscored` (n,) have no skeleton."""
    shares = [grid.share(grid.blocks.roi(index)) for index in range(len(grid.blocks))]
    shape = _divided_up(grid.blocks.volume_shape, grid.step)
    boxes = Blocks(shape, BOX)
    tables = []
    for box in map(boxes.roi, range(len(boxes))):
        outer = box.grow(HALO, HALO, shape)
        held: Samples | None = None
        for index, share in enumerate(shares):
            if common := share.overlap(outer):
                found = samples(index)
                held = held or Samples(*(np.zeros(outer.shape, source.dtype) for source in found))
                for target, source in zip(held, found, strict=True):
                    target[common.within(outer)] = source[common.within(share)]
        assert held is not None
        # Around a cavity a skeleton would be a closed surface.
        known = ~np.isin(held.labels, unscored)
        skeleton = skeletonize(binary_fill_holes(apart(held.labels, known))) & known
        tables.append(lengths(skeleton, held, box.within(outer), grid.spacing_nm))
    return merge(tables)


def _divided_up(corner: Coordinate, step: Coordinate) -> Coordinate:
    z, y, x = (ceil(n / s) for n, s in zip(corner, step, strict=True))
    return z, y, x


def apart(labels: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Mask (z, y, x) of known labels without samples that follow a 26-neighbour of another one in raster order."""
    mask = known.copy()
    for offset in NEXT:
        here, there = pairs(offset, labels.shape)
        mask[there] &= (labels[here] == labels[there]) | ~known[here]
    return mask


def lengths(
    skeleton: np.ndarray, samples: Samples, owned: tuple[slice, slice, slice], spacing_nm: Sequence[float]
) -> Lengths:
    """Lengths of the edges of a skeleton (mask) between neighbours of one label, if the first of them is `owned`."""
    starts = np.zeros_like(skeleton)
    starts[owned] = skeleton[owned]
    tables = []
    for offset in NEXT:
        here, there = pairs(offset, skeleton.shape)
        edges = starts[here] & skeleton[there] & (samples.labels[here] == samples.labels[there])
        first, second = samples.segments[here][edges], samples.segments[there][edges]
        length = float(np.linalg.norm(np.multiply(offset, spacing_nm)))
        found = np.where(first == second, first, 0)
        tables.append(Lengths(samples.labels[here][edges], found, np.full(found.size, length)))
    return merge(tables)


def merge(tables: list[Lengths]) -> Lengths:
    """The sum of tables."""
    labels, segments, nm = (np.concatenate(column) for column in zip(*tables, strict=True))
    keys, order, starts = ids.group_pairs(np.stack([labels, segments], axis=1))
    return Lengths(keys[:, 0], keys[:, 1], np.add.reduceat(nm[order], starts) if starts.size else nm)


def scores(table: Lengths) -> dict[str, float | None]:
    """expected_run_length_nm and run_length_share; None where there is no skeleton."""
    total = float(table.nm.sum())
    if not total:
        return {"expected_run_length_nm": None, "run_length_share": None}
    found, holders = np.unique(table.segments[table.nm > TOLERANCE_NM], return_counts=True)
    counted = (table.segments != 0) & ~np.isin(table.segments, found[holders > 1])
    _, index = np.unique(table.labels, return_inverse=True)
    perfect = float(np.sum(np.bincount(index, table.nm) ** 2))
    correct = float(np.sum(table.nm[counted] ** 2))
    return {"expected_run_length_nm": correct / total, "run_length_share": correct / perfect}
