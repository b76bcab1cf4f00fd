"""Volumes in chunks that tensorstore reads: neuroglancer precomputed, n5 and zarr, in a folder or at an address."""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlparse
from urllib.request import url2pathname

import numpy as np
import tensorstore as ts

from tokenunify.data import places
from tokenunify.data.axes import ordered
from tokenunify.data.faults import naming
from tokenunify.data.ome_zarr import image_of, level_array
from tokenunify.data.source_array import NM, SourceArray, product, stated_voxel_size
from tokenunify.errors import InputError

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
    with naming(path):
        return OPENERS[format](path, (dataset or "").strip("/"))


def coarser(place: str, format: str, dataset: str | None) -> list[str]:
    """Datasets of the coarser levels of the same image, the coarsest first; of n5 none is known."""
    name = (dataset or "").strip("/")
    with naming(place):
        if format == "precomputed":
            levels = [scale["key"] for scale in _json(place, "info").get("scales", [])]
        elif format == "zarr":
            image = image_of(_attributes(place, name))
            parent = name if image else name.rpartition("/")[0]  # an image, or one of its levels
            image = image or image_of(_attributes(place, parent))
            levels = [_inside(parent, level["path"]) for level in image.get("datasets", [])]
        else:
            levels = []
    return levels[: levels.index(name) if name in levels else 0 : -1]


def _precomputed(path: str, scale: str) -> SourceArray:
    info = _json(path, "info")
    if "scales" not in info:
        raise InputError(f"{path} has no `info` of a precomputed volume; give the folder that `info` is in")
    keys = [found["key"] for found in info["scales"]]
    if scale and scale not in keys:
        raise InputError(f"{path} has no scale {scale!r}; it has {keys}; correct dataset in the configuration")
    number = keys.index(scale) if scale else 0
    _refuse_packed(path, info["scales"][number])
    array = _open("neuroglancer_precomputed", path, scale_index=number)
    return _array(path, array, ["x", "y", "z", "channel"], info["scales"][number]["resolution"])


def _refuse_packed(path: str, scale: dict) -> None:
    """cloud-volume's default names chunks in files so: tensorstore does not find them and takes them for zeros."""
    folder = _address(path, scale["key"])
    packed = next((name for name in _chunk_names(folder, scale) if name.endswith(PACKED) and _has(folder, name)), None)
    if packed and not _has(folder, packed.rpartition(".")[0]):
        raise InputError(
            f"{folder} has packed chunks, such as {packed}, which would be read as zeros; unpack them (`gunzip -r "
            f"{scale['key']}`, for .gz), write the volume with compress=False, or serve it by a server that sets "
            "Content-Encoding, as cloud-volume's viewer does"
        )


def _has(folder: str, name: str) -> bool:
    try:
        return places.read(folder, name) is not None
    except ValueError:  # a server that is down is told of when chunks are read
        return False


def _chunk_names(folder: str, scale: dict) -> Iterator[str]:
    """Of a folder those that are there, at an address those that the packed first chunk may have."""
    if folder.startswith("file://"):
        local = url2pathname(urlparse(folder).path)
        yield from (entry.name for entry in os.scandir(local)) if os.path.isdir(local) else ()
    elif "sharding" not in scale:
        axes = zip(scale.get("voxel_offset", [0] * 3), scale["chunk_sizes"][0], scale["size"], strict=True)
        first = "_".join(f"{start}-{start + min(chunk, size)}" for start, chunk, size in axes)
        yield from (first + ending for ending in PACKED)


def _n5(path: str, dataset: str) -> SourceArray:
    attributes = _json(path, _inside(dataset, "attributes.json"))
    if "dimensions" not in attributes:
        raise InputError(
            f"{path} has no n5 array {dataset!r}; give the array's path inside the folder as dataset, such as a/s0"
        )
    names = attributes.get("axes") or ["x", "y", "z", *"ct"][: len(attributes["dimensions"])]
    return _array(path, _open("n5", path, dataset), names, _n5_sizes(attributes, len(names)))


def _n5_sizes(attributes: dict, num_axes: int) -> list[float] | None:
    """In nm along the axes of the file: `resolution` in `units`, or `pixelResolution`; None where neither is stated."""
    stated = attributes.get("pixelResolution") or attributes.get("resolution")
    stated = stated if isinstance(stated, dict) else {"dimensions": stated}
    units = attributes.get("units") or [stated.get("unit", "nm")] * num_axes
    try:
        return [NM[str(unit)] * float(size) for unit, size in zip(units, stated["dimensions"], strict=True)]
    except (KeyError, TypeError, ValueError):
        return None


def _zarr(path: str, dataset: str) -> SourceArray:
    attributes = _attributes(path, dataset)
    image = image_of(attributes)
    if image:
        level = image["datasets"][0]
        name = _inside(dataset, level["path"])
        return level_array(path, _open_zarr(path, name), image, level, _attributes(path, name))
    parent, _, name = dataset.rpartition("/")
    image = image_of(_attributes(path, parent)) if dataset else {}
    for level in image.get("datasets", []):
        if level["path"] == name:
            return level_array(path, _open_zarr(path, dataset), image, level, attributes)
    return SourceArray(path, _open_zarr(path, dataset), stated_voxel_size(attributes))


def _attributes(path: str, node: str) -> dict:
    """Of a group or array of zarr 3, else of zarr 2."""
    described = _json(path, _inside(node, "zarr.json"))
    return described.get("attributes", {}) if described else _json(path, _inside(node, ".zattrs"))


def _open_zarr(path: str, dataset: str) -> _Tensor:
    described = _json(path, _inside(dataset, "zarr.json"))
    if described.get("node_type") == "array":
        return _open("zarr3", path, dataset)
    if not described and _json(path, _inside(dataset, ".zarray")):
        return _open("zarr", path, dataset)
    raise InputError(f"{path} has no zarr array {dataset!r}; give the array's path inside the folder as dataset")


def _array(path: str, array: _Tensor, names: Sequence[str], sizes_nm: Sequence[float] | None) -> SourceArray:
    data, places = ordered(path, array, names)
    size = product([sizes_nm[axis] for axis in places]) if sizes_nm else None
    return SourceArray(path, data, size)


def _open(driver: str, path: str, dataset: str = "", **options: Any) -> _Tensor:
    spec = {"driver": driver, "kvstore": places.folder(_address(path, dataset)), **options}
    return _Tensor(ts.open(spec, read=True, open=True, context=places.context()).result())


def _json(path: str, key: str) -> dict:
    """A JSON file of the folder; empty where it is not there."""
    return json.loads(places.read(_address(path), key) or "{}")


def _address(path: str, inside: str = "") -> str:
    root = path if "://" in path else Path(os.path.abspath(path)).as_uri()
    return _inside(root.rstrip("/"), inside).rstrip("/") + "/"


def _inside(parent: str, name: str) -> str:
    return f"{parent}/{name}" if parent else name


OPENERS = {"precomputed": _precomputed, "n5": _n5, "zarr": _zarr}
