"""The graph of fragments as tables that add up: graphs of parts of a volume are merged, and edges contracted."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tokenunify.errors import InputError
from tokenunify.kernels import ids
from tokenunify.kernels.compiled import loop
from tokenunify.store import arrays

NUM_LEVELS = 256
MANY_NODES = 2**32
"""So many at most: the indices of an edge's two nodes are one number, its key."""
EDGES_AT_ONCE = 2**12
"""Edges whose levels are listed at once: a byte for each of their levels fits into the cache."""
NO_ENTRIES = np.zeros((0, 2), np.uint64)
"""What edges without histograms have in their place."""


@dataclass(frozen=True)
class Rag:
    """Nodes and edges of the graph; affinities are counted in levels 0..255."""

    nodes: np.ndarray
    """Sorted fragment ids (n,), uint64, isolated ones included."""
    sizes: np.ndarray
    """Voxels of each node (n,), uint64; 0 in the graph of a part that has the node at the end of an edge only."""
    edges: np.ndarray
    """Fragment ids u < v (m, 2), uint64, sorted by (u, v)."""
    counts: np.ndarray
    """Voxel pairs of each edge (m,), uint64: the size of the boundary."""
    sums: np.ndarray
    """Sum of the pairs' levels (m,), uint64."""
    highest: np.ndarray
    """Highest level of the pairs (m,), uint8."""
    starts: np.ndarray
    """First entry of each edge's histogram of levels, and their number (m + 1,), int64; all 0 if there are none."""
    bins: np.ndarray
    """Level of each entry (k,), uint8, rising within an edge."""
    amounts: np.ndarray
    """Pairs of each entry (k,), uint64."""

    def check(self) -> None:
        """Refuse tables that do not belong together: compiled loops would go beyond them."""
        number, u, v = len(self.edges), *self.edges.T
        fits = {
            "nodes": len(self.sizes) == len(self.nodes) and bool((self.nodes[1:] > self.nodes[:-1]).all()),
            "edges": self.edges.dtype == self.nodes.dtype and bool(ids.find(self.edges, self.nodes)[1].all()),
            "ends of edges": bool((u < v).all()),
            "statistics": len(self.counts) == len(self.sums) == len(self.highest) == number,
            "histograms": divided(number, self.starts, self.bins, self.amounts),
        }
        if wrong := [name for name, fit in fits.items() if not fit]:
            raise InputError(f"the graph's {wrong[0]} do not fit its other tables: make it with rag.from_arrays")

    def mean_affinities(self) -> np.ndarray:
        """Mean affinity of each edge in [0, 1], float64."""
        return self.sums / (255 * self.counts)


class Stored:
    """A graph in a file; a table is read when it is asked for. Where it is damaged, the error says how to remake it."""

    def __init__(self, path: Path, remake: str):
        self.path, self.remake = path, remake

    def __getattr__(self, name: str) -> np.ndarray:
        return arrays.read_npz(self.path, self.remake, name)[name]


def from_pairs(
    keys: np.ndarray,
    values: np.ndarray,
    entries: np.ndarray = NO_ENTRIES,
    amounts: np.ndarray = NO_ENTRIES[:, 0],
) -> Rag:
    """Graph of pairs of ids (n, 2), uint64, that were counted in any order.

    `values` (n, 3) are count, sum and highest level of each pair; of an id's pair with itself, the first is its voxels.
    `entries` (k, 2) are the histograms' rows in `keys` and levels, `amounts` (k,) the pairs of each.
    """
    order = np.lexsort((keys[:, 1], keys[:, 0]))
    alone = keys[order, 0] == keys[order, 1]
    own, edges = order[alone], order[~alone]
    nodes = np.union1d(keys[own, 0], keys[edges])
    sizes = np.zeros(nodes.size, np.uint64)
    sizes[np.searchsorted(nodes, keys[own, 0])] = values[own, 0]
    place = np.empty(len(keys), np.int64)
    place[edges] = np.arange(edges.size)
    levels = (place[entries[:, 0].astype(np.int64)] << 8) | entries[:, 1].astype(np.int64)
    rising = np.argsort(levels)
    return Rag(
        nodes=nodes,
        sizes=sizes,
        edges=keys[edges],
        counts=values[edges, 0],
        sums=values[edges, 1],
        highest=values[edges, 2].astype(np.uint8),
        starts=np.searchsorted(levels[rising] >> 8, np.arange(edges.size + 1)),
        bins=(levels[rising] & 255).astype(np.uint8),
        amounts=amounts[rising],
    )


def divided(num_edges: int, starts: np.ndarray, bins: np.ndarray, amounts: np.ndarray) -> bool:
    """Whether `starts` divides the entries among so many edges, and levels rise within each."""
    if len(starts) != num_edges + 1 or starts[0] != 0 or (starts[1:] < starts[:-1]).any():
        return False
    if not starts[-1] == len(bins) == len(amounts):
        return False
    falls = 1 + np.flatnonzero(bins[1:] <= bins[:-1])
    return bool(ids.find(falls, starts)[1].all())


def highest_alone(rag: Rag, which: np.ndarray | None = None) -> Rag:
    """The graph in which edges (all, or those of `which`, (m,) bool) have one entry: their highest level, once."""
    which = np.ones(rag.highest.size, bool) if which is None else which
    lengths = np.diff(rag.starts)
    starts = np.concatenate([[0], np.where(which, 1, lengths).cumsum()])
    bins, amounts = np.empty(starts[-1], np.uint8), np.ones(starts[-1], np.uint64)
    bins[starts[:-1][which]] = rag.highest[which]
    others, kept = (np.repeat(~which, size) for size in (np.diff(starts), lengths))
    bins[others], amounts[others] = rag.bins[kept], rag.amounts[kept]
    return replace(rag, starts=starts, bins=bins, amounts=amounts)


