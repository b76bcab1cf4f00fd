"""Seeded watershed by flooding (Meyer 1991): levels rise, voxels of one level flood in the order they were reached.

A voxel takes the label of the neighbour that reaches it first, and floods on from its own level, be it below the
current one. Plateaus, of which 8-bit affinities have many, are so flooded from all sides at once.
"""

import numpy as np
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from tokenunify.errors import InputError
from tokenunify.geometry import check_shapes
from tokenunify.kernels.compiled import inner, loop

LEVELS = 255 * 252 + 1
"""Levels of heights in [0, 1]: means of two or three 8-bit channels are whole levels, which keeps plateaus."""
SLACK = 0.4 / LEVELS
"""How far rounding in single precision may take a height beyond [0, 1]: its level is still the first or last one."""
GROUP = 2**6
"""Levels that are passed over at once where nothing waits at any of them."""
AHEAD = 16
"""How many voxels before their turn the neighbours are fetched into the cache."""
DRY = np.uint32(2**31)
"""A voxel without label holds this and its level."""


def flood(heights: np.ndarray, seeds: np.ndarray) -> np.ndarray:
    """Labels, uint32, grown from `seeds` (0: none) in an image (y, x) or a volume (z, y, x), to neighbours by faces.

    heights, float32, are in [0, 1]; labels are below 2^31. What no seed reaches stays 0. Of equal levels the seeds
    flood first, in raster order. Raises InputError for heights and labels beyond these limits.
    """
    check_shapes("seeds", seeds.shape, "the heights", heights.shape)
    lowest, highest = heights.min(), heights.max()
    if not -SLACK < lowest <= highest < 1 + SLACK:  # also where they are NaN
        raise InputError(f"heights must lie in [0, 1], found {lowest:g}..{highest:g}; give affinities in [0, 1]")
    if seeds.dtype.kind not in "iu" or seeds.min() < 0 or seeds.max() >= DRY:
        raise InputError(f"seeds must be integers in 0..2^31-1, found {seeds.dtype} up to {seeds.max()}")
    shape = (1,) * (3 - heights.ndim) + heights.shape
    z, y, x = (n + 2 for n in shape)
    state = np.zeros((z, y, x), np.uint32)  # with a rim that is never dry
    steps = (y * x, x, 1)[3 - heights.ndim :]
    around = (*(-step for step in steps), *steps[::-1])  # a tuple: loops over it are unrolled
    queue = np.empty(state.size, np.int32 if state.size < 2**31 else np.int64)
    waits = queue_seeds(heights.reshape(shape), seeds.reshape(shape), state, around, queue)
    grow(state.reshape(-1), around, queue, *waits)
    labels = state[1:-1, 1:-1, 1:-1].reshape(heights.shape)
    return np.where(labels < DRY, labels, np.uint32(0))


@inner
def _level(height):
    return np.int64(height * np.float32(LEVELS - 1) + np.float32(0.5))


@loop
def queue_seeds(heights, seeds, state, steps, queue):
    """Put seeds and levels into the state, and the seeds' voxels that have a dry neighbour into the queue.

    Levels that do not occur get no number. Returns where each level's part of the queue begins and ends, and how many
    voxels wait in each GROUP of levels.
    """
    counts = np.zeros(LEVELS, np.int64)
    for height in heights.flat:
        counts[_level(height)] += 1
    ranks = np.cumsum(counts > 0) - 1
    depth, rows, columns = heights.shape
    for z in range(depth):
        for y in range(rows):
            for x in range(columns):
                seed = seeds[z, y, x]
                state[z + 1, y + 1, x + 1] = seed if seed else DRY + np.uint32(ranks[_level(heights[z, y, x])])
    counts = counts[counts > 0]
    first = np.cumsum(counts) - counts
    last, waiting = first.copy(), np.zeros(len(first) // GROUP + 1, np.int64)
    flat = state.ravel()
    for z in range(depth):
        for y in range(rows):
            for x in range(columns):
                if seeds[z, y, x]:
                    voxel, dry = ((z + 1) * (rows + 2) + y + 1) * (columns + 2) + x + 1, False
                    for step in steps:
                        dry |= flat[voxel + step] >= DRY
                    if dry:
                        _push(queue, last, waiting, ranks[_level(heights[z, y, x])], voxel)
    return first, last, waiting


@loop
def grow(flat, steps, queue, first, last, waiting):
    """Label the voxels; each waits at most once, in its level's part of the queue."""
    level = np.int64(0)
    while level < len(first):
        if first[level] == last[level]:
            level += 1 if waiting[level // GROUP] else GROUP - level % GROUP
            continue
        begun, end, lowest = first[level], last[level], level
        place = begun
        while place < end and lowest == level:  # until a voxel of a lower level waits
            if place + AHEAD < end:
                for step in steps:
                    prefetch(flat, queue[place + AHEAD] + step)  # type: ignore[call-arg]
            voxel = queue[place]
            place += 1
            for step in steps:
                neighbour = voxel + step
                if flat[neighbour] >= DRY:
                    own = np.int64(flat[neighbour] - DRY)
                    flat[neighbour] = flat[voxel]
                    if own == level:  # most often: its end is in a register
                        queue[end] = neighbour
                        end += 1
                    else:
                        _push(queue, last, waiting, own, neighbour)
                        lowest = min(lowest, own)
        waiting[level // GROUP] += end - last[level] - (place - begun)
        first[level], last[level] = place, end
        level = lowest


@inner
def _push(queue, last, waiting, level, voxel):
    queue[last[level]] = voxel
    last[level] += 1
    waiting[level // GROUP] += 1


@intrinsic
def prefetch(_typing, array, index):
    """Ask for array[index], of one axis, to be in the cache soon: a plateau's front is spread over the volume."""

    def generate(context, builder, signature, arguments):
        number, ir = cgutils.int32_t, cgutils.ir
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        address = builder.bitcast(builder.gep(data, [arguments[1]]), cgutils.voidptr_t)
        kind = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, number, number, number])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(function, [address, number(1), number(3), number(1)])  # to write to, to keep, data
        return context.get_dummy_value()

    return types.void(array, index), generate
