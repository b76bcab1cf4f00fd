"""Neuroglancer's precomputed volumes: scales of chunks in files or shards, which tensorstore reads."""

import os
from collections.abc import Iterable

from tokenunify.data.formats import metadata, tensorstore_access
from tokenunify.data.formats.absent import Chunks, Stored
from tokenunify.data.formats.axes import ordered
from tokenunify.data.formats.metadata import address_of
from tokenunify.data.formats.source_array import SourceArray, product
from tokenunify.data.formats.stored_chunks import by_box, numbered
from tokenunify.errors import InputError

PACKED = (".gz", ".br", ".zstd")
"""What ends the names of chunks that are packed as files."""


def open_precomputed(path: str, key: str) -> SourceArray:
    """The scale `key`, or the finest where that is empty, of the volume in a folder or at an address."""
    scales = scales_of(path)
    keys = [scale["key"] for scale in scales]
    if key and key not in keys:
        raise InputError(f"{path} has no scale {key!r}; it has {keys}; correct dataset in the configuration")
    number = keys.index(key) if key else 0
    scale = scales[number]
    with metadata.using(path, "tensorstore cannot open it"):
        address, sizes = address_of(path, scale["key"]), scale.get("chunk_sizes")
        size = metadata.lengths(path, "size", scale.get("size"))
        chunk = metadata.lengths(path, "chunk_sizes", sizes[0] if isinstance(sizes, list) and sizes else sizes, 1)
        metadata.check_grid(path, size, chunk)
        if sharding := scale.get("sharding"):
            stored: Stored = numbered(address, sharding, [-(-n // c) for n, c in zip(size, chunk, strict=True)])
        else:
            stored = by_box(address, scale.get("voxel_offset", [0] * 3), chunk, size)
        x, y, z = chunk
        # Chunks that are packed as files, as cloud-volume writes them by default, are not found by tensorstore, which
        # takes them for zeros. Of a local folder all names are known, at an address those of a packed first chunk.
        names: Iterable[str] = ()
        if local := tensorstore_access.local(address):
            names = (entry.name for entry in os.scandir(local)) if local.is_dir() else ()
        elif "sharding" not in scale:
            axes = zip(scale.get("voxel_offset", [0] * 3), scale["chunk_sizes"][0], scale["size"], strict=True)
            first = "_".join(f"{start}-{start + min(length, whole)}" for start, length, whole in axes)
            names = [first + ending for ending in PACKED]
        packed = next((name for name in names if name.endswith(PACKED) and _has(address, name)), None)
        if packed and not _has(address, packed.rpartition(".")[0]):
            raise InputError(
                f"{address} has packed chunks, such as {packed}, which would be read as zeros; unpack them (`gunzip -r "
                f"{scale['key']}`, for .gz), write the volume with compress=False, or serve it by a server that sets "
                "Content-Encoding, as cloud-volume's viewer does"
            )
        array = tensorstore_access.array("neuroglancer_precomputed", address_of(path), scale_index=number)
        voxel_size = product([1.0] * 3, scale["resolution"][::-1])
    metadata.check_chunk(path, (z, y, x), array.dtype.itemsize)
    data, _ = ordered(path, array, ["x", "y", "z", "channel"])
    return SourceArray(path, data, voxel_size, Chunks((z, y, x), stored, (2, 1, 0)))


def scales_of(path: str) -> list[dict]:
    """The resolutions of a precomputed volume, as its `info` describes them, the finest first."""
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


def _has(folder: str, name: str) -> bool:
    try:
        return tensorstore_access.read(folder, name) is not None
    except ValueError:  # a server that is down is told of when chunks are read
        return False
