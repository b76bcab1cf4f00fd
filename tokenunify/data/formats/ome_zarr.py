"""Zarr arrays (v2, v3) and OME-Zarr images (0.4, 0.5): their metadata, and their voxels, which two libraries read."""

import contextlib
from pathlib import Path
from typing import Any, Literal

import zarr

from tokenunify.data.formats import metadata, tensorstore_access
from tokenunify.data.formats.absent import Chunks, Stored
from tokenunify.data.formats.axes import Stated, agreed, of_attributes, ordered
from tokenunify.data.formats.metadata import address_of, joined
from tokenunify.data.formats.source_array import NM, ArrayLike, SourceArray, product, stated_voxel_size
from tokenunify.data.formats.stored_chunks import by_index, in_shards
from tokenunify.errors import InputError

Library = Literal["zarr", "tensorstore"]
"""What reads the voxels; zarr does so only in a local folder."""


def open_zarr(path: str, dataset: str | None) -> SourceArray:
    """The array `dataset` of a local zarr folder, or the finest level of an OME-Zarr image."""
    metadata.check_folder(path)
    return open_image(path, (dataset or "").strip("/"), "zarr")


def open_image(path: str, dataset: str, library: Library) -> SourceArray:
    """The array, or the finest level of the image, in a folder or at an address.

    Groups need no metadata, and may be of another version of zarr than what is in them.
    """
    image, (parent, _, last) = image_of(attributes_of(path, dataset)), dataset.rpartition("/")
    if image:
        level = levels_of(path, image)[0]
        return _level(path, joined(dataset, level["path"]), library, image, level)
    image = image_of(attributes_of(path, parent)) if dataset else {}
    level = next((level for level in levels_of(path, image) if level["path"] == last), {}) if image else {}
    return _level(path, dataset, library, image if level else {}, level)


def attributes_of(path: str, node: str) -> dict:
    """The attributes of a group or array of zarr 3, or of zarr 2 where there is none of zarr 3."""
    described = metadata.read(path, joined(node, "zarr.json"))
    found = described.get("attributes", {}) if described else metadata.read(path, joined(node, ".zattrs"))
    if not isinstance(found, dict):
        raise metadata.damaged(path, f"attributes of {node or 'its root'} must be an object, found {found!r:.200}")
    return found


def image_of(attributes: dict) -> dict:
    """The first image that a group's attributes describe as OME-Zarr (0.4 or 0.5); empty where there is none."""
    ome = attributes.get("ome", attributes)
    images = ome.get("multiscales") if isinstance(ome, dict) else None
    return images[0] if isinstance(images, list) and images and isinstance(images[0], dict) else {}


def levels_of(path: str, image: dict) -> list[dict]:
    """The levels of an image, the finest first."""
    levels: Any = image.get("datasets")
    listed = isinstance(levels, list) and levels and all(isinstance(level, dict) for level in levels)
    if listed and all(isinstance(level.get("path"), str) for level in levels):
        return levels
    raise metadata.damaged(path, f"datasets of its multiscales must list the path of each level, found {levels!r:.200}")


