"""Read zarr arrays (v2, v3) and OME-Zarr images (0.4, 0.5)."""

from typing import Any

import numpy as np
import zarr

from tokenunify.data.source_array import NM, SourceArray, product, stated_voxel_size
from tokenunify.errors import InputError


def open_zarr(path: str, dataset: str | None) -> SourceArray:
    """The array `dataset` of a zarr folder, or the finest level of an OME-Zarr image."""
    root = zarr.open(path, mode="r")
    node = root if dataset is None else _member(path, root, dataset)
    if isinstance(node, zarr.Group):
        image = _ome_image(node)
        if not image:
            raise InputError(f"{path} is a group without multiscales; it has {sorted(node)}; give dataset")
        level = image["datasets"][0]
        return _ome_level(path, node[level["path"]], image, level)
    parent, _, name = (dataset or "").rpartition("/")
    image = _ome_image(root[parent] if parent else root)
    for level in image.get("datasets", []):
        if level["path"] == name:
            return _ome_level(path, node, image, level)
    return SourceArray(path, node, stated_voxel_size(dict(node.attrs)))


def _member(path: str, root: zarr.Group | zarr.Array, dataset: str) -> zarr.Group | zarr.Array:
    if not isinstance(root, zarr.Group) or dataset not in root:
        known = sorted(root) if isinstance(root, zarr.Group) else "a single array"
        raise InputError(f"{path} has no {dataset!r}; it has {known}; correct dataset in the configuration")
    return root[dataset]


def _ome_image(node: zarr.Group | zarr.Array) -> dict:
    """The first image that a group's OME-Zarr metadata (0.4 or 0.5) describes; empty where there is none."""
    attributes = dict(node.attrs)
    images = attributes.get("ome", attributes).get("multiscales")
    return images[0] if images else {}


def _ome_level(path: str, array: zarr.Array, image: dict, level: dict) -> SourceArray:
    """One resolution of an OME-Zarr image, without its axes of time and channel, and its scale in nm."""
    axes = [axis if isinstance(axis, dict) else {"name": axis} for axis in image.get("axes", "tczyx"[-array.ndim :])]
    names = [axis["name"] for axis in axes]
    if names[-3:] != ["z", "y", "x"] or not {"t", "c"}.issuperset(names[:-3]) or set(array.shape[:-3]) > {1}:
        raise InputError(
            f"{path} has axes {names}, shape {list(array.shape)}: expected z, y, x and before them at most t and c of "
            "size 1; store one channel of one time point in that order"
        )
    moves = [*level.get("coordinateTransformations", []), *image.get("coordinateTransformations", [])]
    scales = [move["scale"][-3:] for move in moves if "scale" in move]
    size = product([NM.get(str(axis.get("unit"))) for axis in axes[-3:]], *scales) if scales else None
    return SourceArray(path, _Squeezed(array), size or stated_voxel_size(dict(array.attrs)))


class _Squeezed:
    """The last three axes of an array whose other axes have size 1."""

    def __init__(self, array: zarr.Array):
        self.array, self.first = array, (0,) * (array.ndim - 3)
        self.shape, self.dtype = array.shape[-3:], array.dtype

    def __getitem__(self, index: Any) -> np.ndarray:
        rest = index if isinstance(index, tuple) else (index,)
        return self.array[(*self.first, *rest)]
