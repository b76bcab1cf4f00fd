"""Agglomeration of the graph with the exact rules of waterz 0.10 (256-bin queue): equal partitions, equal ids.

score "max50" is waterz's `OneMinus<HistogramQuantileAffinity<RegionGraphType, 50, ScoreValue, 256>>`: every edge starts
with its highest affinity alone, merged edges pool theirs and are scored with the median. "hist50" is the same with
`256, false` at the end: every edge starts with all its affinities. Other numbers are other quantiles. "mean" is
`OneMinus<MeanAffinity<RegionGraphType, ScoreValue>>`, from exact sums in place of waterz's running float32 mean.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numba import njit

from tokenunify import pairs
from tokenunify.config import Score
from tokenunify.errors import InputError
from tokenunify.segmentation.graph import Rag, highest_alone
from tokenunify.segmentation.lut import Lut

NUM_BINS = 256


class State(NamedTuple):
    """The graph while it is contracted: e is an edge, half-edge 2e + side its end at node ends[e, side]."""

    ends: np.ndarray
    first: np.ndarray
    """First half-edge of each node, -1 if it has none; the others follow through `after`."""
    after: np.ndarray
    degrees: np.ndarray
    """Half-edges of each node, dead ones included."""
    labels: np.ndarray
    """The smallest node that each living node has absorbed, itself included."""
    frozen: np.ndarray
    """Whether a node must stay as it is."""
    slots: np.ndarray
    keys: np.ndarray
    """The living edges' nodes, and the table that finds an edge by them: `pairs`."""
    quantile: int
    """In percent; 0 for the mean."""
    sums: np.ndarray
    """Sum of the affinities of each edge, for the mean only."""
    counts: np.ndarray
    """Number of affinities that each edge's score is made of."""
    entries: np.ndarray
    """First of the pooled (bin, amount) entries of each edge, rising in bin; the others follow through `following`."""
    following: np.ndarray
    bins: np.ndarray
    amounts: np.ndarray
    scores: np.ndarray
    dead: np.ndarray
    stale: np.ndarray
    """Whether an edge has changed since it was scored."""
    heads: np.ndarray
    """First edge of each bin of the queue, -1 if it is empty, others stand `behind`; an edge is in one bin at most."""
    tails: np.ndarray
    behind: np.ndarray
    lowest: np.ndarray
    """One number: no bin below it holds an edge."""


def agglomerate(
    rag: Rag, thresholds: Sequence[float], score: Score = "max50", *, frozen: np.ndarray | None = None
) -> dict[float, Lut]:
    """Merge edges in the order of their score (1 - affinity) while it is below a threshold: threshold -> table.

    All thresholds come from one pass; each result is that of the threshold alone. `frozen` (n,), bool, are nodes that
    are left as they are.
    """
    ordered = sorted(thresholds)
    state = _start(rag, score, np.zeros(rag.nodes.size, bool) if frozen is None else frozen)
    roots = _merge(state, np.array(ordered, np.float32))
    return {threshold: Lut(rag.nodes, rag.nodes[root]) for threshold, root in zip(ordered, roots, strict=True)}


def _start(rag: Rag, score: Score, frozen: np.ndarray) -> State:
    """The graph before any edge is merged; numbers of nodes, edges and entries take four bytes where they fit."""
    if score.startswith("max"):
        rag = highest_alone(rag)
    num_nodes, num_edges = rag.nodes.size, len(rag.edges)
    index = np.dtype(np.int32 if max(num_nodes, 2 * num_edges, rag.bins.size) < 2**31 else np.int64)
    ends = np.searchsorted(rag.nodes, rag.edges).astype(index)
    return State(
        ends=ends,
        first=np.full(num_nodes, -1, index),
        after=np.empty(2 * num_edges, index),
        degrees=np.zeros(num_nodes, index),
        labels=np.arange(num_nodes, dtype=index),
        frozen=frozen,
        slots=np.full(pairs.capacity(num_edges), pairs.FREE, index),
        keys=ends.copy(),
        **(_means(rag, index) if score == "mean" else _histograms(rag, index, int(score[-2:]))),
        scores=np.empty(num_edges, np.float32),
        dead=np.zeros(num_edges, bool),
        stale=np.zeros(num_edges, bool),
        heads=np.full(NUM_BINS, -1, index),
        tails=np.full(NUM_BINS, -1, index),
        behind=np.empty(num_edges, index),
        lowest=np.zeros(1, np.int64),
    )


def _means(rag: Rag, index: np.dtype) -> dict:
    none = np.zeros(0, index)
    chains = {"entries": none, "following": none, "bins": np.zeros(0, np.uint8), "amounts": np.zeros(0, np.int64)}
    return {"quantile": 0, "sums": rag.sums / 255, "counts": rag.counts.astype(np.int64), **chains}


def _histograms(rag: Rag, index: np.dtype, quantile: int) -> dict:
    if rag.starts[-1] == 0 < len(rag.edges):
        raise InputError("this graph was made without histograms, which the score needs: run rag again")
    amounts, firsts = rag.amounts.astype(np.int64), rag.starts[:-1]
    following = np.arange(1, amounts.size + 1, dtype=index)
    following[rag.starts[1:] - 1] = -1
    chains = {"entries": firsts.astype(index), "following": following, "bins": rag.bins, "amounts": amounts}
    return {"quantile": quantile, "sums": np.zeros(0), "counts": np.add.reduceat(amounts, firsts), **chains}


