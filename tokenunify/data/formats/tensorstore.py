"""Volumes in chunks that tensorstore reads: neuroglancer precomputed, n5 and zarr, in a folder or at an address."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts

from tokenunify.data.formats import metadata, tensorstore_access
from tokenunify.data.formats.absent import Chunks, Stored
from tokenunify.data.formats.axes import agreed, of_attributes, ordered
from tokenunify.data.formats.metadata import address_of, joined
from tokenunify.data.formats.ome_zarr import attributes_of, image_of, levels_of, open_image
from tokenunify.data.formats.source_array import NM, SourceArray, product, stated_voxel_size, turned
from tokenunify.data.formats.stored_chunks import by_box, by_index, numbered
from tokenunify.data.read_errors import naming
from tokenunify.errors import InputError
from tokenunify.geometry import VoxelSize

PACKED = (".gz", ".br", ".zstd")
"""What ends the names of chunks that are packed as files."""


class _Tensor:
    """A tensorstore array read when indexed; its first voxel is number 0, wherever the file puts it."""

    def __init__(self, store: ts.TensorStore):
        self.store = store[ts.d[:].translate_to[0]]
        self.shape, self.dtype = tuple(self.store.shape), np.dtype(self.store.dtype.numpy_dtype)

    def __getitem__(self, index: Any) -> np.ndarray:
        return np.asarray(self.store[index].read().result())


def open_chunked(place: str | Path, format: str, dataset: str | None = None) -> SourceArray:
    """An array (z, y, x) in a folder, or at an address that tensorstore knows: http(s), gs, s3 or file.

    `format` is precomputed, n5 or zarr; `dataset` is the key of a precomputed scale (the finest where it is None), or
    the array's path inside the n5 or zarr folder. Nothing but metadata is read before the array is indexed. Raises
    InputError for a place that cannot be read and for axes other than z, y, x (in any order) of more than one entry.
    """
    path = str(place)
    metadata.check_folder(path)
    with naming(path):
        return OPENERS[format](path, (dataset or "").strip("/"))


def coarser(place: str, format: str, dataset: str | None) -> list[str]:
    """Datasets of the coarser levels of the same image, the coarsest first; of n5 none is known."""
    name = (dataset or "").strip("/")
    with naming(place):
        if format == "precomputed":
            levels = [scale["key"] for scale in scales_of(place)]
        elif format == "zarr":
            image = image_of(attributes_of(place, name))
            parent = name if image else name.rpartition("/")[0]  # an image, or one of its levels
            image = image or image_of(attributes_of(place, parent))
            levels = [joined(parent, level["path"]) for level in levels_of(place, image)] if image else []
        else:
            levels = []
    return levels[: levels.index(name) if name in levels else 0 : -1]


def _precomputed(path: str, key: str) -> SourceArray:
    scales = scales_of(path)
    keys = [scale["key"] for scale in scales]
    if key and key not in keys:
        raise InputError(f"{path} has no scale {key!r}; it has {keys}; correct dataset in the configuration")
    number = keys.index(key) if key else 0
    with metadata.using(path, "tensorstore cannot open it"):
        chunks = _precomputed_chunks(path, scales[number])
        _refuse_packed(path, scales[number])
        array = _open("neuroglancer_precomputed", path, scale_index=number)
        sizes = product([1.0] * 3, scales[number]["resolution"][::-1])
    metadata.check_chunk(path, chunks.shape, array.dtype.itemsize)
    data, _ = ordered(path, array, ["x", "y", "z", "channel"])
    return SourceArray(path, data, sizes, chunks)


def scales_of(path: str) -> list[dict]:
    """The chunks of a precomputed volume, as its `info` describes them."""
    info = metadata.read(path, "info")
    if "scales" not in info:
        raise InputError(f"{path} has no `info` of a precomputed volume; give the folder that `info` is in")
    scales = info["scales"]
    if (
        isinstance(scales, list)
        and scales
        and all(isinstance(s, dict) and isinstance(s.get("key"), str) for s in scales)
    ):
        return scales
    raise metadata.damaged(path, f"scales of `info` must list scales with a key, found {scales!r:.200}")


def _precomputed_chunks(path: str, scale: dict) -> Chunks:
    address, sizes = address_of(path, scale["key"]), scale.get("chunk_sizes")
    size = metadata.lengths(path, "size", scale.get("size"))
    chunk = metadata.lengths(path, "chunk_sizes", sizes[0] if isinstance(sizes, list) and sizes else sizes, 1)
    metadata.check_grid(path, size, chunk)
    if sharding := scale.get("sharding"):
        stored: Stored = numbered(address, sharding, [-(-n // c) for n, c in zip(size, chunk, strict=True)])
    else:
        stored = by_box(address, scale.get("voxel_offset", [0] * 3), chunk, size)
    x, y, z = chunk
    return Chunks((z, y, x), stored, (2, 1, 0))


def _refuse_packed(path: str, scale: dict) -> None:
    """cloud-volume's default names chunks in files so: tensorstore does not find them and takes them for zeros."""
    folder = address_of(path, scale["key"])
    packed = next((name for name in _chunk_names(folder, scale) if name.endswith(PACKED) and _has(folder, name)), None)
    if packed and not _has(folder, packed.rpartition(".")[0]):
        raise InputError(
            f"{folder} has packed chunks, such as {packed}, which would be read as zeros; unpack them (`gunzip -r "
            f"{scale['key']}`, for .gz), write the volume with compress=False, or serve it by a server that sets "
            "Content-Encoding, as cloud-volume's viewer does"
        )


