"""Pairs of fragments that long-range affinities link: a graph beside the rag, that adds up over blocks as the rag does.

The pair of voxel v and v + offset belongs to v's block and has the affinity of the offset's channel at v; no pair has
id 0. Pairs of neighbours are counted like others, for which fragments touch is known for the whole volume only:
`apart` leaves them out.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from math import ceil
from typing import Any

import numpy as np

from tokenunify.geometry import Blocks, Coordinate, Roi, long_range
from tokenunify.kernels import ids, pair_table
from tokenunify.kernels.compiled import inner, loop
from tokenunify.segmentation.graph import Rag, keys_of, merge


def of_block(affinities: Any, fragments: Any, roi: Roi, offsets: Sequence[Coordinate], *, threads: int = 1) -> Rag:
    """Graph of the pairs of the voxels in a box of a volume; each thread takes some sections.

    affinities (c, z, y, x), uint8, a channel per offset, and fragments (z, y, x): the volume's arrays or stores.
    Offsets to voxels that share a face are left to the rag. Nodes have no voxels, edges no histograms.
    """
    channels = long_range(offsets)
    if not channels:
        return _graph(np.zeros((0, 2), np.uint64), np.zeros((0, 3), np.uint64))
    steps = np.array([offsets[channel] for channel in channels])
    z, y, x = roi.shape
    outer = roi.grow(tuple(-steps.min(0, initial=0)), tuple(steps.max(0, initial=0)), fragments.shape)
    grey = affinities[(slice(channels[0], None), *roi.slices)]
    rows = np.array(channels) - channels[0]
    names = fragments[outer.slices].astype(np.uint64, copy=False)
    first = np.subtract(roi.offset, outer.offset)
    slabs = Blocks(roi.shape, (ceil(z / threads), y, x))

    def collected(index: int) -> Rag:
        sections = slabs.roi(index).slices[0]
        return _graph(*_collect(grey, rows, steps, names, first, (sections.start, sections.stop)))

    if len(slabs) == 1:
        return collected(0)
    with ThreadPoolExecutor(threads) as pool:
        return merge(list(pool.map(collected, range(len(slabs)))))


def apart(linked: Rag, rag: Rag) -> Rag:
    """The pairs that do not touch in the rag of the same fragments: the lifted edges.

    As in bioimage-cpp, an edge of the rag keeps to its nearest affinities: what long-range ones say of it is not used.
    """
    _, touching = ids.find(keys_of(linked, rag.nodes), keys_of(rag, rag.nodes))
    found = ~touching
    statistics = np.stack([linked.counts, linked.sums, linked.highest], axis=1)
    return _graph(linked.edges[found], statistics[found])


def _graph(keys: np.ndarray, values: np.ndarray) -> Rag:
    """Graph of pairs (n, 2), in any order, and count, sum and highest level (n, 3) of each."""
    order = np.lexsort((keys[:, 1], keys[:, 0]))
    counts, sums, highest = values[order].T
    nodes = np.unique(keys)
    return Rag(
        nodes=nodes,
        sizes=np.zeros(nodes.size, np.uint64),
        edges=keys[order],
        counts=np.ascontiguousarray(counts),
        sums=np.ascontiguousarray(sums),
        highest=highest.astype(np.uint8),
        starts=np.zeros(len(keys) + 1, np.int64),
        bins=np.zeros(0, np.uint8),
        amounts=np.zeros(0, np.uint64),
    )


@loop
def _collect(affinities, channels, steps, fragments, first, sections):
    """Count the pairs of the voxels in some sections of the affinities, whose voxel 0 is `first` in the fragments.

    `channels` (n,) are those of the `steps` (n, 3). Returns the pairs' ids (m, 2) and count, sum and highest level
    (m, 3), in any order.
    """
    rows, columns = affinities.shape[2:]
    found, last = pair_table.table(3), np.zeros(len(steps), np.int64)  # row of the last pair: often the next one's
    for z in range(*sections):
        for y in range(rows):
            found = pair_table.with_room(found, len(steps) * columns)
            for n in range(len(steps)):
                step, start = steps[n], (first[0] + z, first[1] + y, first[2])
                last[n] = _collect_row(affinities[channels[n], z, y], fragments, start, step, found, last[n])
    return pair_table.used(found)


@inner
def _collect_row(levels, fragments, start, step, found, last):
    """Count the pairs along a row of voxels that begins at `start`; returns the row of the last one in the table."""
    z, y, offset = start[0] + step[0], start[1] + step[1], start[2] + step[2]
    if not (0 <= z < fragments.shape[0] and 0 <= y < fragments.shape[1]):
        return last
    here, there = fragments[start[0], start[1]], fragments[z, y]
    for x in range(max(0, -offset), min(len(levels), len(there) - offset)):
        u, v = here[start[2] + x], there[offset + x]
        if u != v and u != 0 and v != 0:
            last = pair_table.count(found, last, min(u, v), max(u, v), levels[x])
    return last