def _level(path: str, name: str, library: Library, image: dict, level: dict) -> SourceArray:
    """An array as z, y, x; where it is a level of an image, with the axes and the voxel size that the image states."""
    described, version = _described(path, name)
    shape = metadata.lengths(path, "shape", described.get("shape"))
    attributes = attributes_of(path, name)
    systems = image.get("coordinateSystems")  # 0.6 has the axes in the first of these, and 0.1 has none
    system = systems[0] if isinstance(systems, list) and systems and isinstance(systems[0], dict) else {}
    listed = image.get("axes", system.get("axes", "tczyx"[-len(shape) :]))
    listed = listed if isinstance(listed, (list, str)) else ()
    axes = [axis if isinstance(axis, dict) else {"name": axis} for axis in listed]
    stated = [Stated("the axes of its multiscales", [str(axis.get("name")) for axis in axes])] if image else []
    stated += [Stated("dimension_names", names)] if (names := described.get("dimension_names")) else []
    names = agreed(path, [*stated, *of_attributes(attributes)], len(shape)) or (stated[0].names if image else None)
    with metadata.using(path, f"zarr cannot open {name or 'the array'}"):
        if library == "zarr":
            place = str(Path(path, name))
            array: ArrayLike = zarr.open_array(place, mode="r", zarr_format=2 if version == 2 else 3)
        else:
            array = tensorstore_access.array("zarr" if version == 2 else "zarr3", address_of(path, name))
    chunk, stored = _chunks(path, name, described, version, shape)
    metadata.check_chunk(path, chunk, array.dtype.itemsize)
    if names is None and len(shape) != 3:
        return SourceArray(path, array)  # which tells what is wrong with the axes
    data, places = ordered(path, array, names or "zyx")
    z, y, x = (chunk[axis] for axis in places)
    chunks = Chunks((z, y, x), stored, places, len(shape))
    size = None
    with contextlib.suppress(IndexError, KeyError, TypeError):  # of transformations that do not fit the axes
        moves = [*level.get("coordinateTransformations", []), *image.get("coordinateTransformations", [])]
        scales = [[move["scale"][axis] for axis in places] for move in moves if "scale" in move]
        size = product([NM.get(str(axes[axis].get("unit"))) for axis in places], *scales) if scales else None
    return SourceArray(path, data, size or stated_voxel_size(attributes, names or "zyx"), chunks)


def _described(path: str, name: str) -> tuple[dict, int]:
    """The metadata of an array and their version of zarr; InputError, which lists the arrays, where there is none."""
    found = metadata.read(path, joined(name, "zarr.json"))
    if found.get("node_type") == "array":
        return found, 3
    if found2 := metadata.read(path, joined(name, ".zarray")):
        return found2, 2
    what = f"no zarr array {name!r}" if name else "no zarr array at its root"
    group = "; it is a group without multiscales" if not name and (found or metadata.read(path, ".zgroup")) else ""
    known = ""
    if "://" not in path:
        files = [
            *Path(path).rglob(".zarray"),
            *(
                file
                for file in Path(path).rglob("zarr.json")
                if '"array"' in file.read_text(encoding="utf-8", errors="replace")
            ),
        ]
        known = f"; it has {sorted({file.parent.relative_to(path).as_posix() for file in files})}"
    raise InputError(f"{path} has {what}{group}{known}; give the array's path inside the folder as dataset")


def _chunks(
    path: str, name: str, described: dict, version: int, shape: tuple[int, ...]
) -> tuple[tuple[int, ...], Stored]:
    """Shape of the chunks, which are those inside of shards where the array has shards, and which are stored."""
    address = address_of(path, name)
    if version == 2:
        chunk = metadata.lengths(path, "chunks", described.get("chunks"), 1)
        metadata.check_grid(path, shape, chunk)
        return chunk, by_index(address, described.get("dimension_separator", "."))
    with metadata.using(path, f"zarr cannot use the chunks of {name or 'the array'}"):
        outer = metadata.lengths(path, "chunk_shape", described["chunk_grid"]["configuration"]["chunk_shape"], 1)
        metadata.check_grid(path, shape, outer)
        encoding = described["chunk_key_encoding"]
        is_default = encoding["name"] == "default"
        separator = encoding.get("configuration", {}).get("separator", "/" if is_default else ".")
        files = by_index(address, separator, f"c{separator}" if is_default else "")
        first = described["codecs"][0]
        if first["name"] != "sharding_indexed":
            return outer, files
        sharding = first["configuration"]
        inner = metadata.lengths(path, "chunk_shape", sharding["chunk_shape"], 1)
        metadata.check_grid(path, outer, inner)
        per_shard = tuple(n // m for n, m in zip(outer, inner, strict=True))
        metadata.check_chunk(path, per_shard, 16)
        return inner, in_shards(address, files, sharding, per_shard)
