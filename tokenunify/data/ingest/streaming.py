"""Fill a sharded array from boxes that are computed as they are needed, in bounded memory and resumable by shard."""

from collections.abc import Callable
from math import ceil, prod
from pathlib import Path

import dask
import numpy as np
import zarr

from tokenunify.geometry import Blocks, Coordinate, Roi
from tokenunify.store import blockwise, shards

BLOCK_VOXELS = 2**24
"""About this many voxels are held between two entries of the ledger, or one shard that is larger."""
PIECE_VOXELS = 2**23
"""About this many are computed at a time."""
SIDE_BY_SIDE_BYTES = 2**28
"""Shards up to so much in sum are written at once; blocks of at most that are read while the last one is written."""

Compute = Callable[[Roi], np.ndarray]


def fill(array: zarr.Array, compute: Compute, progress: Path, *, depth: int = 1) -> dict:
    """Write `compute(box)` for all of the array, shard by shard, and return the manifest's `run`.

    Boxes are slabs of blocks; all but the last are a multiple of `depth` sections deep. Shards that are there, complete
    as each appears in one step, are not computed again. dask's settings decide how many shards are written at a time.
    """
    depth_of_shard, rows, columns = array.shards or array.chunks
    shard_shape = (depth_of_shard, rows, columns)
    blocks = Blocks(array.shape, block_shape(array.shape, shard_shape))
    itemsize = array.dtype.itemsize

    def read(index: int, roi: Roi) -> np.ndarray | None:
        if not _missing(array, roi, shard_shape):
            return None
        values = np.empty(roi.shape, array.dtype)
        sections = max(1, PIECE_VOXELS // (prod(roi.shape[1:]) * depth)) * depth
        for z in range(0, roi.shape[0], sections):
            slab = Roi((roi.offset[0] + z, *roi.offset[1:]), (min(sections, roi.shape[0] - z), *roi.shape[1:]))
            values[slab.within(roi)] = compute(slab)
        return values

    def write(roi: Roi, values: np.ndarray | None) -> None:
        def put(shard: Roi) -> None:
            array[shard.slices] = values[shard.within(roi)]  # type: ignore[index]

        at_once = max(1, min(dask.config.get("num_workers"), SIDE_BY_SIDE_BYTES // (prod(shard_shape) * itemsize)))
        dask.compute(*(dask.delayed(put)(shard) for shard in _missing(array, roi, shard_shape)), num_workers=at_once)

    if prod(blocks.block_shape) * itemsize <= SIDE_BY_SIDE_BYTES:
        return blockwise.run_part(progress, blocks, read, write=write, written=array)
    return blockwise.run_part(progress, blocks, lambda index, roi: write(roi, read(index, roi)), written=array)


def block_shape(shape: Coordinate, shard: Coordinate) -> Coordinate:
    """A layer of shards, cut along y (then x) where it is larger than BLOCK_VOXELS: whole sections are read once."""
    rows = max(1, BLOCK_VOXELS // (shard[0] * shard[1] * shape[2]))
    columns = max(1, BLOCK_VOXELS // (shard[0] * shard[1] * shard[2]))
    return (
        shard[0],
        shard[1] * min(rows, ceil(shape[1] / shard[1])),
        shard[2] * min(columns, ceil(shape[2] / shard[2])),
    )


def _missing(array: zarr.Array, roi: Roi, shard_shape: Coordinate) -> list[Roi]:
    """The boxes of the shards in `roi` that have no file yet."""
    grid = Blocks(roi.shape, shard_shape)
    boxes = [grid.roi(index).moved(roi.offset) for index in range(len(grid))]
    return [box for box in boxes if not shards.is_there(shards.files(array, box.slices)[0])]
