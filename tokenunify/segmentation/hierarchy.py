"""Agglomeration of a graph that does not fit into memory: close to `waterz.agglomerate` of the whole, not equal.

The graphs of parts are put together two by two, as a binary tree. In each graph but the last, pairs of fragments that
score below a limit are merged first. Fragments that another part knows too stay as they are until all their parts are
together; so what is merged has all its statistics, and an edge that two graphs have is still as it was collected.
"""

from collections.abc import Sequence
from typing import cast

import numpy as np

from tokenunify.config import Score
from tokenunify.segmentation import graph, waterz
from tokenunify.segmentation.graph import Rag, Stored
from tokenunify.segmentation.lut import Lut


def agglomerate(
    parts: Sequence[Rag | Stored], thresholds: Sequence[float], score: Score, limit: float
) -> dict[float, Lut]:
    """Table at each threshold, none below the limit, from the graphs of parts; exact if there is one part."""
    tree = Tree(parts, score, limit)
    tables = waterz.agglomerate(tree.gather(0, len(parts)), thresholds, tree.score)
    return {threshold: tree.whole(table) for threshold, table in tables.items()}


class Tree:
    """The fragments of all parts, and what they have been merged with."""

    def __init__(self, parts: Sequence[Rag | Stored], score: Score, limit: float):
        self.parts, self.limit = parts, limit
        self.keep_highest = score.startswith("max")
        self.score = cast(Score, score.replace("max", "hist"))  # an edge's entry is its highest level, until pooled
        self.nodes = graph.union(part.nodes for part in parts)
        self.first = np.full(self.nodes.size, len(parts))
        self.last = np.full(self.nodes.size, -1)
        for number, part in enumerate(parts):
            index = np.searchsorted(self.nodes, part.nodes)
            self.first[index] = np.minimum(self.first[index], number)
            self.last[index] = number
        self.parents = np.arange(self.nodes.size)
        self.most_edges = 0
        """Edges of the largest graph so far."""

    def gather(self, start: int, stop: int) -> Rag:
        """The graph of consecutive parts, contracted if there are others."""
        if stop - start == 1:
            found = graph.merge([self.parts[start]])
            if self.keep_highest:
                found = graph.highest_alone(found)
        else:
            middle = (start + stop) // 2
            found = graph.merge([self.gather(start, middle), self.gather(middle, stop)])
            if self.keep_highest:
                astride = (self.first < middle) & (self.last >= middle)  # so they were frozen in both halves
                shared = np.all(astride[np.searchsorted(self.nodes, found.edges)], axis=1)
                found = graph.highest_alone(found, shared)
        self.most_edges = max(self.most_edges, len(found.edges))
        if stop - start == len(self.parts):
            return found
        index = np.searchsorted(self.nodes, found.nodes)
        frozen = (self.first[index] < start) | (self.last[index] >= stop)
        table = waterz.agglomerate(found, [self.limit], self.score, frozen=frozen)[self.limit]
        self.parents[index] = np.searchsorted(self.nodes, table.segments)
        return graph.contract(found, table.segments)

    def whole(self, table: Lut) -> Lut:
        """The table of all fragments, from that of the last graph's nodes."""
        parents = self.parents.copy()
        parents[np.searchsorted(self.nodes, table.fragments)] = np.searchsorted(self.nodes, table.segments)
        while not np.array_equal(roots := parents[parents], parents):
            parents = roots
        return Lut(self.nodes, self.nodes[roots])
