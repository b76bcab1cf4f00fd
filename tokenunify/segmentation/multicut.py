"""Multicut of the graph: the partition with the lowest sum of the costs of cut edges.

cost = (log((1 - q) / q) + log((1 - beta) / beta)) * size / max(size), where q = 0.998 p + 0.001 and p is the mean of
1 - affinity over the edge's voxel pairs, size their number. Positive costs attract.
"""

from itertools import pairwise

import bioimage_cpp as bic
import numpy as np

from tokenunify import ids
from tokenunify.config import Solver
from tokenunify.segmentation import lut
from tokenunify.segmentation.graph import Rag

NODES_OF_SLAB = 4096
"""Fragments of a sub-problem of the decomposed solver."""


def agglomerate(rag: Rag, beta: float = 0.5, solver: Solver = "kernighan-lin") -> lut.Lut:
    """Table of the solver's partition; a higher beta cuts more. Kernighan-Lin starts from the greedy solution."""
    if not len(rag.edges):
        return lut.from_groups(rag.nodes, np.arange(rag.nodes.size))
    pairs = np.searchsorted(rag.nodes, rag.edges).astype(np.uint64)
    return lut.from_groups(rag.nodes, solve(rag.nodes.size, pairs, costs(rag, beta), solver))


def costs(rag: Rag, beta: float = 0.5) -> np.ndarray:
    """Cost (m,), float64, of cutting each edge."""
    boundary = 0.998 * (1 - rag.mean_affinities()) + 0.001
    sizes = rag.counts / max(1, rag.counts.max(initial=0))
    return (np.log((1 - boundary) / boundary) + np.log((1 - beta) / beta)) * sizes


def energy(rag: Rag, table: lut.Lut, beta: float = 0.5) -> float:
    """Sum of the costs of the edges that the table cuts: what the solvers keep low."""
    segments = table.segments[np.searchsorted(table.fragments, rag.edges)]
    return float(costs(rag, beta)[segments[:, 0] != segments[:, 1]].sum())


def solve(num_nodes: int, edges: np.ndarray, costs: np.ndarray, solver: Solver) -> np.ndarray:
    """Group (n,) of each node of a graph with unique, sorted edges (m, 2), u < v, between node indices."""
    if solver == "decomposed":
        return _decomposed(num_nodes, edges, costs)
    graph = bic.graph.UndirectedGraph.from_unique_edges(num_nodes, edges)
    return SOLVERS[solver]().optimize(bic.graph.multicut.MulticutObjective(graph, costs))


def _fusion_moves() -> bic.graph.multicut.MulticutSolver:
    """Proposals by the greedy solver on noisy costs, from fixed seeds, fused with the best partition so far."""
    proposals = bic.graph.multicut.GreedyAdditiveProposalGenerator(seed=0)
    moves = bic.graph.multicut.FusionMoveMulticut(proposal_generator=proposals)
    return bic.graph.multicut.ChainedMulticutSolvers([bic.graph.multicut.KernighanLinMulticut(), moves])


SOLVERS = {
    "kernighan-lin": bic.graph.multicut.KernighanLinMulticut,
    "greedy-additive": bic.graph.multicut.GreedyAdditiveMulticut,
    "fusion-moves": _fusion_moves,
}


def _decomposed(num_nodes: int, edges: np.ndarray, costs: np.ndarray) -> np.ndarray:
    """Merge what both the greedy solution and those of the volume's slabs join, and solve the far smaller rest.

    Slabs instead of blocks (Pape et al. 2017), fused with the greedy proposal (Beier et al. 2015), which mends their
    faces.
    """
    proposals = _in_slabs(num_nodes, edges, costs), solve(num_nodes, edges, costs, "greedy-additive")
    _, groups = np.unique(np.stack(proposals, axis=1), axis=0, return_inverse=True)
    ends = np.sort(groups[edges], axis=1)
    between = ends[:, 0] != ends[:, 1]
    merged, order, starts = ids.group_pairs(ends[between].astype(np.uint64))
    sums = np.add.reduceat(costs[between][order], starts) if starts.size else np.zeros(0)
    return _solved(groups.max() + 1, merged, sums)[groups]


def _in_slabs(num_nodes: int, edges: np.ndarray, costs: np.ndarray) -> np.ndarray:
    """Groups of slabs that are solved each by itself; nodes are sorted by first voxel: consecutive ones are a slab."""
    slabs = np.arange(num_nodes) // NODES_OF_SLAB
    inside = np.flatnonzero(slabs[edges[:, 0]] == slabs[edges[:, 1]])
    limits = np.searchsorted(slabs[edges[inside, 0]], np.arange(slabs[-1] + 2))  # edges are sorted by their first node
    groups = np.empty(num_nodes, np.int64)
    for slab, (start, end) in enumerate(pairwise(limits)):
        first, last = slab * NODES_OF_SLAB, min(num_nodes, (slab + 1) * NODES_OF_SLAB)
        own = inside[start:end]
        groups[first:last] = first + _solved(last - first, edges[own] - np.uint64(first), costs[own])
    return groups


def _solved(num_nodes: int, edges: np.ndarray, costs: np.ndarray) -> np.ndarray:
    return solve(num_nodes, edges, costs, "kernighan-lin") if len(edges) else np.arange(num_nodes)
