"""Region adjacency graph of the fragments, with statistics that add up over blocks: the same for any blocking.

An edge joins two fragments that touch by a face. The pair of voxel p and its lower neighbour belongs to p's block and
has the affinity of p's channel z, y or x; no edge touches id 0.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np

from tokenunify.config import NEAREST
from tokenunify.errors import InputError
from tokenunify.geometry import Blocks, Coordinate, Roi, check_shapes
from tokenunify.kernels import ids, pair_table
from tokenunify.kernels.compiled import loop
from tokenunify.segmentation import lifted
from tokenunify.segmentation.graph import Rag, Stored, from_pairs, merge
from tokenunify.stages.sections import Rag as Section
from tokenunify.store import arrays, blockwise, forms, manifest

LIFTED = "lifted"
"""Folder of the graphs of long-range pairs, in that of the rag."""


def from_arrays(
    affinities: np.ndarray, fragments: np.ndarray, offsets: Sequence[Coordinate] = NEAREST, *, histograms: bool = True
) -> Rag:
    """Graph of arrays in memory.

    affinities (c, z, y, x): uint8, or floats that are binned as waterz does; `offsets` are those of the channels and
    must contain the three nearest neighbours. fragments (z, y, x): integer ids, 0 is none. Raises InputError for
    arrays of other types, or that do not belong together.
    """
    check(affinities, fragments, offsets)
    ids.check_ids("fragments", fragments)
    order = [[tuple(offset) for offset in offsets].index(nearest) for nearest in NEAREST]
    z, y, x = fragments.shape
    return of_block(levels(affinities[order]), fragments, Roi((0, 0, 0), (z, y, x)), histograms=histograms)


def check(affinities: Any, fragments: Any, offsets: Sequence[Coordinate]) -> None:
    """Refuse affinities (c, z, y, x) and fragments (z, y, x), arrays or stores, that do not belong together."""
    if lacking := [nearest for nearest in NEAREST if nearest not in map(tuple, offsets)]:
        raise InputError(f"offsets lack {lacking[0]}: the graph needs the nearest neighbours, {list(NEAREST)}")
    if len(affinities.shape) != 4 or affinities.shape[0] != len(offsets):
        raise InputError(
            f"affinities have shape {list(affinities.shape)}, expected (c, z, y, x) with a channel for each of "
            f"{len(offsets)} offsets; give the offsets of their channels"
        )
    check_shapes("fragments", fragments.shape, "the affinities", affinities.shape[1:])


def levels(affinities: np.ndarray) -> np.ndarray:
    """Affinities as levels 0..255: uint8 as it is; of floats the bin floor(256 a), so that v / 255 is level v."""
    if affinities.dtype == np.uint8:
        return affinities
    if affinities.dtype.kind != "f":
        raise InputError(f"affinities must be uint8 or floats in [0, 1], found {affinities.dtype}; convert them")
    scaled = np.clip(np.nan_to_num(affinities.astype(np.float32), nan=0), 0, 1) * np.float32(256)
    return np.minimum(scaled, 255).astype(np.uint8)


def of_block(affinities: Any, fragments: Any, roi: Roi, *, histograms: bool = True, threads: int = 1) -> Rag:
    """Graph of the voxels in a box of a volume and their lower neighbours; each thread takes some sections.

    affinities (c, z, y, x), uint8, nearest neighbours first, and fragments (z, y, x): the volume's arrays or stores.
    """
    (z, y, x), outer = roi.shape, roi.grow((1, 1, 1), (0, 0, 0), fragments.shape)
    grey, names = affinities[(slice(0, 3), *outer.slices)], fragments[outer.slices].astype(np.uint64, copy=False)
    slabs = Blocks(roi.shape, (ceil(z / threads), y, x))

    def collected(index: int) -> Rag:
        box = tuple((axis.start, axis.stop) for axis in slabs.roi(index).moved(roi.offset).within(outer))
        return from_pairs(*collect_faces(grey, names, box, histograms))

    if len(slabs) == 1:
        return collected(0)
    with ThreadPoolExecutor(threads) as pool:
        return merge(list(pool.map(collected, range(len(slabs)))))


@loop
def collect_faces(
    affinities: np.ndarray, fragments: np.ndarray, box: tuple[tuple[int, int], ...], histograms: bool
) -> tuple:
    """Count the pairs of the voxels in a box with their lower neighbours, which the arrays hold outside it, too.

    The voxels of a fragment are counted as its pair with itself. Returns what `from_pairs` takes.
    """
    (z0, z1), (y0, y1), (x0, x1) = box
    found, entries = pair_table.table(3), pair_table.table(1)
    last = np.zeros(3, np.int64)  # row of the last pair along each axis: often the next one's
    for z in range(z0, z1):
        for y in range(y0, y1):
            found, entries = pair_table.with_room(found, 4 * (x1 - x0)), pair_table.with_room(entries, 3 * (x1 - x0))
            collect_row(affinities, fragments, (z, y), (x0, x1), histograms, found, entries, last)
    rows, amounts = pair_table.used(entries)
    return (*pair_table.used(found), rows, amounts[:, 0])


@loop
def collect_row(
    affinities: np.ndarray,
    fragments: np.ndarray,
    place: tuple[int, int],
    columns: tuple[int, int],
    histograms: bool,
    found: Any,
    entries: Any,
    last: np.ndarray,
) -> None:
    """Count the pairs of a row; apart, so that the tables are passed on once per row: threads would wait for it."""
    z, y = place
    row = fragments[z, y]
    below = fragments[z - 1, y] if z else np.zeros_like(row)
    beside = fragments[z, y - 1] if y else np.zeros_like(row)
    start, stop = columns
    for x in range(start, stop):
        here, before = row[x], row[x - 1] if x else np.uint64(0)
        if x + 1 == stop or row[x + 1] != here:
            if here != 0:
                found.values[pair_table.row(found, here, here), 0] += np.uint64(x + 1 - start)
            start = x + 1
        if here == 0 or (below[x] == here and beside[x] == here and before == here):
            continue
        for axis, there in enumerate((below[x], beside[x], before)):
            if there == here or there == 0:
                continue
            level = affinities[axis, z, y, x]
            last[axis] = pair_table.count(found, last[axis], min(here, there), max(here, there), level)
            if histograms:
                entries.values[pair_table.row(entries, last[axis], level), 0] += np.uint64(1)


def load(part_manifest: Path) -> Rag:
    """The whole volume's graph, from the manifest of any of its parts."""
    return merge(parts(part_manifest))


