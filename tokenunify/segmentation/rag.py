"""Region adjacency graph of the fragments, with statistics that add up over blocks: the same for any blocking.

An edge joins two fragments that touch by a face. The pair of voxel p and its lower neighbour belongs to p's block and
has the affinity of p's channel z, y or x; no edge touches id 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from tokenunify import arrays, blockwise, ids, manifest
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
    nodes, index = ids.compact(fragments)
    assert nodes.size <= 2**27, "a pair and its level must fit into 64 bits"
    pairs = [_pairs(affinities[axis], index, nodes, inner, axis) for axis in range(3)]
    keys = np.sort(np.concatenate(pairs))
    starts = ids.run_starts(keys >> 8)
    ends = np.append(starts, keys.size)[1:]
    own, sizes = np.unique(index[inner], return_counts=True)
    real = nodes[own] != 0
    values = (keys & 255).astype(np.uint64)
    entries = ids.run_starts(keys) if histograms else np.zeros(0, np.int64)
    return Rag(
        nodes=nodes[own][real],
        sizes=sizes[real].astype(np.uint64),
        edges=nodes[np.stack(np.divmod(keys[starts] >> 8, nodes.size), axis=1)],
        counts=(ends - starts).astype(np.uint64),
        sums=np.add.reduceat(values, starts) if keys.size else values,
        highest=values[ends - 1].astype(np.uint8),
        starts=np.searchsorted(entries, np.append(starts, keys.size)),
        bins=values[entries].astype(np.uint8),
        amounts=np.diff(entries, append=keys.size)[: entries.size].astype(np.uint64),
    )


def _pairs(levels: np.ndarray, index: np.ndarray, nodes: np.ndarray, inner: tuple[slice, ...], axis: int) -> np.ndarray:
    """Pairs along an axis that join two fragments, each as (u * n + v) * 256 + level with u and v among the n nodes."""
    here = list(inner)
    here[axis] = slice(max(1, inner[axis].start), inner[axis].stop)
    there = list(here)
    there[axis] = slice(here[axis].start - 1, here[axis].stop - 1)
    first, second = index[tuple(here)], index[tuple(there)]
    low, high = np.minimum(first, second), np.maximum(first, second)
    edge = (low != high) & (nodes[low] > 0)
    return ((low[edge] * nodes.size + high[edge]) << 8) | levels[tuple(here)][edge]


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
    return merge([Rag(**tables) for tables in parts])


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
