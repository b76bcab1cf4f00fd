"""Overlapping crops that cover a volume, and their blending: every voxel sums the same crops in the same order.

A crop is here what the network puts out, which valid convolutions make smaller than the raw that they read.

Starts may lie before the volume, crops may end behind it: there the raw is mirrored at the volume's faces.
"""

from collections.abc import Sequence
from itertools import product
from math import ceil

import numpy as np

from tokenunify.geometry import Blocks, Coordinate, Roi, crop_starts
from tokenunify.kernels.compiled import loop
from tokenunify.learning.augment import mirrored
from tokenunify.store import arrays


def blending_weight(crop: Coordinate, sigma: float) -> np.ndarray:
    """Weight of a crop's voxels, float32: 1e-6 + exp(-r^2 / (2 sigma^2)), r from the crop's centre, 1 at its faces."""
    z, y, x = (np.linspace(-1, 1, n, dtype=np.float32) if n > 1 else np.zeros(1, np.float32) for n in crop)
    squared = z[:, None, None] ** 2 + y[:, None] ** 2 + x**2
    return np.float32(1e-6) + np.exp(-squared / np.float32(2 * sigma**2))


def read_mirrored(raw: arrays.Store | np.ndarray, start: Sequence[int], shape: Sequence[int]) -> np.ndarray:
    """The box of `raw` (z, y, x) that begins at `start`, mirrored, repeatedly where needed, beyond the faces."""
    index = [mirrored(np.arange(s, s + n), length) for s, n, length in zip(start, shape, raw.shape, strict=True)]
    low = [int(i.min()) for i in index]
    box = raw[tuple(slice(a, int(i.max()) + 1) for a, i in zip(low, index, strict=True))]
    return box[np.ix_(*(i - a for i, a in zip(index, low, strict=True)))]


class Tiling:
    """The crops of a volume, numbered in raster order, and which of them a block needs."""

    def __init__(self, volume_shape: Coordinate, crop: Coordinate, stride: Coordinate, padding: Coordinate):
        self.crop, self.volume_shape = crop, volume_shape
        self.starts = [
            crop_starts(n, padding=p, crop=c, stride=s)
            for n, p, c, s in zip(volume_shape, padding, crop, stride, strict=True)
        ]

    def __len__(self) -> int:
        z, y, x = self.starts
        return len(z) * len(y) * len(x)

    def start(self, number: int) -> Coordinate:
        """First voxel of a crop."""
        z, y, x = self.starts
        return z[number // (len(x) * len(y))], y[number // len(x) % len(y)], x[number % len(x)]

    def touching(self, roi: Roi) -> list[int]:
        """Numbers, rising, of the crops that share a voxel with the box."""
        z, y, x = (
            [k for k, start in enumerate(starts) if start < end and start + crop > first]
            for starts, crop, first, end in zip(self.starts, self.crop, roi.offset, roi.end, strict=True)
        )
        rows, columns = len(self.starts[1]), len(self.starts[2])
        return [(k * rows + j) * columns + i for k in z for j in y for i in x]

    def reach(self, roi: Roi) -> int:
        """First z behind all crops that share a voxel with the box."""
        return max(start for start in self.starts[0] if start < roi.end[0]) + self.crop[0]

    def blocks(self, number: int, blocks: Blocks) -> list[int]:
        """Numbers, rising, of the blocks that share a voxel with the crop."""
        spans = [
            range(max(0, s) // b, ceil(min(n, s + c) / b))
            for s, c, b, n in zip(self.start(number), self.crop, blocks.block_shape, self.volume_shape, strict=True)
        ]
        _, rows, columns = blocks.grid
        return [(k * rows + j) * columns + i for k, j, i in product(*spans)]

    def overlap(self, number: int, roi: Roi) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
        """What crop and box share: index into the crop, index into the box."""
        start = self.start(number)
        low = [max(s, o) for s, o in zip(start, roi.offset, strict=True)]
        high = [min(s + c, e) for s, c, e in zip(start, self.crop, roi.end, strict=True)]
        in_crop = tuple(slice(a - s, b - s) for a, b, s in zip(low, high, start, strict=True))
        in_roi = tuple(slice(a - o, b - o) for a, b, o in zip(low, high, roi.offset, strict=True))
        return in_crop, in_roi

    def total_weight(self, roi: Roi, weight: np.ndarray) -> np.ndarray:
        """Sum of all crops' weights in the box, float32, in the order of their numbers."""
        total = np.zeros(roi.shape, np.float32)
        for number in self.touching(roi):
            in_crop, in_roi = self.overlap(number, roi)
            total[in_roi] += weight[in_crop]
        return total

    def add(self, sums: np.ndarray, number: int, affinities: np.ndarray, weight: np.ndarray, roi: Roi) -> None:
        """Add to the box's sums (c, z, y, x) what the crop has in the box, (c, ...), both float32, weighted."""
        in_crop, in_roi = self.overlap(number, roi)
        spans = [(c.start, r.start, r.stop - r.start) for c, r in zip(in_crop, in_roi, strict=True)]
        add_crop(sums, affinities, weight, np.array(spans, np.uint64).T)


@loop
def add_crop(sums: np.ndarray, affinities: np.ndarray, weight: np.ndarray, spans: np.ndarray) -> None:
    """Add the voxels that a crop and a box share: `spans` are its first in the crop and in the box, and its shape.

    They are unsigned, so that no index has to be looked at for being counted from the end.
    """
    (z, y, x), (z_to, y_to, x_to), (depth, rows, columns) = spans
    for k in range(depth):
        for j in range(rows):
            for channel in range(len(sums)):
                for i in range(columns):
                    value = weight[z + k, y + j, x + i] * affinities[channel, k, j, i]
                    sums[channel, z_to + k, y_to + j, x_to + i] += value
