"""Copy a box of a remote array into a sharded zarr of its own, block by block; a killed copy goes on at the next."""

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import zarr

from tokenunify.config import RoiConfig
from tokenunify.data import retry
from tokenunify.data.download import checksum
from tokenunify.data.download.remote_array import FAULTS, Remote
from tokenunify.data.formats import absent
from tokenunify.data.formats.absent import Count
from tokenunify.data.read_errors import told
from tokenunify.errors import InputError
from tokenunify.geometry import Blocks, Roi
from tokenunify.store import arrays, blockwise, manifest

logger = logging.getLogger(__name__)

Found = TypeVar("Found")

CHUNK_SHAPE = (32, 64, 64)
SHARD_SHAPE = (64, 512, 512)
"""Also the unit that is fetched, written and recorded: 16 M voxels."""
PLACE = "box"
"""Attribute of the copy: which box of the source it is."""


def fetch(target: Path, roi: RoiConfig | None, open_source: Callable[[], Remote], allow_missing: float = 1.0) -> None:
    """Make the zarr `target` of the box `roi` of the source, or of all of it.

    Raises InputError for a box that is not inside the source, for a source that changed since the copy began, for one
    that cannot be read, and as soon as more than the share `allow_missing` of it is absent.
    """
    source = open_source()
    partial, progress = (target.with_name(f"{target.name}{ending}") for ending in (".partial", ".progress"))
    box = Roi((0, 0, 0), source.shape) if roi is None else _inside(source, Roi(roi.offset, roi.shape))
    _check_same(progress / "source.json", source, partial)
    array, missing = _array(partial, source, box), _Missing(progress / "absent", source, box)

    def read(index: int, block: Roi) -> np.ndarray:
        place = block.moved(box.offset)
        values = read_box(source, place)
        found = missing.count(index, values, place)
        if found.absent > allow_missing * found.total:
            absent.check(f"{source.address}, as far as it was read", found, allow_missing)
        return values

    def write(block: Roi, values: np.ndarray) -> None:
        array[block.slices] = values

    blocks = Blocks(box.shape, SHARD_SHAPE)
    blockwise.run_part(progress, blocks, read, write=write, written=array)
    if missing.found.absent:
        array.attrs[PLACE] = {**array.attrs[PLACE], "absent": list(missing.found)}
    for stray in partial.rglob("*.partial"):
        stray.unlink()
    os.replace(partial, target)
    checksum.remove(progress)


def described(target: Path) -> dict:
    """Where the copy is in its source: `offset` and `shape` of its box, and the `whole` source's shape.

    Where the source lacks some of the box, `absent` is that Count.
    """
    return zarr.open_array(str(target), mode="r").attrs[PLACE]


class _Missing:
    """What the source lacks of a box, counted block by block and kept in a folder, so that a killed copy goes on."""

    def __init__(self, folder: Path, source: Remote, box: Roi):
        self.folder, self.source, self.box = folder, source, box
        self.whole = source.absence.size(box) if source.absence else Count(0, 0)
        self.by_block = {path.stem: int(path.read_text(encoding="ascii")) for path in folder.glob("*.txt")}

    @property
    def found(self) -> Count:
        return self.whole._replace(absent=sum(self.by_block.values()))

    def count(self, index: int, values: np.ndarray, block: Roi) -> Count:
        """Count those of a block; return how many were found so far."""
        absence = self.source.absence
        if absence is not None and (
            number := _tried(self.source.address, lambda: absence.absent_of_block(values, block, self.box))
        ):
            manifest.write_text(self.folder / f"{index}.txt", str(number))
            self.by_block[str(index)] = number
        return self.found


def _inside(source: Remote, box: Roi) -> Roi:
    if any(e > n for e, n in zip(box.end, source.shape, strict=True)):
        raise InputError(
            f"roi offset {list(box.offset)} shape {list(box.shape)} ends at {list(box.end)}, outside {source.address} "
            f"of shape {list(source.shape)}; correct roi in the configuration"
        )
    return box


def _check_same(record: Path, source: Remote, partial: Path) -> None:
    """The source must still be the one that an earlier attempt read."""
    told = {"identity": source.identity, "shape": list(source.shape), "dtype": str(source.dtype)}
    if not record.exists():
        manifest.write_text(record, json.dumps(told))
    elif json.loads(record.read_text(encoding="utf-8")) != told:
        raise InputError(
            f"{source.address} changed since its download began; delete {partial} and {record.parent} to begin anew"
        )


def _array(path: Path, source: Remote, box: Roi) -> zarr.Array:
    if (path / "zarr.json").exists():
        return arrays.reopen(path, f"delete {path} and run snakemake again")
    place = {"offset": list(box.offset), "shape": list(box.shape), "whole": list(source.shape)}
    stated = {"voxel_size_nm": list(source.voxel_size_nm)} if source.voxel_size_nm else {}
    return arrays.create(
        path,
        shape=box.shape,
        dtype=source.dtype.name,
        chunk_shape=CHUNK_SHAPE,
        shard_shape=SHARD_SHAPE,
        attributes={PLACE: place, **stated},
    )


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
