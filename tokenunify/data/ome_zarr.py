"""Read zarr arrays (v2, v3) and OME-Zarr images (0.4, 0.5)."""

from collections.abc import Sequence
from typing import Any

import zarr

from tokenunify.data.axes import ordered
from tokenunify.data.source_array import NM, ArrayLike, SourceArray, product, stated_voxel_size
from tokenunify.errors import InputError


def open_zarr(path: str, dataset: str | None) -> SourceArray:
    """The array `dataset` of a zarr folder, or the finest level of an OME-Zarr image."""
    root = zarr.open(path, mode="r")
    node = root if dataset is None else _member(path, root, dataset)
    if isinstance(node, zarr.Group):
        image = image_of(dict(node.attrs))
        if not image:
            raise InputError(f"{path} is a group without multiscales; it has {sorted(node)}; give dataset")
        level = image["datasets"][0]
        return level_array(path, node[level["path"]], image, level, dict(node[level["path"]].attrs))
    parent, _, name = (dataset or "").rpartition("/")
    image = image_of(dict((root[parent] if parent else root).attrs))
    for level in image.get("datasets", []):
        if level["path"] == name:
            return level_array(path, node, image, level, dict(node.attrs))
    return SourceArray(path, node, stated_voxel_size(dict(node.attrs)))


def _member(path: str, root: zarr.Group | zarr.Array, dataset: str) -> zarr.Group | zarr.Array:
    if not isinstance(root, zarr.Group) or dataset not in root:
        known = sorted(root) if isinstance(root, zarr.Group) else "a single array"
        raise InputError(f"{path} has no {dataset!r}; it has {known}; correct dataset in the configuration")
    return root[dataset]


def image_of(attributes: dict) -> dict:
    """The first image that a group's attributes describe as OME-Zarr (0.4 or 0.5); empty where there is none."""
    images = attributes.get("ome", attributes).get("multiscales")
    return images[0] if images else {}


def level_array(path: str, array: ArrayLike, image: dict, level: dict, attributes: dict) -> SourceArray:
    """One resolution of an OME-Zarr image as z, y, x, and its scale in nm."""
    axes = [axis if isinstance(axis, dict) else {"name": axis} for axis in _axes(image, len(array.shape))]
    data, places = ordered(path, array, [axis["name"] for axis in axes])
    moves = [*level.get("coordinateTransformations", []), *image.get("coordinateTransformations", [])]
    scales = [[move["scale"][axis] for axis in places] for move in moves if "scale" in move]
    size = product([NM.get(str(axes[axis].get("unit"))) for axis in places], *scales) if scales else None
    return SourceArray(path, data, size or stated_voxel_size(attributes))


def _axes(image: dict, num_axes: int) -> Sequence[Any]:
    return image.get("axes", "tczyx"[-num_axes:])
