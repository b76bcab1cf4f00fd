"""Volumes in chunks that tensorstore reads, in a folder or at an address: neuroglancer precomputed, n5 and zarr."""

from pathlib import Path

from tokenunify.data.formats import metadata
from tokenunify.data.formats.metadata import joined
from tokenunify.data.formats.n5 import open_n5
from tokenunify.data.formats.ome_zarr import attributes_of, image_of, levels_of, open_image
from tokenunify.data.formats.precomputed import open_precomputed, scales_of
from tokenunify.data.formats.source_array import SourceArray
from tokenunify.data.read_errors import naming


def open_chunked(place: str | Path, format: str, dataset: str | None = None) -> SourceArray:
    """An array (z, y, x) in a folder, or at an address that tensorstore knows: http(s), gs, s3 or file.

    `format` is precomputed, n5 or zarr; `dataset` is the key of a precomputed scale (the finest where it is None), or
    the array's path inside the n5 or zarr folder. Nothing but metadata is read before the array is indexed. Raises
    InputError for a place that cannot be read and for axes other than z, y, x (in any order) of more than one entry.
    """
    path, name = str(place), (dataset or "").strip("/")
    metadata.check_folder(path)
    with naming(path):
        if format == "precomputed":
            return open_precomputed(path, name)
        if format == "n5":
            return open_n5(path, name)
        return open_image(path, name, "tensorstore")


def coarser(place: str, format: str, dataset: str | None) -> list[str]:
    """Datasets of the coarser levels of the same image, the coarsest first; none where the format is n5."""
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
