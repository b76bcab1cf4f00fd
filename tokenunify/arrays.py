"""Sharded zarr 3 arrays with checksums: create, open only when whole, convert affinities."""

import os
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from math import ceil
from pathlib import Path
from typing import Any, Literal

import numpy as np
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec

from tokenunify import manifest
from tokenunify.errors import InputError
from tokenunify.geometry import Coordinate


@dataclass(frozen=True)
class Volume:
    """An ingested EM volume: raw (z, y, x), labels and mask (z, y, x) or None, and what its manifest says."""

    name: str
    raw: "Store"
    labels: "Store | None"
    mask: "Store | None"
    """1 where the volume is segmented, else 0."""
    voxel_size_nm: tuple[float, float, float]
    zero: str
    origin: Coordinate
    """Where its first voxel lies in the source, in voxels."""
    source_ids: "SourceIds | None"
    """The source's ids, where the labels are numbered anew."""


@dataclass(frozen=True)
class SourceIds:
    """The source's id of each stored label, beside the labels."""

    path: Path
    remake: str

    def read(self) -> np.ndarray:
        """The ids (labels,), in the order of their labels; that of label 0 is 0."""
        with naming_damage(self.path, self.remake):
            found = np.asarray(_open(self.path, "r", self.remake)[:])
        if not found.size or found[0] != 0 or not found[1:].all():  # zarr reads what is missing as zeros
            raise InputError(f"{self.path} is damaged: it lacks the ids of some labels; {self.remake}")
        return found


def create(
    path: str | Path,
    *,
    shape: tuple[int, ...],
    dtype: str,
    chunk_shape: Coordinate,
    shard_shape: Coordinate,
    attributes: dict[str, Any],
) -> zarr.Array:
    """Make an empty array; leading (channel) axes are held whole in every chunk.

    Every shard is written, zeros too, so that a missing file is damage and never data; each inner chunk has a CRC.
    """
    lead = shape[: len(shape) - 3]
    return zarr.create_array(
        str(path),
        shape=shape,
        dtype=dtype,
        chunks=(*lead, *chunk_shape),
        shards=(*lead, *shard_shape),
        compressors=[ZstdCodec(level=3), Crc32cCodec()],
        fill_value=0,
        attributes=attributes,
        dimension_names=[*["channel"] * len(lead), "z", "y", "x"],
        config={"write_empty_chunks": True},
    )


def open_complete(path: str | Path, remake: str) -> zarr.Array:
    """Open an array for reading after checking that every shard file is there.

    `remake` is the advice that ends the InputError about a missing or damaged store.
    """
    array = _open(path, "r", remake)
    missing = [file for file in shard_files(array) if not is_there(file)]
    if missing:
        first = missing[0].relative_to(path)
        raise InputError(f"{path} lacks {len(missing)} of its shard files, the first is {first}; {remake}")
    return array


def reopen(path: str | Path, remake: str) -> zarr.Array:
    """An array that `create` made, to go on writing; zarr does not store that zeros are to be written too."""
    return _open(path, "r+", remake).with_config({"write_empty_chunks": True})


def _open(path: str | Path, mode: Literal["r", "r+"], remake: str) -> zarr.Array:
    try:
        return zarr.open_array(str(path), mode=mode)
    except (FileNotFoundError, ValueError, KeyError) as error:
        raise InputError(f"{path} is not a readable zarr array ({error}); {remake}") from None


