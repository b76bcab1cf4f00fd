"""Fragments to segments: our graph and merging next to `waterz.agglomerate` on the whole volume.

    python benchmarks/agglomeration.py [AFFINITIES.zarr FRAGMENTS.zarr]

compares them on the stores of a finished run, else on a phantom with smoothed raw for affinities. Ours is collected by
blocks, merged by parts, and gives a table of fragment -> segment for each threshold, waterz gives a segmentation.
"""

import os
import sys
import tempfile
import timeit
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import islice, pairwise
from math import ceil
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import psutil
import waterz as peer

from tokenunify.config import Fragments
from tokenunify.data.phantom import phantom
from tokenunify.evaluation import metrics
from tokenunify.geometry import Blocks, Coordinate
from tokenunify.kernels import ids
from tokenunify.segmentation import fragments, graph, hierarchy, rag, waterz
from tokenunify.segmentation.baseline import lower_of_pairs, smooth
from tokenunify.segmentation.lut import Lut
from tokenunify.store import arrays, manifest

SHAPE = (48, 384, 384)
BLOCKINGS = [(32, 128, 128), (7, 210, 97), (64, 64, 400)]
THRESHOLDS = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
HISTOGRAM = "OneMinus<HistogramQuantileAffinity<RegionGraphType, {}, ScoreValue, 256{}>>"
SCORES = {
    **{f"max{quantile}": HISTOGRAM.format(quantile, "") for quantile in (25, 50, 75)},
    **{f"hist{quantile}": HISTOGRAM.format(quantile, ", false") for quantile in (25, 50, 75)},
}


@contextmanager
def silence():
    """Send what compiled code prints to nowhere."""
    kept, nothing = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nothing)


def run_peer(affinities: np.ndarray, labels: np.ndarray, score: str) -> Iterator[np.ndarray]:
    """Segmentations by waterz, which compiles a score on its first call; each is overwritten by the next."""
    arguments = {"fragments": labels.copy(), "scoring_function": SCORES[score], "discretize_queue": 256}
    return peer.agglomerate(arrays.to_float(affinities), THRESHOLDS, **arguments)


def time_peer(affinities: np.ndarray, labels: np.ndarray) -> None:
    """Make and drop the segmentations."""
    with silence():
        for _ in run_peer(affinities, labels, "max50"):
            pass


def parts_of(affinities: np.ndarray, labels: np.ndarray, block_shape: Coordinate, *, number=4, **options) -> list:
    """Graphs of parts, merged from those of their blocks."""
    blocks = Blocks(labels.shape, block_shape)
    found = (rag.of_block(affinities, labels, blocks.roi(index), **options) for index in range(len(blocks)))
    return [graph.merge(list(islice(found, len(blocks.part(part, number))))) for part in range(number)]


def time_ours(affinities: np.ndarray, labels: np.ndarray, threads: int) -> dict[float, Lut]:
    """Tables of fragment -> segment by the graph."""
    sections = (ceil(len(labels) / 2), *labels.shape[1:])  # blocks as for fragments of sections
    parts = parts_of(affinities, labels, sections, number=2, histograms=False, threads=threads)
    return waterz.agglomerate(graph.merge(parts), THRESHOLDS)


def seconds(function: Callable, *arguments, repeat: int) -> float:
    """The least of some times."""
    return min(timeit.repeat(partial(function, *arguments), number=1, repeat=repeat))


def differences(affinities: np.ndarray, labels: np.ndarray, graphs: list[graph.Rag], score: str) -> list[float]:
    """VOI between waterz's segmentations and ours, of each blocking and threshold; 0 where they are identical."""
    ours = [waterz.agglomerate(found, THRESHOLDS, score) for found in graphs]
    found = []
    with silence():
        for threshold, theirs in zip(THRESHOLDS, run_peer(affinities, labels, score), strict=True):
            for segmentation in (tables[threshold].apply(labels) for tables in ours):
                equal = np.array_equal(segmentation, theirs)
                found.append(0.0 if equal else metrics.scores(segmentation, theirs)["voi"])
    return found


def built_in() -> tuple[np.ndarray, np.ndarray]:
    """Smoothed raw for affinities, and their watershed."""
    raw, _ = phantom.generate(SHAPE, seed=5)
    affinities = lower_of_pairs(np.rint(smooth(raw, (0.5, 2.0, 2.0))).astype(np.uint8))
    return affinities, fragments.watershed(arrays.to_float(affinities), Fragments()).astype(np.uint64)


def stored(*paths: str) -> tuple[np.ndarray, np.ndarray]:
    """Affinities and fragments of a run, with compact ids: waterz's memory goes with the largest."""
    affinities, labels = (arrays.open_complete(path, "run the workflow again")[:] for path in paths)
    values, index = ids.compact(labels)
    return affinities[:3], index.astype(np.uint64) + np.uint64(values[0] > 0)