@njit(cache=True)
def _merge(state, thresholds):
    """Root (smallest node index) of each node at each of the rising thresholds."""
    for e in range(len(state.ends)):
        for side in range(2):
            _link(state, 2 * e + side, state.ends[e, side])
        state.slots[_find(state, state.ends[e, 0], state.ends[e, 1])] = e
        _push(state, e)
    parents = np.arange(len(state.labels))
    roots = np.empty((len(thresholds), len(parents)), state.ends.dtype)
    for number, threshold in enumerate(thresholds):
        e = _top(state)
        while e >= 0 and state.scores[e] < threshold:
            state.heads[_bin(state.scores[e])] = state.behind[e]
            a, b = state.ends[e, 0], state.ends[e, 1]
            if state.dead[e] or state.frozen[a] or state.frozen[b]:
                pass
            elif state.stale[e]:
                _push(state, e)
            else:
                one, two = state.labels[a], state.labels[b]
                parents[max(one, two)] = min(one, two)
                _contract(state, e)
            e = _top(state)
        for node in range(len(parents)):  # a parent is smaller, so it has its root already
            parents[node] = parents[parents[node]]
        roots[number] = parents
    return roots


@njit(cache=True)
def _link(state, half, node):
    state.ends[half // 2, half % 2] = node
    state.after[half] = state.first[node]
    state.first[node] = half
    state.degrees[node] += 1


@njit(cache=True)
def _key(one, two):
    return min(one, two), max(one, two)


@njit(cache=True)
def _find(state, one, two):
    """Slot of the edge between two nodes."""
    return pairs.find(state.slots, state.keys, min(one, two), max(one, two))


@njit(cache=True)
def _contract(state, e):
    """Merge the nodes of an edge: the one with more edges takes those of the other, whichever keeps its label."""
    a, b = state.ends[e, 0], state.ends[e, 1]
    if state.degrees[a] < state.degrees[b]:
        a, b = b, a
    state.dead[e] = True
    _forget(state, e)
    half = state.first[b]
    while half >= 0:
        later = state.after[half]
        if not state.dead[half // 2]:
            _attach(state, half, a, state.labels[a] < state.labels[b])
        half = later
    state.labels[a] = min(state.labels[a], state.labels[b])


@njit(cache=True)
def _forget(state, e):
    """Take an edge out of the table."""
    pairs.remove(state.slots, state.keys, _find(state, state.ends[e, 0], state.ends[e, 1]))


@njit(cache=True)
def _attach(state, half, a, larger):
    """Move an end of an edge to node a; of two edges to one neighbour, that of the lower score absorbs the other.

    On a tie it is the edge of the node with the larger label: `larger` tells whether that is the one moved.
    """
    e, side = half // 2, half % 2
    neighbour = state.ends[e, 1 - side]
    _forget(state, e)
    slot = _find(state, a, neighbour)
    if state.slots[slot] != pairs.FREE:
        other = state.slots[slot]
        if state.scores[e] > state.scores[other] or (state.scores[e] == state.scores[other] and not larger):
            _absorb(state, other, e)
            return
        _absorb(state, e, other)
    _link(state, half, a)
    state.keys[e] = _key(a, neighbour)
    state.slots[slot] = e


@njit(cache=True)
def _absorb(state, kept, gone):
    """Give an edge what another has."""
    state.dead[gone], state.stale[kept] = True, True
    state.counts[kept] += state.counts[gone]
    if state.quantile:
        state.entries[kept] = _pool(state, state.entries[kept], state.entries[gone])
    else:
        state.sums[kept] += state.sums[gone]


@njit(cache=True)
def _pool(state, one, two):
    """Merge two rising chains of entries into one, whose first entry is returned."""
    head = last = -1
    while one >= 0 or two >= 0:
        if one < 0 or (two >= 0 and state.bins[two] < state.bins[one]):
            one, two = two, one
        entry, one = one, state.following[one]
        if last >= 0 and state.bins[last] == state.bins[entry]:
            state.amounts[last] += state.amounts[entry]
            continue
        if last >= 0:
            state.following[last] = entry
        else:
            head = entry
        last = entry
    state.following[last] = -1
    return head


@njit(cache=True)
def _score(state, e):
    """1 - affinity of an edge, in single precision."""
    if not state.quantile:
        return np.float32(1) - np.float32(state.sums[e] / state.counts[e])
    pivot = state.quantile * state.counts[e] // 100 + 1
    entry = state.entries[e]
    seen = state.amounts[entry]
    while seen < pivot:
        entry = state.following[entry]
        seen += state.amounts[entry]
    return np.float32(1 - (state.bins[entry] + 0.5) / NUM_BINS)


@njit(cache=True)
def _bin(score):
    return min(max(int(score * np.float32(NUM_BINS)), 0), NUM_BINS - 1)


@njit(cache=True)
def _push(state, e):
    """Score an edge and put it at the end of its bin."""
    state.scores[e], state.stale[e], state.behind[e] = _score(state, e), False, -1
    place = _bin(state.scores[e])
    if state.heads[place] < 0:
        state.heads[place] = e
    else:
        state.behind[state.tails[place]] = e
    state.tails[place] = e
    state.lowest[0] = min(state.lowest[0], place)


@njit(cache=True)
def _top(state):
    """First edge of the lowest bin, -1 if there is none."""
    while state.lowest[0] < NUM_BINS and state.heads[state.lowest[0]] < 0:
        state.lowest[0] += 1
    return state.heads[state.lowest[0]] if state.lowest[0] < NUM_BINS else -1
