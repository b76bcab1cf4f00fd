"""Open source files as arrays that are read in boxes, whatever their format."""

import gzip
import os
import shutil
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import imageio.v3 as imageio
import numpy as np
import tifffile
import zarr
from PIL import Image

from tokenunify.data.ome_zarr import open_zarr
from tokenunify.data.source_array import NM, Sections, SourceArray, naming, product, stated_voxel_size
from tokenunify.data.sources import image_files
from tokenunify.errors import InputError
from tokenunify.geometry import VoxelSize

Image.MAX_IMAGE_PIXELS = None  # sections of EM exceed what Pillow takes for an attack
GZIP_MAGIC = b"\x1f\x8b"


def open_array(path: str | Path, format: str, dataset: str | None = None, scratch: Path | None = None) -> SourceArray:
    """Open a file, folder or glob of the given format; gzip files are unpacked into the folder `scratch` first.

    Raises InputError for an unreadable file, a dataset that is not there, and arrays that are not 3D.
    """
    path = str(path)
    with naming(path):
        if _is_packed(path):
            path = str(_unpacked(Path(path), scratch))
        return READERS[format](path, dataset)


def _is_packed(path: str) -> bool:
    """By content: an address need not end like the file behind it."""
    if not os.path.isfile(path):
        return False
    with open(path, "rb") as file:
        return file.read(len(GZIP_MAGIC)) == GZIP_MAGIC


def _unpacked(path: Path, scratch: Path | None) -> Path:
    scratch = scratch or Path(tempfile.mkdtemp(prefix="tokenunify-"))
    scratch.mkdir(parents=True, exist_ok=True)
    target = scratch / path.name.removesuffix(".gz")
    if not target.exists():
        temporary = scratch / f".{target.name}.{os.getpid()}"
        with gzip.open(path) as packed, open(temporary, "wb") as file:
            shutil.copyfileobj(packed, file, 2**20)
        os.replace(temporary, target)
    return target


def _hdf5(path: str, dataset: str | None) -> SourceArray:
    file = h5py.File(path, "r", locking="best-effort")
    item = file.get(dataset) if dataset else None
    if not isinstance(item, h5py.Dataset):
        names: list[str] = []
        file.visititems(lambda name, found: names.append(name) if isinstance(found, h5py.Dataset) else None)
        raise InputError(f"{path} has no dataset {dataset!r}; it has {names}; correct dataset in the configuration")
    return SourceArray(path, item, stated_voxel_size(dict(file.attrs)) or stated_voxel_size(dict(item.attrs)))


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


def _neuroproof(path: str, dataset: str | None) -> SourceArray:
    file = h5py.File(path, "r", locking="best-effort")
    missing = {"stack", "transforms"} - set(file)
    if missing:
        raise InputError(f"{path} is not in neuroproof's form: it has {sorted(file)} but no {sorted(missing)}")
    return SourceArray(path, _Neuroproof(file), stated_voxel_size(dict(file.attrs)))


def _npy(path: str, dataset: str | None) -> SourceArray:
    return SourceArray(path, np.load(path, mmap_mode="r", allow_pickle=False))


def _images(path: str, dataset: str | None) -> SourceArray:
    files = image_files(path)

    def read(z: int) -> np.ndarray:
        with naming(str(files[z])):
            return tifffile.imread(files[z]) if files[z].suffix.lower().startswith(".tif") else imageio.imread(files[z])

    return SourceArray(path, Sections(path, read, len(files)))


def _tiff(path: str, dataset: str | None) -> SourceArray:
    file = tifffile.TiffFile(path)
    series = file.series[0]
    size = _tiff_voxel_size(file)
    if len(series.shape) == 3 and len(series.pages) == series.shape[0]:
        turn = threading.Lock()

        def read(z: int) -> np.ndarray:
            with turn:
                return series.asarray(key=z)

        return SourceArray(path, Sections(path, read, series.shape[0]), size)
    return SourceArray(path, zarr.open_array(series.aszarr(level=0), mode="r"), size)


def _tiff_voxel_size(file: tifffile.TiffFile) -> VoxelSize | None:
    """From ImageJ's spacing and unit and the page's resolution."""
    metadata = file.imagej_metadata
    if not metadata:
        return None
    ratios = [file.pages.first.tags.valueof(f"{axis}Resolution", (0, 1)) for axis in "YX"]
    sizes = [units / pixels if pixels else 0 for pixels, units in ratios]
    return product([NM.get(str(metadata.get("unit")))] * 3, [metadata.get("spacing"), *sizes])


READERS: dict[str, Callable[[str, str | None], SourceArray]] = {
    "hdf5": _hdf5,
    "neuroproof": _neuroproof,
    "npy": _npy,
    "tiff": _tiff,
    "images": _images,
    "zarr": open_zarr,
}
