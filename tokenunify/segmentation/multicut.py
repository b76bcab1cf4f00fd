"""Multicut of the graph: the partition with the lowest sum of the costs of cut edges.

cost = (log((1 - q) / q) + log((1 - beta) / beta)) * size / max(size), where q = 0.998 p + 0.001 and p is the mean of
1 - affinity over the edge's voxel pairs, size their number. Positive costs attract.

Lifted edges, between fragments that do not touch, have the same cost, of their long-range affinities, with the largest
size among themselves: elf, too, scales each kind of edges by itself. They are cut where their fragments are in
different segments; what joins a segment are the graph's own edges.
"""

from itertools import pairwise

import bioimage_cpp as bic
import numpy as np
from bioimage_cpp.graph import lifted_multicut as lmc

from tokenunify.config import Solver
from tokenunify.errors import InputError
from tokenunify.kernels import ids
from tokenunify.segmentation import lut
from tokenunify.segmentation.graph import Rag

NODES_OF_SLAB = 4096
"""Fragments of a sub-problem of the decomposed solver."""


def agglomerate(rag: Rag, beta: float = 0.5, solver: Solver = "kernighan-lin", lifted: Rag | None = None) -> lut.Lut:
    """Table of the solver's partition; a higher beta cuts more. Kernighan-Lin starts from the greedy solution.

    `lifted` are the edges between fragments that do not touch: `lifted.apart`.
    """
    rag.check()
    if lifted is not None and not ids.find(lifted.edges, rag.nodes)[1].all():
        raise InputError("lifted edges join fragments that the graph lacks: they are of other fragments")
    if not len(rag.edges):
        return lut.from_groups(rag.nodes, np.arange(rag.nodes.size))
    problem = _indexed(rag, rag.nodes, beta)
    far = _indexed(lifted, rag.nodes, beta) if lifted is not None and len(lifted.edges) else None
    return lut.from_groups(rag.nodes, solve(rag.nodes.size, *problem, solver, far))


def _indexed(graph: Rag, nodes: np.ndarray, beta: float) -> tuple[np.ndarray, np.ndarray]:
    """Edges (m, 2) between indices of the sorted nodes, and their costs (m,)."""
    return np.searchsorted(nodes, graph.edges).astype(np.uint64), costs(graph, beta)


def costs(rag: Rag, beta: float = 0.5) -> np.ndarray:
    """Cost (m,), float64, of cutting each edge."""
    boundary = 0.998 * (1 - rag.mean_affinities()) + 0.001
    sizes = rag.counts / max(1, rag.counts.max(initial=0))
    return (np.log((1 - boundary) / boundary) + np.log((1 - beta) / beta)) * sizes


def energy(rag: Rag, table: lut.Lut, beta: float = 0.5, lifted: Rag | None = None) -> float:
    """Sum of the costs of the edges, lifted ones included, that the table cuts: what the solvers keep low."""
    segments = table.apply(rag.edges)
    near = float(costs(rag, beta)[segments[:, 0] != segments[:, 1]].sum())
    return near if lifted is None else near + energy(lifted, table, beta)


SOLVERS = {
    "kernighan-lin": bic.graph.multicut.KernighanLinMulticut,
    "greedy-additive": bic.graph.multicut.GreedyAdditiveMulticut,
}
LIFTED_SOLVERS = {
    "kernighan-lin": lmc.LiftedKernighanLinMulticut,
    "greedy-additive": lmc.LiftedGreedyAdditiveMulticut,
}


def solve(
    num_nodes: int,
    edges: np.ndarray,
    costs: np.ndarray,
    solver: Solver,
    lifted: tuple[np.ndarray, np.ndarray] | None = None,
) -> np.ndarray:
    """Group (n,) of each node of a graph with unique, sorted edges (m, 2), u < v, between node indices.

    `lifted` are other pairs (k, 2) and what it costs to have their nodes in different groups (k,); `decomposed` has no
    form for them. `fusion-moves` starts from Kernighan-Lin's solution and fuses it with proposals: those of the greedy
    solver on noisy costs, from fixed seeds. These know the graph's own edges only, the fusion knows the lifted ones.
    """
    if solver == "decomposed":
        assert lifted is None, "the configuration refuses it"
        return _decomposed(num_nodes, edges, costs)
    graph = bic.graph.UndirectedGraph.from_unique_edges(num_nodes, edges)
    if lifted is None:
        near = bic.graph.multicut.MulticutObjective(graph, costs)
        if solver in SOLVERS:
            return SOLVERS[solver]().optimize(near)
        noisy = bic.graph.multicut.GreedyAdditiveProposalGenerator(seed=0)
        fusion = bic.graph.multicut.FusionMoveMulticut(proposal_generator=noisy)
        return bic.graph.multicut.ChainedMulticutSolvers([SOLVERS["kernighan-lin"](), fusion]).optimize(near)
    far = lmc.LiftedMulticutObjective(graph, costs, lifted_uvs=lifted[0], lifted_costs=lifted[1])
    if solver in LIFTED_SOLVERS:
        return LIFTED_SOLVERS[solver]().optimize(far)
    kernighan_lin = LIFTED_SOLVERS["kernighan-lin"]
    noisy = lmc.GreedyAdditiveProposalGenerator(seed=0)
    fusion = lmc.FusionMoveLiftedMulticut(proposal_generator=noisy, sub_solver=kernighan_lin())
    return lmc.LiftedChainedSolvers([kernighan_lin(), fusion]).optimize(far)


def _decomposed(num_nodes: int, edges: np.ndarray, costs: np.ndarray) -> np.ndarray:
    """Merge what both the greedy solution and those of the volume's slabs join, and solve the far smaller rest.

    Slabs instead of blocks (Pape et al. 2017), fused with the greedy proposal (Beier et al. 2015), which mends their
    faces. Nodes are sorted by their first voxel, so that consecutive ones are a slab.
    """
    slabs = np.arange(num_nodes) // NODES_OF_SLAB
    inside = np.flatnonzero(slabs[edges[:, 0]] == slabs[edges[:, 1]])
    limits = np.searchsorted(slabs[edges[inside, 0]], np.arange(slabs[-1] + 2))  # edges are sorted by their first node
    in_slabs = np.empty(num_nodes, np.int64)
    for slab, (start, end) in enumerate(pairwise(limits)):
        first, last = slab * NODES_OF_SLAB, min(num_nodes, (slab + 1) * NODES_OF_SLAB)
        own = inside[start:end]
        in_slabs[first:last] = first + _solved(last - first, edges[own] - np.uint64(first), costs[own])
    greedy = solve(num_nodes, edges, costs, "greedy-additive")
    _, groups = np.unique(np.stack([in_slabs, greedy], axis=1), axis=0, return_inverse=True)
    ends = np.sort(groups[edges], axis=1)
    between = ends[:, 0] != ends[:, 1]
    merged, order, starts = ids.group_pairs(ends[between].astype(np.uint64))
    sums = np.add.reduceat(costs[between][order], starts) if starts.size else np.zeros(0)
    return _solved(groups.max() + 1, merged, sums)[groups]


def _solved(num_nodes: int, edges: np.ndarray, costs: np.ndarray) -> np.ndarray:
    """Groups by Kernighan-Lin, which takes no graph without edges."""
    return solve(num_nodes, edges, costs, "kernighan-lin") if len(edges) else np.arange(num_nodes)
