"""Voxels that an HDF5 data set has by its shape, but that nobody has written: HDF5 reads its fill value there."""

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import h5py

Box = Sequence[slice]
"""For each axis of the data set, the first voxel and one past the last."""


def voxels(dataset: h5py.Dataset, parts: Mapping[int, int], box: Box | None = None) -> int:
    """Number of voxels of a box, by default of the whole data set, that were never written.

    `parts` has, by the number of each mapping of a virtual data set, the voxels never written in what it maps. Of a
    mapping that the box cuts, they all count, up to the number of voxels that the box has of it.
    """
    box = tuple(slice(0, n) for n in dataset.shape or ()) if box is None else box
    sides = tuple(side.stop - side.start for side in box)
    properties = dataset.id.get_create_plist()
    if properties.get_layout() == h5py.h5d.VIRTUAL:
        lost, left = 0, h5py.h5s.create_simple(dataset.shape)  # left: what no mapping has covered so far
        left.select_hyperslab(tuple(side.start for side in box), sides)
        for number in range(properties.get_virtual_count()):
            before = left.get_select_npoints()
            if before == 0:
                break
            left = _without(left, properties.get_virtual_vspace(number), dataset.shape)
            lost += min(parts.get(number, 0), before - left.get_select_npoints())
        return lost + left.get_select_npoints()
    if properties.get_layout() == h5py.h5d.CHUNKED:
        chunk = dataset.chunks
        if dataset.id.get_num_chunks() == prod(-(-n // c) for n, c in zip(dataset.shape, chunk, strict=True)):
            return 0
        written = 0

        def count(info: Any) -> None:
            nonlocal written
            starts = zip(box, info.chunk_offset, chunk, strict=True)
            written += prod(max(0, min(side.stop, start + n) - max(side.start, start)) for side, start, n in starts)

        dataset.id.chunk_iter(count)
        return prod(sides) - written
    lies_elsewhere = properties.get_external_count() > 0
    return 0 if dataset.id.get_storage_size() or lies_elsewhere else prod(sides)


def _without(left: Any, mapped: Any, shape: tuple[int, ...]) -> Any:
    """A selection of voxels of an array, without those that a mapping covers."""
    kind = mapped.get_select_type()
    if kind == h5py.h5s.SEL_ALL:
        left.select_none()
    elif kind == h5py.h5s.SEL_HYPERSLABS and not mapped.is_regular_hyperslab():
        return left.combine_select(mapped, h5py.h5s.SELECT_NOTB)
    elif kind == h5py.h5s.SEL_HYPERSLABS:
        unlimited = h5py.h5s.UNLIMITED  # where it is, take as many blocks, or as long ones, as the array has room for
        starts, strides, counts, blocks = mapped.get_regular_hyperslab()
        axes = list(zip(starts, strides, counts, blocks, shape, strict=True))
        counts = tuple(
            -(-(n - start) // stride) if count == unlimited else count for start, stride, count, _, n in axes
        )
        blocks = tuple(n - start if block == unlimited else block for start, _, _, block, n in axes)
        left.select_hyperslab(starts, counts, strides, blocks, op=h5py.h5s.SELECT_NOTB)
    return left
