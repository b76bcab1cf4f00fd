"""Sharded zarr 3 arrays with checksums: create, open only when whole, convert affinities."""

import os
import re
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec

from tokenunify.errors import InputError
from tokenunify.geometry import Blocks, Coordinate
from tokenunify.store import forms, ledger, manifest, shards

ATTRIBUTES = ("voxel_size_nm", "offset_nm", "offsets")
HASHED = re.compile(r"[0-9a-f]{16}|\..+\.[0-9a-f]{16}\.progress")
"""Names of folders that say which stage, settings and inputs their files are of."""
SHARDS = "shards"
"""Key of the marks of an ingested volume's shards by role, in what its manifest says of the run."""
PLACE = "place"
"""Name of the table that says where the others were written."""


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
        try:
            found = np.asarray(zarr.open_array(str(self.path), mode="r")[:])
        except PermissionError:
            raise
        except Exception as error:  # whatever zarr meets in an array that is damaged
            raise InputError(f"{self.path} is damaged ({error}); {self.remake}") from None
        if not found.size or found[0] != 0 or not found[1:].all():  # zarr reads what is missing as zeros
            raise InputError(f"{self.path} is damaged: it lacks the ids of some labels; {self.remake}")
        return found


def create(
    path: str | Path | dict,
    *,
    shape: tuple[int, ...],
    dtype: str,
    chunk_shape: Coordinate,
    shard_shape: Coordinate,
    attributes: dict[str, Any],
) -> zarr.Array:
    """Make an empty array; leading (channel) axes are held whole in every chunk.

    Every shard is written, zeros too, so that a missing file is damage and never data; each inner chunk has a CRC.
    A dictionary in place of the path keeps it in memory.
    """
    lead = shape[: len(shape) - 3]
    return zarr.create_array(
        path if isinstance(path, dict) else str(path),
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


def open_complete(path: str | Path, remake: str, stated: dict[str, Any] | None = None) -> zarr.Array:
    """Open an array for reading after checking that every shard file is there.

    `remake` is the advice that ends the InputError about a missing or damaged store; `stated` is what a manifest says
    of it, as `create` takes it.
    """
    array = _open(path, "r", remake, stated)
    missing = [file for file in shards.files(array) if not shards.is_there(file)]
    if missing:
        first = f"{missing[0].relative_to(path)}{shards.in_its_place(missing[0])}"
        raise InputError(f"{path} lacks {len(missing)} of its shard files, the first is {first}; {remake}")
    return array


def reopen(path: str | Path, remake: str, stated: dict[str, Any] | None = None) -> zarr.Array:
    """An array that `create` made, to go on writing; zarr does not store that zeros are to be written too."""
    return _open(path, "r+", remake, stated).with_config({"write_empty_chunks": True})


def _open(path: str | Path, mode: Literal["r", "r+"], remake: str, stated: dict[str, Any] | None) -> zarr.Array:
    """Open an array whose metadata are those that `create` would store: with others it would read as other values."""
    described = Path(path, "zarr.json")
    try:
        if described.exists() and not described.is_file():
            raise ValueError(f"its zarr.json is missing{shards.in_its_place(described)}")
        array = zarr.open_array(str(path), mode=mode)
        own = {"shape": array.shape, "dtype": str(array.dtype), "attributes": {}}
        own |= {"chunk_shape": array.chunks[-3:], "shard_shape": (array.shards or array.chunks)[-3:]}
        expected = create({}, **{**own, **(stated or {})}).metadata.to_dict()
        found = array.metadata.to_dict()
        halves = (expected, found), (expected.pop("attributes"), found.pop("attributes"))
        for wanted, stored in halves:
            for key, value in wanted.items():
                if stored.get(key) != value:
                    raise ValueError(f"its {key} is {stored.get(key)}, expected {value} as it was made")
        return array
    except PermissionError:
        raise
    except Exception as error:  # whatever zarr meets in metadata that are damaged
        raise InputError(f"{path} is not a readable zarr array ({error}); {remake}") from None


class Store:
    """A finished array that is read in boxes; damage is reported with the advice to mend it."""

    marks: shards.Marks
    """The recorded marks of its shards: each is compared once, when a box first reads from it. Old stores have none."""

    def __init__(self, path: str | Path, remake: str, stated: dict[str, Any] | None = None):
        self.path, self.remake = Path(path), remake
        self.array = open_complete(path, remake, stated)
        self.shape = self.array.shape
        self.dtype = self.array.dtype
        self.attrs = self.array.attrs
        self.marks = {}

    def __getitem__(self, index: Any) -> np.ndarray:
        try:
            for file in shards.files(self.array, shards.box(index, self.shape)) if self.marks else ():
                if not shards.is_as_recorded(file, self.array, self.marks):
                    raise ValueError(f"{file.relative_to(self.path)} is not the shard that was written there")
                self.marks.pop(file, None)
            return np.asarray(self.array[index])
        except (ValueError, RuntimeError, OSError) as error:  # whatever checksums and decoding say of damage
            if isinstance(error, InputError) or getattr(error, "errno", None) is not None:
                raise
            raise InputError(f"{self.path} is damaged ({error}); {self.remake}") from error


def open_prepared(path: str | Path, form: type[forms.Prepared] = forms.Prepared) -> Store:
    """The finished store that belongs to a `prepared.json`, which must be of the form."""
    content = manifest.content(path, form)
    store = Store(prepared_store(path), _delete_and_run(path), stated(content))
    blocks = Blocks(tuple(content["shape"][-3:]), tuple(content["block_shape"]))
    store.marks = recorded_marks(prepared_folder(path), blocks, store.array)
    return store


def open_writable(path: str | Path) -> zarr.Array:
    """The store that belongs to a `prepared.json`, to be filled."""
    content = manifest.content(path, forms.Prepared)
    return reopen(prepared_store(path), _delete_and_run(path), stated(content))


def open_level(path: str | Path, level: int) -> zarr.Array:
    """A level below full resolution of the store that belongs to a `prepared.json`, to be filled."""
    return reopen(prepared_store(path).with_name(str(level)), _delete_and_run(path))


def stated(content: dict) -> dict[str, Any]:
    """Arguments of `create` that a manifest's content states."""
    known = {**content["config"], **content}
    fixed = {key: known[key] for key in ("shape", "dtype", "chunk_shape", "shard_shape") if key in known}
    return {**fixed, "attributes": {key: known[key] for key in ATTRIBUTES if key in known}}


def recorded_marks(folder: Path, blocks: Blocks, array: zarr.Array) -> shards.Marks:
    """The marks of an array's shards in the ledger of the folder."""
    found = ledger.entries(folder, blocks)
    return shards.by_file((shards.files(array, blocks.roi(e.block).slices), e.shards) for e in found if e.shards)


def _delete_and_run(prepared: str | Path) -> str:
    return f"delete {Path(prepared).parent} and run snakemake again"


def prepared_store(path: str | Path) -> Path:
    """Where the store of a `prepared.json` is."""
    return Path(path).parent / manifest.content(path, forms.Prepared)["store"]


def prepared_folder(path: str | Path) -> Path:
    """The folder of the store, its ledger and its locks."""
    return Path(path).parent / Path(manifest.content(path, forms.Prepared)["store"]).parts[0]


def open_volume(path: str | Path) -> Volume:
    """Open the volume that belongs to an ingest manifest `data/volumes/{volume}.json`."""
    path = Path(path)
    content, run = manifest.read(path, forms.Volume).values()
    root = path.with_suffix(".zarr")
    remake = f"delete {path} and {root} and run snakemake again"
    config = content.get("config", {})
    placed = {key: content[key] for key in ("voxel_size_nm", "offset_nm")}

    def opened(role: str) -> Store:
        # Else it is not a manifest of ingest: it says too little.
        image = stated({"config": config, **content[role], **placed}) if "shard_shape" in config else {}
        store = Store(root / role / "0", remake, image)
        store.marks = shards.by_file([(shards.files(store.array), run.get(SHARDS, {}).get(role, ""))])
        return store

    labels, mask = (opened(role) if content.get(role) else None for role in ("labels", "mask"))
    numbered_anew = labels is not None and config.get("label_ids", "keep") != "keep"
    z, y, x = (round(o / v) for o, v in zip(content["offset_nm"], content["voxel_size_nm"], strict=True))
    return Volume(
        name=path.stem,
        raw=opened("raw"),
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
    """Write small tables to one file in one step; equal tables give equal bytes in the same place."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with open(temporary, "wb") as file:
        np.savez(file, allow_pickle=False, **tables, **{PLACE: np.array(_place(path))})
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def read_npz(path: str | Path, remake: str, *names: str) -> dict[str, np.ndarray]:
    """Read the tables of a file, or those named.

    A file that is missing, damaged, or was written for another place is reported with the advice to mend it.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path} is missing; {remake}")
    try:
        if not path.is_file():
            raise ValueError("a folder or device lies in its place")
        with zipfile.ZipFile(path) as file:
            stored = [name.removesuffix(".npy") for name in file.namelist()]
            if PLACE in stored and (place := str(_table(file, PLACE))) != _place(path):  # earlier versions have none
                raise ValueError(f"it was written as {place}")
            return {name: _table(file, name) for name in names or stored if name != PLACE}
    except (zipfile.BadZipFile, zlib.error, ValueError, EOFError, KeyError, RuntimeError, MemoryError) as error:
        raise InputError(f"{path} is damaged ({error}); {remake}") from error


def _table(file: zipfile.ZipFile, name: str) -> np.ndarray:
    with file.open(f"{name}.npy") as member:
        table = np.lib.format.read_array(member, allow_pickle=False)
        if member.read(1):  # at its end only, zip compares the checksum
            raise ValueError(f"{name} is longer than its header says")
    return table


def _place(path: Path) -> str:
    """The path from the folder that names what the file is of; it stays where results are moved as a whole."""
    parts = path.absolute().parts
    start = max((number for number, part in enumerate(parts) if HASHED.fullmatch(part)), default=len(parts) - 1)
    return "/".join(parts[start:])
