"""Open source files as arrays that are read in boxes, whatever their format."""

import gzip
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import h5py
import imageio.v3 as imageio
import numpy as np
import tifffile
from PIL import Image

from tokenunify.data.axes import Stated, agreed, of_attributes, ordered
from tokenunify.data.chunked import open_chunked
from tokenunify.data.flat import open_npy
from tokenunify.data.headed import open_mrc, open_nifti, open_nrrd
from tokenunify.data.ome_zarr import open_zarr
from tokenunify.data.source_array import Sections, SourceArray, naming, stated_voxel_size
from tokenunify.data.sources import image_files
from tokenunify.data.tiff import open_tiff
from tokenunify.data.webknossos import open_wkw
from tokenunify.errors import InputError

Image.MAX_IMAGE_PIXELS = None  # sections of EM exceed what Pillow takes for an attack
GZIP_MAGIC = b"\x1f\x8b"
Reader = Callable[[str, str | None, Path], SourceArray]
"""From path, dataset, and a folder for what has to be unpacked."""


def open_array(path: str | Path, format: str, dataset: str | None = None, scratch: Path | None = None) -> SourceArray:
    """Open a file, folder or glob of the given format; gzip files are unpacked into the folder `scratch` first.

    Raises InputError for an unreadable file, a dataset that is not there, and arrays that are not 3D.
    """
    path, scratch = str(path), scratch or Path(tempfile.gettempdir(), f"tokenunify-{os.getpid()}")
    with naming(path):
        if _is_packed(path):
            path = str(_unpacked(Path(path), scratch))
        return READERS[format](path, dataset, scratch)


def _is_packed(path: str) -> bool:
    """By content: an address need not end like the file behind it."""
    if not os.path.isfile(path):
        return False
    with open(path, "rb") as file:
        return file.read(len(GZIP_MAGIC)) == GZIP_MAGIC


def _unpacked(path: Path, scratch: Path) -> Path:
    scratch.mkdir(parents=True, exist_ok=True)
    target = scratch / path.name.removesuffix(".gz")
    if not target.exists():
        temporary = scratch / f".{target.name}.{os.getpid()}"
        with gzip.open(path) as packed, open(temporary, "wb") as file:
            shutil.copyfileobj(packed, file, 2**20)
        os.replace(temporary, target)
    return target


def _hdf5(path: str, dataset: str | None, scratch: Path) -> SourceArray:
    return open_dataset(path, h5py.File(path, "r", locking="best-effort"), dataset)


def open_dataset(path: str, file: h5py.File, dataset: str | None) -> SourceArray:
    """The dataset of an open HDF5 file; `path` is how messages name the file."""
    item = file.get(dataset) if dataset else None
    if not isinstance(item, h5py.Dataset):
        names: list[str] = []
        file.visititems(lambda name, found: names.append(name) if isinstance(found, h5py.Dataset) else None)
        raise InputError(f"{path} has no dataset {dataset!r}; it has {names}; correct dataset in the configuration")
    attributes, num_axes = dict(item.attrs), len(item.shape)
    axes = agreed(path, [*_hdf5_axes(item), *of_attributes(attributes)], num_axes)
    in_order: Sequence[str] = axes or "zyx"
    size = stated_voxel_size(attributes, in_order) or stated_voxel_size(dict(file.attrs), in_order)
    return SourceArray(path, ordered(path, item, axes)[0] if axes else item, size)


def _hdf5_axes(item: h5py.Dataset) -> list[Stated]:
    """By HDF5's dimension labels, and by the names of dimension scales."""
    labels = [dimension.label for dimension in item.dims]
    scales = [
        PurePosixPath(scale[0].name or "").name if (scale := dict(enumerate(dimension.values()))) else ""
        for dimension in item.dims
    ]
    return [Stated("its dimension labels", labels), Stated("its dimension scales", scales)]


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


def _neuroproof(path: str, dataset: str | None, scratch: Path) -> SourceArray:
    file = h5py.File(path, "r", locking="best-effort")
    missing = {"stack", "transforms"} - set(file)
    if missing:
        raise InputError(f"{path} is not in neuroproof's form: it has {sorted(file)} but no {sorted(missing)}")
    return SourceArray(path, _Neuroproof(file), stated_voxel_size(dict(file.attrs)))


def _images(path: str, dataset: str | None, scratch: Path) -> SourceArray:
    files = image_files(path)

    def read(z: int) -> np.ndarray:
        with naming(str(files[z])):
            return tifffile.imread(files[z]) if files[z].suffix.lower().startswith(".tif") else imageio.imread(files[z])

    return SourceArray(path, Sections(path, read, len(files)))


def _chunked(format: str) -> Reader:
    return lambda path, dataset, scratch: open_chunked(path, format, dataset)


READERS: dict[str, Reader] = {
    "hdf5": _hdf5,
    "images": _images,
    "mrc": open_mrc,
    "n5": _chunked("n5"),
    "neuroproof": _neuroproof,
    "nifti": open_nifti,
    "npy": open_npy,
    "nrrd": open_nrrd,
    "precomputed": _chunked("precomputed"),
    "tiff": open_tiff,
    "wkw": open_wkw,
    "zarr": lambda path, dataset, scratch: open_zarr(path, dataset),
}
