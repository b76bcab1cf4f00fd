"""Which of its places a sampled region takes: the first that is not blank."""

import json
import logging
from collections import Counter
from collections.abc import Iterable
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import zarr

from tokenunify.config import FileSource, RoiConfig
from tokenunify.data.download import checksum, remote_array, remote_box
from tokenunify.data.download.job import Fetched, File, Job
from tokenunify.data.download.remote_array import Remote
from tokenunify.errors import InputError
from tokenunify.geometry import Blocks, Coordinate, Roi
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


def fetch(file: File, job: Job) -> Fetched:
    """A zarr of the first place of the region that is not blank, and which box of the array that is."""
    assert isinstance(file, FileSource)
    # How much of it is blank has been judged, which allows for what is absent.
    return remote_box.fetch_box(file, choose(file, job), job, allow_missing=1.0)


def choose(file: FileSource, job: Job) -> RoiConfig:
    """The first place of the region that is not blank; InputError where all are.

    A place is looked at in the preview first, and only one that is not blank there is fetched, as a zarr, and judged.
    What was found is kept in a file: nothing is looked at again.
    """
    sample = job.section.sample
    assert sample is not None
    record = job.target({**remote_box.identity(file, job), "sample": sample.model_dump()}, "places.json")
    preview = cache(partial(find_preview, file, job))
    record.parent.mkdir(parents=True, exist_ok=True)
    with file_lock.alone(record.with_name(f".{record.name}.lock")):
        judged = json.loads(record.read_text(encoding="utf-8")) if record.exists() else []
        for number, offset in enumerate(sample.places):
            roi = RoiConfig(offset=offset, shape=sample.shape)
            if number == len(judged):
                seen, share = preview(), 0.0
                if seen is not None:
                    share = commonest([remote_box.read_box(seen.level, seen.scaled(Roi(offset, sample.shape)))])
                if share <= sample.max_blank:
                    path = Path(remote_box.fetch_box(file, roi, job, allow_missing=1.0).path)
                    array, blocks = zarr.open_array(str(path), mode="r"), Blocks(sample.shape, remote_box.SHARD_SHAPE)
                    share = commonest(np.asarray(array[blocks.roi(index).slices]) for index in range(len(blocks)))
                    if share > sample.max_blank:
                        checksum.remove(path)
                judged.append(share)
                manifest.write_text(record, json.dumps(judged))
                logger.info("%s: %.0f %% of place %d have one value", list(offset), 100 * judged[number], number)
            if judged[number] <= sample.max_blank:
                return roi
    raise InputError(
        f"all {len(judged)} places of this region are blank: of the best, {100 * min(judged):.0f} % of the voxels have "
        f"one value, max_blank allows {100 * sample.max_blank:.0f} %; give the sample another seed or a larger "
        "max_blank, or the volume a roi that leaves out what is blank"
    )


def find_preview(file: FileSource, job: Job) -> Preview | None:
    """The coarsest level in which a place still has enough voxels to be judged; None where there is none."""
    sample = job.section.sample
    assert sample is not None
    if file.partial:
        return None  # an HDF5 file has one level
    whole = remote_box.open_source(file, job).shape
    for level in remote_array.open_coarser(file, job.section.voxel_size_nm, job.throttle):
        preview = Preview(level, whole)
        if preview.scaled(Roi((0, 0, 0), sample.shape)).num_voxels >= PREVIEW_VOXELS:
            return preview
    return None


def commonest(pieces: Iterable[np.ndarray]) -> float:
    """Share of the voxels that have the commonest value."""
    counts: Counter = Counter()
    for piece in pieces:
        values, numbers = np.unique(piece, return_counts=True)
        counts.update(dict(zip(values.tolist(), numbers.tolist(), strict=True)))
    return max(counts.values()) / counts.total()
