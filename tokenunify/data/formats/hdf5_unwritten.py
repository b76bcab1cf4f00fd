"""Voxels that an HDF5 data set has by its shape, but that nobody has written: HDF5 reads its fill value there."""

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import h5py

Box = Sequence[slice]
"""For each axis of the data set, the first and one past the last voxel."""


def voxels(dataset: h5py.Dataset, parts: Mapping[int, int], box: Box | None = None) -> int:
    """Voxels of a box, by default of all, that were never written.

    `parts` has, of a virtual data set, those of what each mapping maps; of a mapping that the box cuts they count in
    full, up to the voxels that are cut.
    """
    whole = tuple(slice(0, n) for n in dataset.shape or ())
    box = whole if box is None else box
    layout = dataset.id.get_create_plist()
    if layout.get_layout() == h5py.h5d.VIRTUAL:
        return _of_mappings(dataset, layout, parts, box)
    if layout.get_layout() == h5py.h5d.CHUNKED:
        return _of_chunks(dataset, box)
    lies_elsewhere = layout.get_external_count() > 0
    return 0 if dataset.id.get_storage_size() or lies_elsewhere else _size(box)


def _size(box: Box) -> int:
    return prod(side.stop - side.start for side in box)


def _of_chunks(dataset: h5py.Dataset, box: Box) -> int:
    chunk = dataset.chunks
    if dataset.id.get_num_chunks() == prod(-(-n // c) for n, c in zip(dataset.shape, chunk, strict=True)):
        return 0
    written = 0

    def count(info: Any) -> None:
        nonlocal written
        sides = zip(box, info.chunk_offset, chunk, strict=True)
        written += prod(max(0, min(side.stop, start + n) - max(side.start, start)) for side, start, n in sides)

    dataset.id.chunk_iter(count)
    return _size(box) - written


def _of_mappings(dataset: h5py.Dataset, layout: Any, parts: Mapping[int, int], box: Box) -> int:
    """Voxels that no mapping covers, and those that are not written where it leads."""
    left, lost = _selected(dataset.shape, box), 0
    for number in range(layout.get_virtual_count()):
        before = left.get_select_npoints()
        if before == 0:
            break
        left = _without(left, layout.get_virtual_vspace(number), dataset.shape)
        lost += min(parts.get(number, 0), before - left.get_select_npoints())
    return lost + left.get_select_npoints()


def _selected(shape: tuple[int, ...], box: Box) -> Any:
    space = h5py.h5s.create_simple(shape)
    space.select_hyperslab(tuple(side.start for side in box), tuple(side.stop - side.start for side in box))
    return space


def _without(left: Any, mapped: Any, shape: tuple[int, ...]) -> Any:
    """A selection without what a mapping covers."""
    if mapped.get_select_type() == h5py.h5s.SEL_ALL:
        left.select_none()
    elif mapped.get_select_type() != h5py.h5s.SEL_HYPERSLABS:
        return left
    elif mapped.is_regular_hyperslab():
        left.select_hyperslab(*_limited(mapped, shape), op=h5py.h5s.SELECT_NOTB)
    else:
        return left.combine_select(mapped, h5py.h5s.SELECT_NOTB)
    return left


def _limited(mapped: Any, shape: tuple[int, ...]) -> tuple:
    """Start, count, stride and block of a hyperslab, as many as the array has room for."""
    unlimited = h5py.h5s.UNLIMITED
    starts, strides, counts, blocks = mapped.get_regular_hyperslab()
    axes = list(zip(starts, strides, counts, blocks, shape, strict=True))
    room = tuple(-(-(n - start) // stride) if count == unlimited else count for start, stride, count, _, n in axes)
    sides = tuple(n - start if block == unlimited else block for start, _, _, block, n in axes)
    return starts, room, strides, sides