def _has(folder: str, name: str) -> bool:
    try:
        return tensorstore_access.read(folder, name) is not None
    except ValueError:  # a server that is down is told of when chunks are read
        return False


def _chunk_names(folder: str, scale: dict) -> Iterator[str]:
    """Chunk files of a folder, or at an address the names that a packed first chunk may have."""
    if local := tensorstore_access.local(folder):
        yield from (entry.name for entry in os.scandir(local)) if local.is_dir() else ()
    elif "sharding" not in scale:
        axes = zip(scale.get("voxel_offset", [0] * 3), scale["chunk_sizes"][0], scale["size"], strict=True)
        first = "_".join(f"{start}-{start + min(chunk, size)}" for start, chunk, size in axes)
        yield from (first + ending for ending in PACKED)


def _n5(path: str, dataset: str) -> SourceArray:
    attributes = metadata.read(path, joined(dataset, "attributes.json"))
    if "dimensions" not in attributes:
        raise InputError(
            f"{path} has no n5 array {dataset!r}; give the array's path inside the folder as dataset, such as a/s0"
        )
    shape = metadata.lengths(path, "dimensions", attributes["dimensions"])
    chunk = metadata.lengths(path, "blockSize", attributes.get("blockSize"), 1)
    metadata.check_grid(path, shape, chunk)
    names = agreed(path, of_attributes(attributes, backwards=True), len(shape)) or ["x", "y", "z", *"ct"][: len(shape)]
    with metadata.using(path, f"tensorstore cannot open {dataset!r}"):
        array = _open("n5", path, dataset)
    metadata.check_chunk(path, chunk, array.dtype.itemsize)
    data, places = ordered(path, array, names)
    z, y, x = (chunk[axis] for axis in places)
    chunks = Chunks((z, y, x), by_index(address_of(path, dataset), "/"), places, len(shape))
    return SourceArray(path, data, _n5_size(attributes, names), chunks)


def _n5_size(attributes: dict, names: Sequence[str]) -> VoxelSize | None:
    """In nm: `pixelResolution`, or `resolution` in `units`, in the order of the axes; or COSEM's `transform`."""
    stated = attributes.get("pixelResolution") or attributes.get("resolution")
    stated = stated if isinstance(stated, dict) else {"dimensions": stated}
    units = attributes.get("units") or [stated.get("unit", "nm")] * len(names)
    nm = [NM.get(str(unit)) for unit in units] if isinstance(units, list) else None
    size = product(turned(nm, names), turned(stated.get("dimensions"), names))
    return size or stated_voxel_size({"transform": attributes.get("transform")})


def _zarr(path: str, dataset: str) -> SourceArray:
    return open_image(path, dataset, lambda path, name, version: _open("zarr" if version == 2 else "zarr3", path, name))


def _open(driver: str, path: str, dataset: str = "", **options: Any) -> _Tensor:
    spec = {"driver": driver, "kvstore": tensorstore_access.folder(address_of(path, dataset)), **options}
    return _Tensor(ts.open(spec, read=True, open=True, context=tensorstore_access.context()).result())


OPENERS = {"precomputed": _precomputed, "n5": _n5, "zarr": _zarr}
