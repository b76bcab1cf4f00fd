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
from tokenunify.kernels.compiled import loop
from tokenunify.segmentation.graph import Rag, from_pairs, keys_of, merge


def of_block(affinities: Any, fragments: Any, roi: Roi, offsets: Sequence[Coordinate], *, threads: int = 1) -> Rag:
    """Graph of the pairs of the voxels in a box of a volume; each thread takes some sections.

    affinities (c, z, y, x), uint8, a channel per offset, and fragments (z, y, x): the volume's arrays or stores.
    Offsets to voxels that share a face are left to the rag. Nodes have no voxels, edges no histograms.
    """
    channels = long_range(offsets)
    if not channels:
        return from_pairs(np.zeros((0, 2), np.uint64), np.zeros((0, 3), np.uint64))
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
        return from_pairs(*collect_pairs(grey, rows, steps, names, first, (sections.start, sections.stop)))

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
    return from_pairs(linked.edges[found], statistics[found])


@loop
def collect_pairs(
    affinities: np.ndarray,
    channels: np.ndarray,
    steps: np.ndarray,
    fragments: np.ndarray,
    first: Coordinate,
    sections: tuple[int, int],
) -> tuple[np.ndarray, np.ndarray]:
    """Count the pairs of the voxels in some sections of the affinities, whose voxel 0 is `first` in the fragments.

    `channels` (n,) are those of the `steps` (n, 3). Returns what `from_pairs` takes.
    """
    rows, columns = affinities.shape[2:]
    found, last = pair_table.table(3), np.zeros(len(steps), np.int64)  # row of the last pair: often the next one's
    for z in range(*sections):
        for y in range(rows):
            found = pair_table.with_room(found, len(steps) * columns)
            here = fragments[first[0] + z, first[1] + y]
            for n, step in enumerate(steps):
                other_z, other_y, offset = first[0] + z + step[0], first[1] + y + step[1], first[2] + step[2]
                if not (0 <= other_z < fragments.shape[0] and 0 <= other_y < fragments.shape[1]):
                    continue
                there, levels = fragments[other_z, other_y], affinities[channels[n], z, y]
                for x in range(max(0, -offset), min(columns, len(there) - offset)):
                    u, v = here[first[2] + x], there[offset + x]
                    if u != v and u != 0 and v != 0:
                        last[n] = pair_table.count(found, last[n], min(u, v), max(u, v), levels[x])
    return pair_table.used(found)
