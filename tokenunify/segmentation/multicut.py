"""Multicut of the graph: the partition with the lowest sum of the costs of cut edges.

cost = (log((1 - q) / q) + log((1 - beta) / beta)) * size / max(size), where q = 0.998 p + 0.001 and p is the mean of
1 - affinity over the edge's voxel pairs, size their number. Positive costs attract.
"""

from typing import Literal

import bioimage_cpp as bic
import numpy as np

from tokenunify.segmentation import lut
from tokenunify.segmentation.graph import Rag

Solver = Literal["kernighan-lin", "greedy-additive"]


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


def solve(num_nodes: int, edges: np.ndarray, costs: np.ndarray, solver: Solver) -> np.ndarray:
    """Group (n,) of each node of a graph with unique, sorted edges (m, 2), u < v, between node indices."""
    graph = bic.graph.UndirectedGraph.from_unique_edges(num_nodes, edges)
    objective = bic.graph.multicut.MulticutObjective(graph, costs)
    if solver == "greedy-additive":
        return bic.graph.multicut.GreedyAdditiveMulticut().optimize(objective)
    return bic.graph.multicut.KernighanLinMulticut().optimize(objective)
