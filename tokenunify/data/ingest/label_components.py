"""Parts of labels, found block by block: voxels of one label that faces join.

A block's file `{index}.npz` lists its components: `first`, the raster index in the volume of each one's first voxel;
`labels`; and `pairs` (n, 2) of first voxels, of this block and of an earlier one, that are of one part.
`{index}.{axis}.npz` holds the components of its last plane until the next block along the axis is done.
"""

from collections.abc import Callable
from math import prod
from pathlib import Path

import numpy as np

from tokenunify.geometry import Blocks, Coordinate, Roi
from tokenunify.kernels import components, ids
from tokenunify.store import arrays, blockwise


def find(read: Callable[[Roi], np.ndarray], blocks: Blocks, folder: Path) -> tuple[np.ndarray, dict[Roi, np.ndarray]]:
    """The label of each part, the first of them 0, and for each block's box the part of each of its components.

    `read` gives a box of the labels (z, y, x). Components are numbered as by `components.numbered`; so are parts, over
    the whole volume and in the smallest type that holds them. Of the voxels no more than a block's are held, of each
    component a few numbers. A killed run goes on at the next block.
    """

    def process(index: int, box: Roi) -> None:
        place = np.unravel_index(index, blocks.grid)
        earlier = {axis: index - prod(blocks.grid[axis + 1 :]) for axis in range(3) if place[axis]}
        if not _table(folder, index).exists():
            _write(read(box), index, box, blocks.volume_shape, earlier, folder)
        for axis, other in earlier.items():
            _plane(folder, other, axis).unlink(missing_ok=True)

    blockwise.run_part(folder, blocks, process)
    tables = [_load(_table(folder, index)) for index in range(len(blocks))]
    first, labels, pairs = (np.concatenate([table[name] for table in tables]) for name in ("first", "labels", "pairs"))
    order = np.argsort(first)
    roots = components.joined(len(first), np.searchsorted(first, pairs, sorter=order))
    is_root = roots == np.arange(len(first))
    numbers = np.cumsum(is_root).astype(np.min_scalar_type(np.count_nonzero(is_root)))
    parts = np.empty_like(numbers)
    parts[order] = numbers[roots]
    ends = np.cumsum([len(table["first"]) for table in tables])
    by_block = enumerate(np.split(parts, ends[:-1]))
    return _with_zero(labels[order[is_root]]), {blocks.roi(index): _with_zero(own) for index, own in by_block}


def of_voxels(found: np.ndarray, parts: np.ndarray) -> np.ndarray:
    """The part of each voxel of a block, of its components (z, y, x) and of the part of each of these, as of `find`."""
    values = np.empty(found.shape, parts.dtype)
    for section, target in zip(found, values, strict=True):  # as indices the voxels take 8 bytes each
        target[:] = parts[section]
    return values


def _table(folder: Path, index: int) -> Path:
    return folder / f"{index}.npz"


def _plane(folder: Path, index: int, axis: int) -> Path:
    return folder / f"{index}.{axis}.npz"


def _load(path: Path) -> dict[str, np.ndarray]:
    return arrays.read_npz(path, f"delete {path.parent} and run snakemake again")


def _write(
    labels: np.ndarray, index: int, box: Roi, volume_shape: Coordinate, earlier: dict[int, int], folder: Path
) -> None:
    """Write a block's planes, then its table: once that is there, the planes of `earlier`, by axis, are not needed."""
    found, voxels = components.numbered(labels)
    places = zip(np.unravel_index(voxels, box.shape), box.offset, strict=True)
    first = np.ravel_multi_index(tuple(place + offset for place, offset in places), volume_shape)
    pairs = [np.empty((0, 2), np.int64)]
    for axis, other in earlier.items():
        table, theirs = _load(_table(folder, other)), _load(_plane(folder, other, axis))["components"]
        ours = found.take(0, axis)
        touch = (ours != 0) & (labels.take(0, axis) == _with_zero(table["labels"])[theirs])
        one, two = ours[touch], theirs[touch]
        starts = ids.run_starts(one, two)
        touching, _, _ = ids.group_pairs(np.stack([one[starts], two[starts]], axis=1))
        pairs.append(np.stack([first[touching[:, 0] - 1], table["first"][touching[:, 1] - 1]], axis=1))
    for axis in range(3):
        if box.end[axis] < volume_shape[axis]:
            last = found.take(-1, axis).astype(np.min_scalar_type(len(first)))
            arrays.write_npz(_plane(folder, index, axis), components=last)
    arrays.write_npz(_table(folder, index), first=first, labels=labels.ravel()[voxels], pairs=np.concatenate(pairs))


def _with_zero(values: np.ndarray) -> np.ndarray:
    """With that of component or part 0 before the others."""
    return np.concatenate([np.zeros(1, values.dtype), values])
