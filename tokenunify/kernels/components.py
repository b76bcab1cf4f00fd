"""Connected components: voxels of one label joined by faces, as trees whose root is the first voxel in raster order."""

import numpy as np

from tokenunify.kernels.compiled import inner, loop


@loop
def connect(labels, parents, across):
    """Make a tree of each component of `labels` (z, y, x), contiguous; sections stay apart unless `across`.

    `parents` (voxels,), integers, holds at first each voxel's own index, then that of an earlier voxel of its component
    or, of the first voxel, its own.
    """
    depth, rows, columns = labels.shape
    flat = labels.ravel()
    steps = (rows * columns, columns, 1)
    for z in range(depth):
        for y in range(rows):
            for x in range(columns):
                voxel = (z * rows + y) * columns + x
                for axis, place in enumerate((z * across, y, x)):
                    step = steps[axis]
                    if place and flat[voxel - step] == flat[voxel] and parents[voxel - step] != parents[voxel]:
                        _join(parents, voxel, voxel - step)


@inner
def _join(parents, one, two):
    """Make one tree of those of two nodes; its root is the first node."""
    one, two = _root(parents, one), _root(parents, two)
    parents[max(one, two)] = min(one, two)


@inner
def _root(parents, node):
    while parents[node] != node:
        parents[node] = parents[parents[node]]
        node = parents[node]
    return node


def numbered(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Components of labels (z, y, x), 1, 2, ... in raster order of their first voxels, and these voxels' indices (n,).

    Label 0 stays 0. Components are int32, or int64 from 2^31 voxels on; indices are in raster order, int64.
    """
    labels = np.ascontiguousarray(labels, labels.dtype.newbyteorder("="))
    parents = np.arange(labels.size, dtype=np.int32 if labels.size < 2**31 else np.int64)
    connect(labels, parents, True)
    first = number_roots(labels, parents)
    return parents.reshape(labels.shape), first


@loop
def number_roots(labels, parents):
    """Put numbers from 1 in place of the trees, 0 where the label is 0; return the roots."""
    flat, count = labels.ravel(), 0
    for voxel in range(flat.size):
        count += flat[voxel] != 0 and parents[voxel] == voxel
    first, count = np.empty(count, np.int64), 0
    for voxel in range(flat.size):
        if flat[voxel] == 0:
            parents[voxel] = 0
        elif parents[voxel] == voxel:
            first[count] = voxel
            count += 1
            parents[voxel] = count
        else:
            parents[voxel] = parents[parents[voxel]]
    return first


@loop
def joined(count, pairs):
    """For each of so many nodes the first of those that `pairs` (n, 2) join with it, int64."""
    parents = np.arange(count)
    for row in range(len(pairs)):
        _join(parents, pairs[row, 0], pairs[row, 1])
    for node in range(count):
        parents[node] = parents[parents[node]]
    return parents
