"""Which of its places a sampled region takes: the first that is not blank."""

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import zarr

from tokenunify.config import RoiConfig
from tokenunify.data.download import checksum, remote_box
from tokenunify.data.download.remote_array import Remote
from tokenunify.errors import InputError
from tokenunify.geometry import Blocks, Coordinate, Roi
from tokenunify.stages import sections
from tokenunify.store import file_lock, manifest

logger = logging.getLogger(__name__)

PREVIEW_VOXELS = 2**12
"""Least voxels of a place in the level that is looked at first."""


class Preview(NamedTuple):
    """A coarser level of a volume of shape `whole`."""

    level: Remote
    whole: Coordinate

    def scaled(self, place: Roi) -> Roi:
        """The voxels of the level that show the place."""
        along = list(zip(place.offset, place.end, self.level.shape, self.whole, strict=True))
        z, y, x = (start * n // w for start, _, n, w in along)
        depth, height, width = (-(-end * n // w) - start * n // w for start, end, n, w in along)
        return Roi((z, y, x), (depth, height, width))


def choose(
    sample: sections.Sample,
    record: Path,
    open_preview: Callable[[], Preview | None],
    obtain: Callable[[RoiConfig], Path],
) -> RoiConfig:
    """The first place of the region that is not blank; InputError where all are.

    A place is looked at in the preview first, and only one that is not blank there is obtained, as a zarr, and judged.
    What was found is kept in `record`: nothing is looked at again.
    """
    preview = cache(open_preview)
    record.parent.mkdir(parents=True, exist_ok=True)
    with file_lock.alone(record.with_name(f".{record.name}.lock")):
        judged = json.loads(record.read_text(encoding="utf-8")) if record.exists() else []
        for number, offset in enumerate(sample.places):
            roi = RoiConfig(offset=offset, shape=sample.shape)
            if number == len(judged):
                judged.append(_blank(roi, sample.max_blank, preview(), obtain))
                manifest.write_text(record, json.dumps(judged))
                logger.info("%s: %.0f %% of place %d have one value", list(offset), 100 * judged[number], number)
            if judged[number] <= sample.max_blank:
                return roi
    raise InputError(
        f"all {len(judged)} places of this region are blank: of the best, {100 * min(judged):.0f} % of the voxels have "
        f"one value, max_blank allows {100 * sample.max_blank:.0f} %; give the sample another seed or a larger "
        "max_blank, or the volume a roi that leaves out what is blank"
    )


def find_preview(source: Remote, coarser: Iterable[Remote], shape: Coordinate) -> Preview | None:
    """The first of the levels, coarsest first, in which a box of that shape still has enough voxels to be judged."""
    for level in coarser:
        preview = Preview(level, source.shape)
        if preview.scaled(Roi((0, 0, 0), shape)).num_voxels >= PREVIEW_VOXELS:
            return preview
    return None


def _blank(roi: RoiConfig, most: float, preview: Preview | None, obtain: Callable[[RoiConfig], Path]) -> float:
    """Share of the commonest value; a box that has too much of it is not kept."""
    if preview is not None:
        shown = commonest([remote_box.read_box(preview.level, preview.scaled(Roi(roi.offset, roi.shape)))])
        if shown > most:
            return shown
    path = obtain(roi)
    array = zarr.open_array(str(path), mode="r")
    blocks = Blocks(roi.shape, remote_box.SHARD_SHAPE)
    share = commonest(np.asarray(array[blocks.roi(index).slices]) for index in range(len(blocks)))
    if share > most:
        checksum.remove(path)
    return share


def commonest(pieces: Iterable[np.ndarray]) -> float:
    """Share of the voxels that have the commonest value."""
    counts: Counter = Counter()
    for piece in pieces:
        values, numbers = np.unique(piece, return_counts=True)
        counts.update(dict(zip(values.tolist(), numbers.tolist(), strict=True)))
    return max(counts.values()) / counts.total()
