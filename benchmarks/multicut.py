"""Multicut of a phantom's graph: energy and time of every solver next to elf's Kernighan-Lin with the same costs.

`python benchmarks/multicut.py PART.json` takes a finished run's graph, by the manifest of one of its parts.
"""

import sys
import time
from pathlib import Path
from typing import get_args

import numpy as np
from bioimage_cpp.graph import UndirectedGraph
from elf.segmentation.multicut import multicut_kernighan_lin

from tokenunify.config import Fragments, Solver
from tokenunify.data.phantom import phantom
from tokenunify.segmentation import fragments, graph, multicut, rag
from tokenunify.segmentation.baseline import lower_of_pairs, smooth
from tokenunify.store import arrays

SHAPE = (48, 384, 384)
BETA = 0.5


def built_in() -> graph.Rag:
    """The graph of a phantom's fragments."""
    raw, _ = phantom.generate(SHAPE, seed=5)
    affinities = lower_of_pairs(np.rint(smooth(raw, (0.5, 2.0, 2.0))).astype(np.uint8))
    return rag.from_arrays(affinities, fragments.watershed(arrays.to_float(affinities), Fragments()), histograms=False)


def run_peer(num_nodes: int, edges: np.ndarray, costs: np.ndarray) -> np.ndarray:
    """The whole-volume solver of elf."""
    return multicut_kernighan_lin(UndirectedGraph.from_unique_edges(num_nodes, edges), costs)


def main(words: list[str]) -> None:
    """Print the table."""
    found = rag.load(Path(words[0])) if words else built_in()
    edges, costs = np.searchsorted(found.nodes, found.edges).astype(np.uint64), multicut.costs(found, BETA)
    print(f"multicut of {found.nodes.size} fragments, {len(edges)} edges, beta {BETA}")
    best = seconds_of_peer = None
    for solver in ("elf", *get_args(Solver)):
        started = time.perf_counter()
        given = found.nodes.size, edges, costs
        groups = run_peer(*given) if solver == "elf" else multicut.solve(*given, solver)
        seconds = time.perf_counter() - started
        energy = costs[groups[edges[:, 0]] != groups[edges[:, 1]]].sum()
        best, seconds_of_peer = best or energy, seconds_of_peer or seconds
        above, speed = (energy - best) / abs(best), seconds_of_peer / seconds
        print(f"  {solver:16} energy {energy:.4f} ({above:+.3%} of elf's), {seconds:.2f} s ({speed:.1f} x its speed)")


if __name__ == "__main__":
    main(sys.argv[1:])
