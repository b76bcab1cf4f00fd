"""Stage blockings: the difference between segmentations that differ in nothing but the blocks of their fragments.

A 3D watershed sees no further than its halo, so fragments depend on their blocks; what follows is exact for any.
"""

import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import combinations
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tokenunify.config import NEAREST, Multicut, Waterz
from tokenunify.evaluation import metrics
from tokenunify.geometry import Blocks, Coordinate, Roi, check_shapes
from tokenunify.segmentation import agglomerate, fragments, lifted, rag
from tokenunify.segmentation.graph import Rag, Stored
from tokenunify.segmentation.lut import Lut
from tokenunify.stages.sections import Blockings
from tokenunify.store import arrays, forms, manifest

logger = logging.getLogger(__name__)


class Segmented(NamedTuple):
    """A segmentation: the fragments' array (z, y, x), uint64, and the table to be applied to them."""

    fragments: arrays.zarr.Array
    lut: Lut

    def read(self, roi: Roi) -> np.ndarray:
        """Segments of a box."""
        return self.lut.apply(np.asarray(self.fragments[roi.slices]))


def compare(
    affinities: Any,
    mask: Any,
    section: Blockings,
    value: float,
    scratch: Path,
    offsets: Sequence[Coordinate] = NEAREST,
) -> list[dict]:
    """VOI (bits) and ARAND between the segmentations of every two block shapes, the second scored against the first.

    affinities (c, z, y, x), uint8, at `offsets`, nearest neighbours first, and mask (z, y, x) or None: the volume's
    arrays or stores. `value` is the threshold or beta. Fragments and graphs of blocks are kept in the folder `scratch`.
    """
    z, y, x = affinities.shape[-3:]
    if mask is not None:
        check_shapes("the mask", mask.shape, "the affinities", (z, y, x))
    made = {shape: segment(affinities, mask, section, value, shape, scratch, offsets) for shape in section.block_shapes}
    blocks = Blocks((z, y, x), section.block_shape)
    return [
        {"blocks": (one, other), **between(made[one], made[other], blocks)}
        for one, other in combinations(section.block_shapes, 2)
    ]


def segment(
    affinities: Any,
    mask: Any,
    section: Blockings,
    value: float,
    block_shape: Coordinate,
    scratch: Path,
    offsets: Sequence[Coordinate] = NEAREST,
) -> Segmented:
    """The volume's segmentation with fragments in blocks of that shape, one of them in memory at a time."""
    z, y, x = affinities.shape[-3:]
    chosen, name = section.segmentation, "x".join(map(str, block_shape))
    grid = {"chunk_shape": section.chunk_shape, "shard_shape": section.shard_shape}
    found = arrays.create(scratch / name, shape=(z, y, x), dtype="uint64", attributes={}, **grid)
    blocks = Blocks((z, y, x), block_shape)
    rois = [blocks.roi(index) for index in range(len(blocks))]
    for roi in rois:
        found[roi.slices] = fragments.of_block(affinities, mask, roi, chosen.fragments)
    histograms = isinstance(chosen, Waterz) and chosen.score.startswith("hist")
    graphs = _stored(scratch / name, rois, lambda roi: rag.of_block(affinities, found, roi, histograms=histograms))
    linked = []
    if isinstance(chosen, Multicut) and chosen.lifted:
        linked = _stored(scratch / f"{name}.lifted", rois, lambda roi: lifted.of_block(affinities, found, roi, offsets))
    table = agglomerate.luts(graphs, chosen, [value], linked)[value]
    logger.info("blocks of %s: %d, with %d fragments", name, len(blocks), table.fragments.size)
    return Segmented(found, table)


def _stored(path: Path, rois: Sequence[Roi], graph_of: Callable[[Roi], Rag]) -> list[Stored]:
    """The boxes' graphs, each in a file beside `path`."""
    graphs = [Stored(path.with_name(f"{path.name}.{index}.npz"), "run snakemake again") for index in range(len(rois))]
    for roi, graph in zip(rois, graphs, strict=True):
        arrays.write_npz(graph.path, **vars(graph_of(roi)))
    return graphs


def between(one: Segmented, other: Segmented, blocks: Blocks) -> dict[str, float]:
    """Scores of the other segmentation against the first as labels, counted block by block."""
    rois = map(blocks.roi, range(len(blocks)))
    tables = (metrics.contingency(other.read(roi), one.read(roi), roi, blocks.volume_shape) for roi in rois)
    return metrics.scores_of(metrics.without(metrics.merge(tables), 0))


@contextmanager
def scratch_beside(output: Path) -> Iterator[Path]:
    """A folder that is removed in the end; after a kill, `tokenunify clean` knows it by its name."""
    folder = output.with_name(f".{output.stem}.zarr.{os.getpid()}")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def run(section: Blockings, plain: dict, *, affinities: Path, volume: Path, lut: Path, output: Path) -> None:
    """Write the scores between the blockings, at the threshold or beta in `lut`, agglomerate's manifest."""
    started = time.monotonic()
    source, mask = arrays.open_prepared(affinities, forms.Affinities), arrays.open_volume(volume).mask
    value = manifest.content(lut, forms.Value)["value"]
    with scratch_beside(output) as scratch:
        pairs = compare(source, mask, section, value, scratch, source.attrs.get("offsets", NEAREST))
    inputs = {"affinities": affinities, "volume": volume, "lut": lut}
    hashes = {name: manifest.content_hash(path) for name, path in inputs.items()}
    voxels = len(section.block_shapes) * prod(source.shape[-3:])
    seconds = round(time.monotonic() - started, 3)
    manifest.write(output, {"value": value, "pairs": pairs, "inputs": hashes}, {"seconds": seconds, "voxels": voxels})
