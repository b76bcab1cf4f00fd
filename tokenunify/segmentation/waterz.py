"""Agglomeration of the graph with the exact rules of waterz 0.10 (256-bin queue): equal partitions, equal ids.

score "max50" is waterz's `OneMinus<HistogramQuantileAffinity<RegionGraphType, 50, ScoreValue, 256>>`: every edge starts
with its highest affinity alone, merged edges pool theirs and are scored with the median. "hist50" is the same with
`256, false` at the end: every edge starts with all its affinities. Other numbers are other quantiles. "mean" is
`OneMinus<MeanAffinity<RegionGraphType, ScoreValue>>`, from exact sums in place of waterz's running float32 mean.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tokenunify.config import Score
from tokenunify.errors import InputError
from tokenunify.kernels import pair_table
from tokenunify.kernels.compiled import inner, loop
from tokenunify.segmentation.graph import Rag, highest_alone
from tokenunify.segmentation.lut import Lut

NUM_BINS = 256


class State(NamedTuple):
    """The graph while it is contracted; what is used together lies together, as memory is what it waits for."""

    halves: np.ndarray
    """Ends of the edges, 2e and 2e + 1 those of edge e: `node`, and the `after`, the next end at that node or -1."""
    first: np.ndarray
    """First end at each node, -1 if it has none."""
    degrees: np.ndarray
    """Ends at each node, those of dead edges included."""
    labels: np.ndarray
    """The smallest node that each living node has absorbed, itself included."""
    frozen: np.ndarray
    """Whether a node must stay as it is."""
    edges: np.ndarray
    """`count` of affinities that the `score` is made of; first `entry` of their histogram; `stale`, if it has changed
    since it was scored; `dead`; the edge `behind` it in its bin of the queue."""
    slots: np.ndarray
    """Hash table that finds a living edge by its nodes (`pairs`). Also an edge that has moved or died keeps its slot:
    one of its former nodes is gone, and nothing looks for it there."""
    taken: np.ndarray
    """One number: slots that hold an edge."""
    quantile: int
    """In percent; 0 for the mean."""
    sums: np.ndarray
    """Sum of the affinities of each edge, for the mean only."""
    entries: np.ndarray
    """`bin` and `amount` of each entry of a histogram, rising in bin, and the `following` one or -1."""
    heads: np.ndarray
    """First edge of each bin of the queue, -1 if it is empty; an edge is in one bin at most."""
    tails: np.ndarray
    lowest: np.ndarray
    """One number: no bin below it holds an edge."""


def agglomerate(
    rag: Rag, thresholds: Sequence[float], score: Score = "max50", *, frozen: np.ndarray | None = None
) -> dict[float, Lut]:
    """Merge edges in the order of their score (1 - affinity) while it is below a threshold: threshold -> table.

    All thresholds come from one pass; each result is that of the threshold alone. `frozen` (n,), bool, are nodes that
    are left as they are.
    """
    rag.check()
    if frozen is not None and frozen.shape != rag.nodes.shape:
        raise InputError(f"frozen has shape {list(frozen.shape)}, expected {list(rag.nodes.shape)}: one for each node")
    ordered = sorted(thresholds)
    state = _start(rag, score, np.zeros(rag.nodes.size, bool) if frozen is None else frozen)
    roots = merge_edges(state, np.array(ordered, np.float32))
    return {threshold: Lut(rag.nodes, rag.nodes[root]) for threshold, root in zip(ordered, roots, strict=True)}


def _start(rag: Rag, score: Score, frozen: np.ndarray) -> State:
    """The graph before any edge is merged; numbers of nodes, edges and entries take four bytes where they fit."""
    if score.startswith("max"):
        rag = highest_alone(rag)
    num_nodes, num_edges = rag.nodes.size, len(rag.edges)
    index = np.dtype(np.int32 if max(num_nodes, 2 * num_edges, rag.bins.size) < 2**31 else np.int64)
    halves = np.empty(2 * num_edges, [("node", index), ("after", index)])
    halves["node"] = np.searchsorted(rag.nodes, rag.edges.ravel())
    numbers = [("count", np.int64), ("entry", index), ("behind", index)]
    edge = np.dtype([*numbers, ("score", np.float32), ("dead", bool), ("stale", bool)], align=True)
    entry = np.dtype([("amount", np.int64), ("following", index), ("bin", np.uint8)], align=True)
    state = State(
        halves=halves,
        first=np.full(num_nodes, -1, index),
        degrees=np.zeros(num_nodes, index),
        labels=np.arange(num_nodes, dtype=index),
        frozen=frozen,
        edges=np.zeros(num_edges, edge),
        slots=np.empty(pair_table.capacity(2 * num_edges), index),
        taken=np.zeros(1, np.int64),
        quantile=0 if score == "mean" else int(score[-2:]),
        sums=rag.sums / 255 if score == "mean" else np.zeros(0),
        entries=np.empty(0 if score == "mean" else rag.bins.size, entry),
        heads=np.full(NUM_BINS, -1, index),
        tails=np.full(NUM_BINS, -1, index),
        lowest=np.zeros(1, np.int64),
    )
    if score == "mean":
        state.edges["count"] = rag.counts
        return state
    if rag.starts[-1] == 0 < num_edges:
        raise InputError("this graph was made without histograms, which the score needs: run rag again")
    state.entries["amount"], state.entries["bin"] = rag.amounts, rag.bins
    state.entries["following"] = np.arange(1, rag.bins.size + 1)
    state.entries["following"][rag.starts[1:] - 1] = -1
    state.edges["entry"] = rag.starts[:-1]
    state.edges["count"] = np.add.reduceat(state.entries["amount"], rag.starts[:-1])
    return state


@loop
def merge_edges(state, thresholds):
    """Root (smallest node index) of each node at each of the rising thresholds."""
    for half in range(len(state.halves)):
        _link(state, half, state.halves[half].node)
    for e in range(len(state.edges)):
        _push(state, e)
    _fill_slots(state)
    parents = np.arange(len(state.labels))
    roots = np.empty((len(thresholds), len(parents)), state.labels.dtype)
    for number, threshold in enumerate(thresholds):
        e = _top(state)
        while e >= 0 and state.edges[e].score < threshold:
            edge = state.edges[e]
            state.heads[_bin(edge.score)] = edge.behind
            a, b = _ends(state, e)
            if edge.dead or state.frozen[a] or state.frozen[b]:
                pass
            elif edge.stale:
                _push(state, e)
            else:
                one, two = state.labels[a], state.labels[b]
                parents[max(one, two)] = min(one, two)
                contract_edge(state, e)
            e = _top(state)
        for node in range(len(parents)):  # a parent is smaller, so it has its root already
            parents[node] = parents[parents[node]]
        roots[number] = parents
    return roots


@inner
def _ends(state, e):
    return state.halves[2 * e].node, state.halves[2 * e + 1].node


@inner
def _link(state, half, node):
    state.halves[half].node = node
    state.halves[half].after = state.first[node]
    state.first[node] = half
    state.degrees[node] += 1


@inner
def _fill_slots(state):
    """Give every living edge a slot of its own."""
    state.slots[:] = pair_table.FREE
    state.taken[0] = 0
    for e in range(len(state.edges)):
        if not state.edges[e].dead:
            _place(state, e, _find(state, *_ends(state, e)))


@inner
def _find(state, one, two):
    """Slot of the living edge between two nodes, or the free one that it may take."""
    mask = len(state.slots) - 1
    slot = pair_table.home(min(one, two), max(one, two), mask)
    while state.slots[slot] != pair_table.FREE:
        e = state.slots[slot]
        a, b = _ends(state, e)
        if ((a == one and b == two) or (a == two and b == one)) and not state.edges[e].dead:
            break
        slot = (slot + 1) & mask
    return slot


@inner
def _place(state, e, slot):
    if state.slots[slot] == pair_table.FREE:
        state.taken[0] += 1
    state.slots[slot] = e


@inner
def contract_edge(state, e):
    """Merge the nodes of an edge: the one with more ends takes those of the other, whichever keeps its label.

    Of two edges to one neighbour, the one with the lower score absorbs the other; on a tie, it is the edge of the node
    with the larger label.
    """
    a, b = _ends(state, e)
    if state.degrees[a] < state.degrees[b]:
        a, b = b, a
    state.edges[e].dead = True
    if 2 * (state.taken[0] + state.degrees[b]) > len(state.slots):
        _fill_slots(state)
    later = state.first[b]
    while later >= 0:
        half, later = later, state.halves[later].after
        moved = half // 2
        if state.edges[moved].dead:
            continue
        slot = _find(state, a, state.halves[half ^ 1].node)
        other = state.slots[slot]
        if other != pair_table.FREE:
            mine, theirs = state.edges[moved].score, state.edges[other].score
            if mine > theirs or (mine == theirs and state.labels[a] > state.labels[b]):
                _absorb(state, other, moved)
                continue
            _absorb(state, moved, other)
        _link(state, half, a)
        _place(state, moved, slot)
    state.labels[a] = min(state.labels[a], state.labels[b])


@inner
def _absorb(state, kept, gone):
    """Give an edge the affinities of another, which is dead from then on."""
    edge, source = state.edges[kept], state.edges[gone]
    source.dead, edge.stale = True, True
    edge.count += source.count
    if not state.quantile:
        state.sums[kept] += state.sums[gone]
        return
    # The histograms, two chains of entries that rise in bin, become one.
    entries, one, two = state.entries, edge.entry, source.entry
    edge.entry = two if entries[two].bin < entries[one].bin else one
    last = -1
    while one >= 0:
        if two >= 0 and entries[two].bin < entries[one].bin:
            one, two = two, one
        entry, one = one, entries[one].following
        if last >= 0 and entries[last].bin == entries[entry].bin:
            entries[last].amount += entries[entry].amount
        else:
            if last >= 0:
                entries[last].following = entry
            last = entry
            if two < 0:
                return  # what follows is in order
        if one < 0:
            one, two = two, -1
    entries[last].following = -1


@inner
def _bin(score):
    return min(max(int(score * np.float32(NUM_BINS)), 0), NUM_BINS - 1)


@inner
def _push(state, e):
    """Score an edge (1 - affinity, in single precision) and put it at the end of its bin."""
    edge = state.edges[e]
    if state.quantile:
        pivot = state.quantile * edge.count // 100 + 1
        entry = state.entries[edge.entry]
        seen = entry.amount
        while seen < pivot:
            entry = state.entries[entry.following]
            seen += entry.amount
        edge.score = np.float32(1 - (entry.bin + 0.5) / NUM_BINS)
    else:
        edge.score = np.float32(1) - np.float32(state.sums[e] / edge.count)
    edge.stale, edge.behind = False, -1
    place = _bin(edge.score)
    if state.heads[place] < 0:
        state.heads[place] = e
    else:
        state.edges[state.tails[place]].behind = e
    state.tails[place] = e
    state.lowest[0] = min(state.lowest[0], place)


@inner
def _top(state):
    """First edge of the lowest bin, -1 if there is none."""
    while state.lowest[0] < NUM_BINS and state.heads[state.lowest[0]] < 0:
        state.lowest[0] += 1
    return state.heads[state.lowest[0]] if state.lowest[0] < NUM_BINS else -1
