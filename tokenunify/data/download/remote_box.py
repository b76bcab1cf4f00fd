"""Copy a box of a remote array into a sharded zarr of its own, block by block; a killed copy goes on at the next."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import zarr

from tokenunify.config import FileSource, RoiConfig
from tokenunify.data import local_files, retry
from tokenunify.data.download import checksum, remote_array, remote_hdf5
from tokenunify.data.download.job import Fetched, File, Job
from tokenunify.data.download.remote_array import FAULTS, Remote
from tokenunify.data.formats import absent, tensorstore_access
from tokenunify.data.formats.absent import Count
from tokenunify.data.read_errors import told
from tokenunify.errors import InputError
from tokenunify.geometry import Blocks, Roi
from tokenunify.store import arrays, blockwise, manifest

Found = TypeVar("Found")

CHUNK_SHAPE = (32, 64, 64)
SHARD_SHAPE = (64, 512, 512)
"""Also the unit that is fetched, written and recorded: 16 M voxels."""
PLACE = "box"
"""Attribute of the copy: which box of the source it is."""


def fetch(file: File, job: Job) -> Fetched:
    """A zarr of the volume's roi, and which box of the array that is."""
    assert isinstance(file, FileSource)
    return fetch_box(file, job.section.roi, job, file.allow_missing)


def fetch_box(file: FileSource, roi: RoiConfig | None, job: Job, allow_missing: float) -> Fetched:
    """A zarr of the box `roi`, or of all; InputError where more than the share `allow_missing` of it is absent.

    The manifest records `offset` and `shape` of the box and the `whole` source's shape; where the source lacks some of
    the box, `absent` is that Count.
    """
    assert file.url is not None
    target = job.target({**identity(file, job), "roi": roi and roi.model_dump()}, "box.zarr")
    with checksum.once(file.url, target, file.sha256, lambda made: local_files.checksum(made, "zarr")) as kept:
        if kept.missing:
            local_files.check_links(tensorstore_access.local(file.url))
            source = open_source(file, job)
            box = Roi((0, 0, 0), source.shape) if roi is None else Roi(roi.offset, roi.shape)
            if any(e > n for e, n in zip(box.end, source.shape, strict=True)):
                raise InputError(
                    f"roi offset {list(box.offset)} shape {list(box.shape)} ends at {list(box.end)}, outside "
                    f"{source.address} of shape {list(source.shape)}; correct roi in the configuration"
                )
            copy(source, box, target, allow_missing)
    place = zarr.open_array(str(target), mode="r").attrs[PLACE]
    absent.check(file.url, Count(*place.get("absent", (0, 0))), allow_missing)
    return Fetched(str(target), kept.sha256, {"format": "zarr", "dataset": None, "box": place})


def identity(file: FileSource, job: Job) -> dict:
    """What tells a remote array apart."""
    size = None if file.dataset else job.section.voxel_size_nm
    return {"url": file.url, "dataset": file.dataset, "format": file.format, "size": size}


def open_source(file: FileSource, job: Job) -> Remote:
    """Open the array; nothing but what describes it is read. InputError tells why it cannot be."""
    if file.partial:
        return remote_hdf5.open_ranged(file, job.throttle)
    return remote_array.open_remote(file, job.section.voxel_size_nm, job.throttle)


def copy(source: Remote, box: Roi, target: Path, allow_missing: float) -> None:
    """Make the zarr `target` of a box of the source.

    Raises InputError for a source that changed since the copy began, for one that cannot be read, and as soon as more
    than the share `allow_missing` of the box is absent.
    """
    partial, progress = (target.with_name(f"{target.name}{ending}") for ending in (".partial", ".progress"))
    record = progress / "source.json"
    state = {"identity": source.identity, "shape": list(source.shape), "dtype": str(source.dtype)}
    if not record.exists():
        manifest.write_text(record, json.dumps(state))
    elif json.loads(record.read_text(encoding="utf-8")) != state:
        raise InputError(
            f"{source.address} changed since its download began; delete {partial} and {progress} to begin anew"
        )
    if (partial / "zarr.json").exists():
        array = arrays.reopen(partial, f"delete {partial} and run snakemake again")
    else:
        place = {"offset": list(box.offset), "shape": list(box.shape), "whole": list(source.shape)}
        stated = {"voxel_size_nm": list(source.voxel_size_nm)} if source.voxel_size_nm else {}
        array = arrays.create(
            partial,
            shape=box.shape,
            dtype=source.dtype.name,
            chunk_shape=CHUNK_SHAPE,
            shard_shape=SHARD_SHAPE,
            attributes={PLACE: place, **stated},
        )
    counted = _Counted(source, box, progress / "absent", allow_missing)

    def write(block: Roi, values: np.ndarray) -> None:
        array[block.slices] = values

    blockwise.run_part(progress, Blocks(box.shape, SHARD_SHAPE), counted.read, write=write, written=array)
    if counted.found.absent:
        array.attrs[PLACE] = {**array.attrs[PLACE], "absent": list(counted.found)}
    for stray in partial.rglob("*.partial"):
        stray.unlink()
    os.replace(partial, target)
    checksum.remove(progress)


class _Counted:
    """Reads blocks of a box and counts what the source lacks of them, in a folder, so that a killed copy goes on."""

    def __init__(self, source: Remote, box: Roi, folder: Path, allow_missing: float):
        self.source, self.box, self.folder, self.allow_missing = source, box, folder, allow_missing
        self.whole = source.absence.size(box) if source.absence else Count(0, 0)
        self.by_block = {path.stem: int(path.read_text(encoding="ascii")) for path in folder.glob("*.txt")}

    @property
    def found(self) -> Count:
        """What the source lacks of the blocks that were read so far."""
        return self.whole._replace(absent=sum(self.by_block.values()))

    def read(self, index: int, block: Roi) -> np.ndarray:
        """The voxels of a block; InputError as soon as too many are absent."""
        place, absence = block.moved(self.box.offset), self.source.absence
        values = read_box(self.source, place)
        if absence is not None and (
            number := _tried(self.source.address, lambda: absence.absent_of_block(values, place, self.box))
        ):
            manifest.write_text(self.folder / f"{index}.txt", str(number))
            self.by_block[str(index)] = number
        found = self.found
        if found.absent > self.allow_missing * found.total:
            absent.check(f"{self.source.address}, as far as it was read", found, self.allow_missing)
        return values


def read_box(source: Remote, box: Roi) -> np.ndarray:
    """The voxels of a box, tried again after passing faults."""
    return _tried(source.address, lambda: np.asarray(source.data[box.slices]))


def _tried(address: str, ask: Callable[[], Found]) -> Found:
    attempts = retry.Attempts(address, "read", told)
    while True:
        try:
            return ask()
        except InputError:
            raise
        except FAULTS as error:
            attempts.failed(error)
