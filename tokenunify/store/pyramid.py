"""Levels of an image pyramid: sizes, reduction, and the OME-Zarr 0.5 metadata that describes them."""

from collections.abc import Iterator, Sequence
from itertools import pairwise, product
from math import ceil, prod
from typing import Any, NamedTuple

import numpy as np

from tokenunify.geometry import Coordinate, Roi, VoxelSize

VIEW = 128
"""The last level fits into a square of about this many pixels."""
NEARLY_ISOTROPIC = 1.5
SMALLEST_SHARE = 16**3
"""Voxels of a block in a level, at least: each block is a file of its own there."""


def levels(shape: Coordinate, voxel_size_nm: VoxelSize) -> list[tuple[Coordinate, VoxelSize]]:
    """Shape and voxel size per level, full resolution first; thick sections stay until y and x are about as coarse."""
    found = [(shape, voxel_size_nm)]
    while max(found[-1][0][1:]) > VIEW:
        factor = factors(*found[-1])
        found.append(
            (
                _three(ceil(n / f) for n, f in zip(found[-1][0], factor, strict=True)),
                _three(v * f for v, f in zip(found[-1][1], factor, strict=True)),
            )
        )
    return found


def factors(shape: Coordinate, voxel_size_nm: VoxelSize) -> Coordinate:
    """Reduction (1 or 2 per axis) from a level to the next one."""
    coarsest = max(v for v, n in zip(voxel_size_nm, shape, strict=True) if n > 1)
    fine = [v * NEARLY_ISOTROPIC < coarsest for v in voxel_size_nm]
    halved = fine if any(f and n > 1 for f, n in zip(fine, shape, strict=True)) else [True] * 3
    return _three(2 if h and n > 1 else 1 for h, n in zip(halved, shape, strict=True))


class BlockLevel(NamedTuple):
    """A level that blocks fill, each a box of its own."""

    shape: Coordinate
    voxel_size_nm: VoxelSize
    factor: Coordinate
    """Reduction from the level before."""
    block_shape: Coordinate
    """The block's share."""


def block_levels(shape: Coordinate, voxel_size_nm: VoxelSize, block_shape: Coordinate) -> list[BlockLevel]:
    """The levels, full resolution first, as far as a block divides by their windows and keeps `SMALLEST_SHARE`."""
    found = [BlockLevel(shape, voxel_size_nm, (1, 1, 1), block_shape)]
    for before, (lower, size) in pairwise(levels(shape, voxel_size_nm)):
        factor = factors(*before)
        share = _three(n // f for n, f in zip(found[-1].block_shape, factor, strict=True))
        if any(n % f for n, f in zip(found[-1].block_shape, factor, strict=True)) or prod(share) < SMALLEST_SHARE:
            break
        found.append(BlockLevel(lower, size, factor, share))
    return found


def reduce_block(labels: np.ndarray, roi: Roi, lower: Sequence[BlockLevel]) -> Iterator[tuple[Roi, np.ndarray]]:
    """A block's box and its most frequent labels in each of the levels below full resolution."""
    for level in lower:
        labels = reduce_mode(labels, level.factor)
        offset = _three(o // f for o, f in zip(roi.offset, level.factor, strict=True))
        roi = Roi(offset, _three(labels.shape))
        yield roi, labels


def reduce_mean(image: np.ndarray, factor: Coordinate) -> np.ndarray:
    """Mean over windows of `factor` voxels, rounded; windows at the far faces repeat the last voxel."""
    return np.rint(np.mean(_places(image, factor), axis=0, dtype=np.float32)).astype(image.dtype)


def reduce_mode(labels: np.ndarray, factor: Coordinate) -> np.ndarray:
    """Most frequent label of each window of `factor` voxels, the first of equals."""
    places = _places(labels, factor)
    mode, most = places[0].copy(), np.zeros(places[0].shape, np.uint8)
    for candidate in places:
        votes = sum((candidate == other).view(np.uint8) for other in places)
        better = votes > most
        np.copyto(mode, candidate, where=better)
        np.copyto(most, votes, where=better)
    return mode


def _places(array: np.ndarray, factor: Coordinate) -> list[np.ndarray]:
    """The voxels at each place of the windows, in raster order: views of the array, padded where needed."""
    padded = np.pad(array, [(0, -n % f) for n, f in zip(array.shape, factor, strict=True)], mode="edge")
    return [
        padded[tuple(slice(start, None, f) for start, f in zip(place, factor, strict=True))]
        for place in product(*map(range, factor))
    ]


def multiscales(name: str, sizes: Sequence[VoxelSize], offset_nm: VoxelSize, method: str) -> dict[str, Any]:
    """The `ome` attribute of an image group whose levels 0, 1, ... have these voxel sizes in nm.

    A reduced voxel's centre lies between those of its window, which the translation says.
    """
    datasets = []
    for level, size in enumerate(sizes):
        centre = [o + (s - first) / 2 for o, s, first in zip(offset_nm, size, sizes[0], strict=True)]
        moves = [{"type": "scale", "scale": list(size)}, {"type": "translation", "translation": centre}]
        datasets.append({"path": str(level), "coordinateTransformations": moves})
    axes = [{"name": axis, "type": "space", "unit": "nanometer"} for axis in "zyx"]
    return {"version": "0.5", "multiscales": [{"name": name, "type": method, "axes": axes, "datasets": datasets}]}


def _three(values: Any) -> Any:
    z, y, x = values
    return z, y, x
