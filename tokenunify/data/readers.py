"""Open source files as arrays that are read in boxes, whatever their format."""

import json
import os
import tempfile
from collections.abc import Callable
from math import inf
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from tokenunify.data import packed
from tokenunify.data.axes import ordered
from tokenunify.data.chunked import open_chunked
from tokenunify.data.flat import open_npy
from tokenunify.data.headed import open_mrc, open_nifti, open_nrrd
from tokenunify.data.images import open_images
from tokenunify.data.ome_zarr import open_zarr
from tokenunify.data.source_array import Opening, SourceArray, naming, product, stated_voxel_size
from tokenunify.data.tiff import open_tiff
from tokenunify.data.webknossos import open_wkw
from tokenunify.errors import InputError

Reader = Callable[[str, str | None, Opening], SourceArray]
"""From path, dataset, and how to open it."""


def open_array(
    path: str | Path,
    format: str,
    dataset: str | None = None,
    scratch: Path | None = None,
    *,
    max_bytes: float = inf,
    is_grey: bool = True,
) -> SourceArray:
    """Open a file, folder or glob of the given format; gzip files are unpacked into the folder `scratch` first.

    Labels and masks are not grey: what tags say of how values are shown does not hold for them. Raises InputError for
    an unreadable file, a dataset that is not there, arrays that are not 3D, and what takes more than `max_bytes`
    unpacked.
    """
    path = str(path)
    opening = Opening(scratch or Path(tempfile.gettempdir(), f"tokenunify-{os.getpid()}"), max_bytes, is_grey)
    with naming(path):
        if packed.is_gzip(path):
            path = str(packed.unpacked(Path(path), opening))
        return READERS[format](path, dataset, opening)


def _hdf5(path: str, dataset: str | None, opening: Opening) -> SourceArray:
    return open_dataset(path, h5py.File(path, "r", locking="best-effort"), dataset)


def open_dataset(path: str, file: h5py.File, dataset: str | None) -> SourceArray:
    """The dataset of an open HDF5 file; `path` is how messages name the file."""
    item = file.get(dataset) if dataset else None
    if not isinstance(item, h5py.Dataset):
        names: list[str] = []
        file.visititems(lambda name, found: names.append(name) if isinstance(found, h5py.Dataset) else None)
        raise InputError(f"{path} has no dataset {dataset!r}; it has {names}; correct dataset in the configuration")
    size = stated_voxel_size(dict(item.attrs)) or stated_voxel_size(dict(file.attrs))
    axes = _hdf5_axes(item)
    if axes is None:
        return SourceArray(path, item, size)
    data, places = ordered(path, item, axes)
    if size and len(axes) == 3 and not any(key.endswith("_zyx") for key in item.attrs):  # in the order of the axes
        size = product([size[axis] for axis in places])
    return SourceArray(path, data, size)


def _hdf5_axes(item: h5py.Dataset) -> list[str] | None:
    """Names by vigra's or ilastik's `axistags`, or by HDF5's dimension labels; None where z, y, x are not all named."""
    tags = item.attrs.get("axistags")
    if tags is not None:
        return [axis["key"] for axis in json.loads(tags)["axes"]]
    labels = [dimension.label.lower() for dimension in item.dims]
    return labels if {"z", "y", "x"}.issubset(labels) else None


class _Neuroproof:
    """Supervoxels `stack` passed through the table `transforms` (supervoxel, body)."""

    def __init__(self, file: h5py.File):
        self.stack = file["stack"]
        table = file["transforms"][:].astype(np.int64)
        order = np.argsort(table[:, 0], kind="stable")
        self.keys, self.bodies = table[order, 0], table[order, 1].astype(np.uint64)
        self.shape, self.dtype = self.stack.shape, self.bodies.dtype

    def __getitem__(self, index: Any) -> np.ndarray:
        stack = np.asarray(self.stack[index])
        position = np.minimum(np.searchsorted(self.keys, stack), len(self.keys) - 1)
        unknown = self.keys[position] != stack
        if unknown.any():
            raise InputError(f"{self.stack.file.filename}: supervoxel {stack[unknown][0]} is not in `transforms`")
        return self.bodies[position]


def _neuroproof(path: str, dataset: str | None, opening: Opening) -> SourceArray:
    file = h5py.File(path, "r", locking="best-effort")
    missing = {"stack", "transforms"} - set(file)
    if missing:
        raise InputError(f"{path} is not in neuroproof's form: it has {sorted(file)} but no {sorted(missing)}")
    return SourceArray(path, _Neuroproof(file), stated_voxel_size(dict(file.attrs)))


def _chunked(format: str) -> Reader:
    return lambda path, dataset, opening: open_chunked(path, format, dataset)


READERS: dict[str, Reader] = {
    "hdf5": _hdf5,
    "images": open_images,
    "mrc": open_mrc,
    "n5": _chunked("n5"),
    "neuroproof": _neuroproof,
    "nifti": open_nifti,
    "npy": open_npy,
    "nrrd": open_nrrd,
    "precomputed": _chunked("precomputed"),
    "tiff": open_tiff,
    "wkw": open_wkw,
    "zarr": lambda path, dataset, opening: open_zarr(path, dataset),
}