def shard_files(array: zarr.Array, roi_slices: tuple[slice, ...] | None = None) -> list[Path]:
    """Where the shard files are, of the whole array or those that a box of the last three axes touches."""
    shards = array.shards or array.chunks
    full = [range(ceil(n / s)) for n, s in zip(array.shape, shards, strict=True)]
    if roi_slices is not None:
        for axis, (cut, size) in enumerate(zip(roi_slices, shards[-3:], strict=True), start=len(full) - 3):
            full[axis] = range(cut.start // size, ceil(cut.stop / size))
    root = Path(str(array.store_path.store.root), array.store_path.path, "c")
    return [root.joinpath(*map(str, index)) for index in product(*full)]


def is_there(file: Path) -> bool:
    """Whether a shard file is there, and not empty as a machine that crashed may leave it: zarr would read zeros."""
    try:
        return file.stat().st_size > 0
    except FileNotFoundError:
        return False


@contextmanager
def naming_damage(path: str | Path, remake: str) -> Iterator[None]:
    """Turn a checksum or decoding failure while reading `path` into an InputError with advice."""
    try:
        yield
    except (ValueError, RuntimeError, OSError) as error:
        if isinstance(error, InputError) or getattr(error, "errno", None) is not None:
            raise
        raise InputError(f"{path} is damaged ({error}); {remake}") from error


class Store:
    """A finished array that is read in boxes; damage is reported with the advice to mend it."""

    def __init__(self, path: str | Path, remake: str):
        self.path, self.remake = Path(path), remake
        self.array = open_complete(path, remake)
        self.shape = self.array.shape
        self.dtype = self.array.dtype
        self.attrs = self.array.attrs

    def __getitem__(self, index) -> np.ndarray:
        with naming_damage(self.path, self.remake):
            return np.asarray(self.array[index])


def open_prepared(path: str | Path) -> Store:
    """The finished store that belongs to a `prepared.json`."""
    return Store(prepared_store(path), _delete_and_run(path))


def open_writable(path: str | Path) -> zarr.Array:
    """The store that belongs to a `prepared.json`, to be filled."""
    return reopen(prepared_store(path), _delete_and_run(path))


def open_level(path: str | Path, level: int) -> zarr.Array:
    """A level below full resolution of the store that belongs to a `prepared.json`, to be filled."""
    return reopen(prepared_store(path).with_name(str(level)), _delete_and_run(path))


def _delete_and_run(prepared: str | Path) -> str:
    return f"delete {Path(prepared).parent} and run snakemake again"


def prepared_store(path: str | Path) -> Path:
    """Where the store of a `prepared.json` is."""
    return Path(path).parent / manifest.content(path)["store"]


def open_volume(path: str | Path) -> Volume:
    """Open the volume that belongs to an ingest manifest `data/volumes/{volume}.json`."""
    path = Path(path)
    content = manifest.content(path)
    root = path.with_suffix(".zarr")
    remake = f"delete {path} and {root} and run snakemake again"
    labels, mask = (Store(root / role / "0", remake) if content.get(role) else None for role in ("labels", "mask"))
    numbered_anew = labels is not None and content.get("config", {}).get("label_ids", "keep") != "keep"
    z, y, x = (round(o / v) for o, v in zip(content["offset_nm"], content["voxel_size_nm"], strict=True))
    return Volume(
        name=path.stem,
        raw=Store(root / "raw" / "0", remake),
        labels=labels,
        mask=mask,
        voxel_size_nm=tuple(content["voxel_size_nm"]),
        zero=content["zero"],
        origin=(z, y, x),
        source_ids=SourceIds(root / "labels" / "original_ids", remake) if numbered_anew else None,
    )


def to_uint8(affinities: np.ndarray) -> np.ndarray:
    """Float affinities in [0, 1] as the 256 grey levels of the store, rounded to the nearest."""
    levels = np.clip(affinities, 0, 1)
    levels *= 255  # in place: blocks are large
    return np.rint(levels, out=levels).astype(np.uint8)


def to_float(affinities: np.ndarray) -> np.ndarray:
    """Stored affinities as float32 in [0, 1]."""
    return affinities.astype(np.float32) / np.float32(255)


def write_npz(path: str | Path, **tables: np.ndarray) -> None:
    """Write small tables to one file in one step; equal tables give equal bytes."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with open(temporary, "wb") as file:
        np.savez(file, allow_pickle=False, **tables)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def read_npz(path: str | Path, remake: str, *names: str) -> dict[str, np.ndarray]:
    """Read the tables of a file, or those named; a missing or damaged file is reported with the advice to mend it."""
    try:
        with np.load(path, allow_pickle=False) as tables:
            return {name: tables[name] for name in names or tables.files}
    except FileNotFoundError:
        raise InputError(f"{path} is missing; {remake}") from None
    except (zipfile.BadZipFile, zlib.error, ValueError, EOFError) as error:
        raise InputError(f"{path} is damaged ({error}); {remake}") from error