def write_parts(folder: Path, num_edges: int, entries: int) -> None:
    """Graphs of four parts, in files; each node has edges to some of the next ones, a tenth are in two parts."""
    random = np.random.default_rng(0)
    for part in range(4):
        nodes = np.arange(part * num_edges // 16, part * num_edges // 16 + num_edges * 11 // 160, dtype=np.uint64)
        steps = np.array([1, 2, 40, 1000], np.uint64)
        edges = np.stack(np.broadcast_arrays(nodes[:, None], nodes[:, None] + steps), axis=2).reshape(-1, 2)
        counts = random.integers(1, 100, len(edges)).astype(np.uint64)
        bins = np.tile(np.linspace(0, 255, entries).astype(np.uint8), len(edges))
        arrays.write_npz(
            folder / f"{part}.npz",
            nodes=np.union1d(nodes, edges),
            sizes=np.ones(np.union1d(nodes, edges).size, np.uint64),
            edges=edges,
            counts=counts,
            sums=counts * np.uint64(100),
            highest=random.integers(0, 256, len(edges)).astype(np.uint8),
            starts=np.arange(len(edges) + 1) * entries,
            bins=bins,
            amounts=random.integers(1, 9, bins.size).astype(np.uint64),
        )


def peaks(folder: Path, score: str) -> tuple[int, list[float]]:
    """Edges of the graph of the parts in a folder; bytes per edge that loading it, and then merging, take at most."""
    parts = [graph.Stored(path, "") for path in sorted(folder.glob("*.npz"))]
    waterz.agglomerate(rag.from_arrays(*phantom_corner()), [0.5], score)  # compiles
    before = psutil.Process().memory_info().rss
    found = graph.merge(parts)
    loaded = 2**20 * manifest.peak_mb()
    waterz.agglomerate(found, [0.5], score)
    agglomerated = 2**20 * manifest.peak_mb()
    return len(found.edges), [(peak - before) / len(found.edges) for peak in (loaded, agglomerated)]


def phantom_corner() -> tuple[np.ndarray, np.ndarray]:
    """A few voxels."""
    return np.zeros((3, 1, 2, 8), np.uint8), np.arange(1, 17, dtype=np.uint64).reshape(1, 2, 8)


def print_memory(score: str, num_edges: int, entries: int) -> None:
    """Measure in a process of its own."""
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(1, get_context("spawn")) as child:
        write_parts(Path(folder), num_edges, entries)
        number, (loaded, agglomerated) = child.submit(peaks, Path(folder), score).result()
    what = f"  bytes per edge at most, {number} edges" + (f" of {entries} levels" if entries else "")
    print(f"{what}, {score}: {loaded:.0f} to load, {agglomerated:.0f} to agglomerate")


def between(one: Lut, two: Lut, sizes: np.ndarray) -> float:
    """VOI between two segmentations of the same fragments."""
    return metrics.scores_of(metrics.merge([metrics.Contingency(one.segments, two.segments, sizes, sizes)]))["voi"]


def print_hierarchy(parts: list[graph.Rag]) -> None:
    """How far merging in parts first is from the exact result, and what it saves."""
    whole = graph.merge(parts)
    exact = waterz.agglomerate(whole, THRESHOLDS)
    steps = [f"{between(exact[a], exact[b], whole.sizes):.2f}" for a, b in pairwise(THRESHOLDS)]
    print(f"  max50, VOI between exact results of one threshold and the next: {' '.join(steps)}")
    names = np.random.default_rng(0).permutation(whole.nodes)
    renamed = waterz.agglomerate(graph.contract(whole, names), THRESHOLDS)
    ties = [f"{between(exact[t], Lut(names, table.apply(names)), whole.sizes):.2f}" for t, table in renamed.items()]
    print(f"  between exact results of two numberings of the fragments, which decide ties: {' '.join(ties)}")
    for limit in (0.1, 0.2, 0.3):
        tree = hierarchy.Tree(parts, "max50", limit)
        thresholds = [threshold for threshold in THRESHOLDS if threshold >= limit]
        tables = waterz.agglomerate(tree.gather(0, len(parts)), thresholds, tree.score)
        voi = [f"{between(exact[t], tree.whole(table), whole.sizes):.2f}" for t, table in tables.items()]
        print(
            f"  hierarchy {limit}, {len(parts)} parts: at most {tree.most_edges} edges in a graph instead of "
            f"{len(whole.edges)}, VOI to the exact results from {limit} on: {' '.join(voi)}"
        )


def main(*paths: str) -> None:
    """Print the comparisons."""
    affinities, labels = stored(*paths) if paths else built_in()
    graphs = [graph.merge(parts_of(affinities, labels, block_shape)) for block_shape in BLOCKINGS]
    print(f"agglomeration of {labels.shape} voxels, {graphs[0].nodes.size} fragments, {len(graphs[0].edges)} edges")
    for score in SCORES:
        voi = max(differences(affinities, labels, graphs, score))
        result = f"VOI up to {voi:.2g}" if voi else "equal"
        print(f"  {score}: {len(THRESHOLDS)} thresholds, {len(BLOCKINGS)} blockings: {result}")
    repeat = 1 if paths else 3
    theirs = seconds(time_peer, affinities, labels, repeat=repeat)
    for threads in (1, 2):
        ours = seconds(time_ours, affinities, labels, threads, repeat=repeat)
        print(f"  waterz {theirs:.2f} s, ours {ours:.2f} s, {threads} thread(s): {theirs / ours:.2f} x its speed")
    print_hierarchy(parts_of(affinities, labels, BLOCKINGS[0], number=8))
    print_memory("max50", 5_000_000, 0)
    print_memory("hist50", 1_000_000, 20)


if __name__ == "__main__":
    main(*sys.argv[1:])
