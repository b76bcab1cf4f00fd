"""Region adjacency graph of the fragments, with statistics that add up over blocks: the same for any blocking.

An edge joins two fragments that touch by a face. The pair of voxel p and its lower neighbour belongs to p's block and
has the affinity of p's channel z, y or x; no edge touches id 0.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numba import njit

from tokenunify import arrays, blockwise, ids, manifest, pairs
from tokenunify.config import NEAREST
from tokenunify.geometry import Blocks, Coordinate, Roi
from tokenunify.stages import Rag as Section


@dataclass(frozen=True)
class Rag:
    """Nodes and edges of the graph; affinities are counted in levels 0..255."""

    nodes: np.ndarray
    """Sorted fragment ids (n,), uint64, isolated ones included."""
    sizes: np.ndarray
    """Voxels of each node (n,), uint64."""
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

    def mean_affinities(self) -> np.ndarray:
        """Mean affinity of each edge in [0, 1], float64."""
        return self.sums / (255 * self.counts)


def from_arrays(
    affinities: np.ndarray, fragments: np.ndarray, offsets: Sequence[Coordinate] = NEAREST, *, histograms: bool = True
) -> Rag:
    """Graph of arrays in memory.

    affinities (c, z, y, x): uint8, or floats that are binned as waterz does; `offsets` are those of the channels and
    must contain the three nearest neighbours. fragments (z, y, x): integer ids, 0 is none.
    """
    order = [[tuple(offset) for offset in offsets].index(nearest) for nearest in NEAREST]
    inner = tuple(slice(0, size) for size in fragments.shape)
    return _owned(levels(affinities[order]), fragments.astype(np.uint64, copy=False), inner, histograms=histograms)


def levels(affinities: np.ndarray) -> np.ndarray:
    """Affinities as levels 0..255: uint8 as it is; of floats the bin floor(256 a), so that v / 255 is level v."""
    if affinities.dtype == np.uint8:
        return affinities
    scaled = np.clip(np.nan_to_num(affinities.astype(np.float32), nan=0), 0, 1) * np.float32(256)
    return np.minimum(scaled, 255).astype(np.uint8)


def _owned(affinities: np.ndarray, fragments: np.ndarray, inner: tuple[slice, ...], *, histograms: bool) -> Rag:
    """Graph of the voxels in `inner` and their lower neighbours (the arrays hold those outside, too)."""
    box = tuple((axis.start, axis.stop) for axis in inner)
    keys, values, entries, amounts = _collect(affinities, fragments, box, histograms)
    order = np.lexsort((keys[:, 1], keys[:, 0]))
    alone = keys[order, 0] == keys[order, 1]
    nodes, edges = order[alone], order[~alone]
    place = np.empty(len(keys), np.int64)
    place[edges] = np.arange(edges.size)
    levels = (place[entries[:, 0].astype(np.int64)] << 8) | entries[:, 1].astype(np.int64)
    entry_order = np.argsort(levels)
    return Rag(
        nodes=keys[nodes, 0],
        sizes=values[nodes, 0],
        edges=keys[edges],
        counts=values[edges, 0],
        sums=values[edges, 1],
        highest=values[edges, 2].astype(np.uint8),
        starts=np.searchsorted(levels[entry_order] >> 8, np.arange(edges.size + 1)),
        bins=(levels[entry_order] & 255).astype(np.uint8),
        amounts=amounts[entry_order, 0],
    )


@njit(cache=True, nogil=True)
def _collect(affinities, fragments, box, histograms):
    """Count the pairs of neighbouring fragments, and the voxels of each as its pair with itself; in any order.

    Returns the pairs' ids (n, 2) and count, sum and highest level (n, 3), and of the histograms' entries the row of
    the pair and the level (k, 2) and the count (k, 1).
    """
    (z0, z1), (y0, y1), (x0, x1) = box
    found, entries = pairs.table(3), pairs.table(1)
    last = np.zeros(4, np.int64)  # row of the last pair along each axis, and of the last fragment: often the next one's
    for z in range(z0, z1):
        for y in range(y0, y1):
            found, entries = pairs.with_room(found, 4 * (x1 - x0)), pairs.with_room(entries, 3 * (x1 - x0))
            for x in range(x0, x1):
                here = fragments[z, y, x]
                if here == 0:
                    continue
                last[3] = _count(found, last[3], here, here, 0)
                for axis, there in enumerate(_lower_neighbours(fragments, z, y, x)):
                    if there == here or there == 0:
                        continue
                    level = affinities[axis, z, y, x]
                    last[axis] = _count(found, last[axis], min(here, there), max(here, there), level)
                    if histograms:
                        entries.values[pairs.row(entries, last[axis], level), 0] += np.uint64(1)
    return (*pairs.used(found), *pairs.used(entries))


@njit(cache=True)
def _lower_neighbours(fragments, z, y, x):
    """Fragments of the voxels below along z, y and x, 0 outside the volume."""
    outside = np.uint64(0)
    return (
        fragments[z - 1, y, x] if z else outside,
        fragments[z, y - 1, x] if y else outside,
        fragments[z, y, x - 1] if x else outside,
    )


@njit(cache=True)
def _count(found, guess, u, v, level):
    """Count a pair of voxels; returns the row of u and v."""
    row = guess
    if row >= found.size[0] or found.keys[row, 0] != u or found.keys[row, 1] != v:
        row = pairs.row(found, u, v)
    values = found.values[row]
    values[0] += np.uint64(1)
    values[1] += np.uint64(level)
    values[2] = max(values[2], np.uint64(level))
    return row


def merge(rags: Sequence[Rag]) -> Rag:
    """The graph of all parts together, whatever their order."""
    joined = {f.name: np.concatenate([getattr(rag, f.name) for rag in rags]) for f in fields(Rag)}
    order = np.argsort(joined["nodes"], kind="stable")
    nodes = joined["nodes"][order]
    firsts = ids.run_starts(nodes)
    edges, edge_order, starts = ids.group_pairs(joined["edges"])
    index = np.empty(edge_order.size, np.int64)
    index[edge_order] = np.repeat(np.arange(starts.size), np.diff(starts, append=edge_order.size))
    lengths = np.concatenate([np.diff(rag.starts) for rag in rags])
    keys = (np.repeat(index, lengths) << 8) | joined["bins"]  # of the entries: their edge and level
    entry_order = np.argsort(keys, kind="stable")
    entries = ids.run_starts(keys[entry_order])
    keys = keys[entry_order][entries]
    return Rag(
        nodes=nodes[firsts],
        sizes=_reduce(np.add, joined["sizes"][order], firsts),
        edges=edges,
        counts=_reduce(np.add, joined["counts"][edge_order], starts),
        sums=_reduce(np.add, joined["sums"][edge_order], starts),
        highest=_reduce(np.maximum, joined["highest"][edge_order], starts),
        starts=np.searchsorted(keys >> 8, np.arange(starts.size + 1)),
        bins=(keys & 255).astype(np.uint8),
        amounts=_reduce(np.add, joined["amounts"][entry_order], entries),
    )


def merge_all(rags: Iterable[Rag]) -> Rag:
    """The graph of all blocks, read one after the other.

    As a binary counter carries, graphs of equally many blocks are merged at once: few are held at any time, and an edge
    is copied once per doubling.
    """
    waiting: list[tuple[int, Rag]] = []
    for rag in rags:
        blocks = 1
        while waiting and waiting[-1][0] == blocks:
            blocks, rag = 2 * blocks, merge([waiting.pop()[1], rag])
        waiting.append((blocks, rag))
    while len(waiting) > 1:
        _, rag = waiting.pop()
        waiting.append((0, merge([waiting.pop()[1], rag])))
    return waiting[0][1]


def _reduce(function: np.ufunc, values: np.ndarray, starts: np.ndarray) -> np.ndarray:
    return function.reduceat(values, starts) if starts.size else values


def load(part_manifest: Path) -> Rag:
    """The whole volume's graph, from the manifest of any of its parts.

    Raises InputError naming a block's file that is missing or damaged.
    """
    content = manifest.content(part_manifest)
    folder = Path(part_manifest).parent / content["store"]
    remake = f"delete {folder} and the manifests beside it and run snakemake again"
    parts = (arrays.read_npz(_block(folder, index), remake) for index in range(content["blocks"]))
    return merge_all(Rag(**tables) for tables in parts)


def _block(folder: Path, index: int) -> Path:
    return folder / "blocks" / f"{index}.npz"


def run(
    section: Section, plain: dict, *, affinities: Path, fragments: Path, output: Path, part: tuple[int, int]
) -> None:
    """Write the graph of each block of a part as `blocks/{index}.npz`."""
    source, labels = arrays.open_prepared(affinities), arrays.open_prepared(fragments)
    z, y, x = labels.shape
    inputs = {"affinities": manifest.content_hash(affinities), "fragments": manifest.content_hash(fragments)}
    folder = blockwise.store_folder(output, "rag", plain, inputs)
    blocks = Blocks((z, y, x), section.block_shape)

    def process(index: int, roi: Roi) -> None:
        outer = roi.grow((1, 1, 1), (0, 0, 0), (z, y, x))
        around = source[(slice(0, 3), *outer.slices)], labels[outer.slices]
        rag = _owned(*around, roi.within(outer), histograms=section.histograms)
        arrays.write_npz(_block(folder, index), **{f.name: getattr(rag, f.name) for f in fields(Rag)})

    run = blockwise.run_part(folder, blocks, process, part=part[0], num_parts=part[1])
    manifest.write(output, {"store": folder.name, "blocks": len(blocks), "inputs": inputs}, run)