def merge(parts: Sequence[Rag | Stored]) -> Rag:
    """The graph of all parts together, whatever their order.

    Nodes and edges may come more than once, in any order. The parts' tables are read one by one and added to the
    result: no second copy of it is made.
    """
    nodes = union(part.nodes for part in parts)
    if nodes.size > MANY_NODES:
        raise InputError(
            f"the graph has {nodes.size} fragments, expected at most 2^32: set hierarchy of the waterz segmentation, "
            "or make larger fragments (sigma_seeds, min_size)"
        )
    sizes = np.zeros(nodes.size, np.uint64)
    for part in parts:
        np.add.at(sizes, np.searchsorted(nodes, part.nodes), part.sizes)
    own = [keys_of(part, nodes) for part in parts]
    keys = union(own)
    places = [np.searchsorted(keys, own.pop(0)) for _ in parts]
    counts, sums, highest = (np.zeros(keys.size, dtype) for dtype in (np.uint64, np.uint64, np.uint8))
    for part, place in zip(parts, places, strict=True):
        np.add.at(counts, place, part.counts)
        np.add.at(sums, place, part.sums)
        np.maximum.at(highest, place, part.highest)
    histograms = _merge_histograms(parts, places, keys.size)
    edges = np.stack([nodes[keys >> np.uint64(32)], nodes[keys & np.uint64(2**32 - 1)]], axis=1)
    return Rag(nodes, sizes, edges, counts, sums, highest, *histograms)


def union(tables: Iterable[np.ndarray]) -> np.ndarray:
    """Distinct values, sorted."""
    values = np.concatenate([np.zeros(0, np.uint64), *tables])  # a part may have no blocks
    values.sort(kind="stable")  # the tables are sorted, which this kind makes use of
    return values[ids.run_starts(values)]


def contract(rag: Rag, segments: np.ndarray) -> Rag:
    """The graph of segments, one per node (n,): what lies between the same two is added up."""
    ends = np.sort(segments[np.searchsorted(rag.nodes, rag.edges)], axis=1)
    outer = ends[:, 0] != ends[:, 1]
    lengths = np.diff(rag.starts)
    entries = np.repeat(outer, lengths)
    starts = np.concatenate([[0], lengths[outer].cumsum()])
    statistics = rag.counts[outer], rag.sums[outer], rag.highest[outer]
    return merge([Rag(segments, rag.sizes, ends[outer], *statistics, starts, rag.bins[entries], rag.amounts[entries])])


def keys_of(part: Rag | Stored, nodes: np.ndarray) -> np.ndarray:
    """One number for each edge, uint64, that sorts as (u, v) does; `nodes` are sorted and hold the edges' ends."""
    u, v = part.edges.T
    keys = np.searchsorted(nodes, u).astype(np.uint64) << np.uint64(32)
    return keys | np.searchsorted(nodes, v).astype(np.uint64)


def _merge_histograms(parts: Sequence[Rag | Stored], places: Sequence[np.ndarray], num_edges: int) -> tuple:
    """`starts`, `bins` and `amounts` of the merged graph; `places` are the rows that the parts' edges have in it.

    The levels present are marked first, 32 B an edge: from them the tables' length is known.
    """
    filled = [(part, place) for part, place in zip(parts, places, strict=True) if part.starts[-1]]
    for part, place in filled:
        if not divided(len(place), part.starts, part.bins, part.amounts):
            raise InputError("the histograms of a graph do not fit its edges: run rag again")
    if not filled:
        return np.zeros(num_edges + 1, np.int64), np.zeros(0, np.uint8), np.zeros(0, np.uint64)
    present = np.zeros((num_edges, NUM_LEVELS // 8), np.uint8)
    for part, place in filled:
        mark_levels(present, place, part.starts, part.bins)
    starts = np.concatenate([[0], np.bitwise_count(present).sum(axis=1, dtype=np.int64).cumsum()])
    bins, amounts = np.empty(starts[-1], np.uint8), np.zeros(starts[-1], np.uint64)
    for first in range(0, num_edges, EDGES_AT_ONCE):
        rows = present[first : first + EDGES_AT_ONCE]
        set_bits = np.flatnonzero(np.unpackbits(rows, bitorder="little").view(bool))
        bins[starts[first] : starts[first + len(rows)]] = set_bits.astype(np.uint8)  # modulo NUM_LEVELS
    del present
    for part, place in filled:
        add_amounts(starts, bins, amounts, place, part.starts, part.bins, part.amounts)
    return starts, bins, amounts


@loop
def mark_levels(present: np.ndarray, place: np.ndarray, starts: np.ndarray, bins: np.ndarray) -> None:
    """Set the bits of the edges' levels in `present`, where edge i has row place[i]."""
    for edge in range(len(place)):
        for entry in range(starts[edge], starts[edge + 1]):
            present[place[edge], bins[entry] >> 3] |= np.uint8(1 << (bins[entry] & 7))


@loop
def add_amounts(
    starts: np.ndarray,
    bins: np.ndarray,
    amounts: np.ndarray,
    place: np.ndarray,
    part_starts: np.ndarray,
    part_bins: np.ndarray,
    part_amounts: np.ndarray,
) -> None:
    """Add a part's amounts to those of the merged graph, which has all its levels in the same order."""
    for edge in range(len(place)):
        at = starts[place[edge]]
        for entry in range(part_starts[edge], part_starts[edge + 1]):
            while bins[at] != part_bins[entry]:
                at += 1
            amounts[at] += part_amounts[entry]