def parts(part_manifest: Path) -> list[Stored]:
    """The graphs of all parts, to be read, from the manifest of any of them.

    Reading raises InputError naming a part's file that is missing or damaged.
    """
    return _parts(part_manifest, "")


def lifted_parts(part_manifest: Path) -> list[Stored]:
    """The same of the graphs of long-range pairs (see `lifted`), which a rag that was asked for them has."""
    return _parts(part_manifest, LIFTED)


def _parts(part_manifest: Path, kind: str) -> list[Stored]:
    made = manifest.read(part_manifest, forms.Graph)
    folder, number = Path(part_manifest).parent / made["content"]["store"] / kind, made["run"]["num_parts"]
    remake = f"delete {part_manifest} and the manifests beside it and run snakemake again"
    return [Stored(_merged(folder, part, number), remake) for part in range(number)]


def _block(folder: Path, index: int) -> Path:
    return folder / "blocks" / f"{index}.npz"


def _merged(folder: Path, part: int, num_parts: int) -> Path:
    return folder / "merged" / f"part{part}of{num_parts}.npz"


def run(
    section: Section,
    plain: dict,
    *,
    affinities: Path,
    fragments: Path,
    output: Path,
    part: tuple[int, int],
    threads: int,
) -> None:
    """Write the graph of each block of a part as `blocks/{index}.npz`, and that of the part in `merged/`.

    Those of long-range pairs, where they are asked for, lie in `lifted/` in the same way.
    """
    source = arrays.open_prepared(affinities, forms.Affinities)
    labels = arrays.open_prepared(fragments, forms.Fragments)
    offsets = source.attrs.get("offsets", NEAREST)
    check(source, labels, offsets)
    z, y, x = labels.shape
    inputs = {"affinities": manifest.content_hash(affinities), "fragments": manifest.content_hash(fragments)}
    folder = blockwise.store_folder(output, "rag", plain, inputs)
    blocks = Blocks((z, y, x), section.block_shape)

    def process(index: int, roi: Roi) -> None:
        rag = of_block(source, labels, roi, histograms=section.histograms, threads=threads)
        arrays.write_npz(_block(folder, index), **vars(rag))
        if section.lifted:
            linked = lifted.of_block(source, labels, roi, offsets, threads=threads)
            arrays.write_npz(_block(folder / LIFTED, index), **vars(linked))

    run = blockwise.run_part(folder, blocks, process, part=part[0], num_parts=part[1])
    for place in (folder, folder / LIFTED) if section.lifted else (folder,):
        try:  # an earlier attempt may have written it
            arrays.read_npz(_merged(place, *part), "it is made again")
        except InputError:
            remake = f"delete {place} and the rag's manifests and run snakemake again"
            graphs = [Stored(_block(place, index), remake) for index in blocks.part(*part)]
            arrays.write_npz(_merged(place, *part), **vars(merge(graphs)))
    content = {"store": folder.name, "blocks": len(blocks), "inputs": inputs}
    manifest.write(output, content, {**run, "num_parts": part[1]})
