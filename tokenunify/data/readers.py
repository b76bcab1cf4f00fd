"""Open source files as arrays that are read in boxes, whatever their format."""

import contextlib
import errno
import gzip
import os
import shutil
import tempfile
import threading
import zlib
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import h5py
import imageio.v3 as imageio
import numpy as np
import tifffile
import zarr

from tokenunify.data.sources import image_files
from tokenunify.errors import InputError

UNREADABLE = (OSError, ValueError, KeyError, IndexError, RuntimeError, EOFError, zlib.error, tifffile.TiffFileError)
CACHED_SECTIONS = 40
"""Decoded images kept: more than a layer of shards is thick, so that each is decoded once."""
NM = {"angstrom": 0.1, "nm": 1.0, "nanometer": 1.0, "um": 1e3, "\u00b5m": 1e3, "micron": 1e3, "micrometer": 1e3}
STATED = {"voxel_size_nm": 1.0, "voxel_size_nm_zyx": 1.0, "resolution": 1.0, "element_size_um": 1e3}
"""Attributes in use for the voxel size (`resolution`: CREMI; `element_size_um`: ilastik) and their unit in nm."""
VoxelSize = tuple[float, float, float]


class ArrayLike(Protocol):
    """What a box can be read from."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> Any: ...

    def __getitem__(self, index: Any) -> Any: ...


class SourceArray:
    """A 3D array (z, y, x) in a file, read when indexed; reading errors name the file.

    `voxel_size_nm` is what the file states, or None; `sections` tells that whole sections are read at a time.
    """

    ndim = 3

    def __init__(self, path: str, data: ArrayLike, voxel_size_nm: VoxelSize | None = None, *, sections: bool = False):
        if len(data.shape) != 3:
            raise InputError(
                f"{path}: expected an array of 3 axes z, y, x, found {len(data.shape)} axes, shape {list(data.shape)}; "
                "give a 3D array, or a folder of images with one file per section"
            )
        self.path, self.data, self.voxel_size_nm, self.sections = path, data, voxel_size_nm, sections
        z, y, x = (int(n) for n in data.shape)
        self.shape = (z, y, x)
        self.dtype = np.dtype(data.dtype)

    def __getitem__(self, index: Any) -> np.ndarray:
        with naming(self.path):
            return np.asarray(self.data[index])


def open_array(path: str | Path, format: str, dataset: str | None = None, scratch: Path | None = None) -> SourceArray:
    """Open a file, folder or glob of the given format; `.gz` files are unpacked into the folder `scratch` first.

    Raises InputError for an unreadable file, a dataset that is not there, and arrays that are not 3D.
    """
    path = str(path)
    with naming(path):
        if path.endswith(".gz"):
            path = str(_unpacked(Path(path), scratch))
        return READERS[format](path, dataset)


@contextlib.contextmanager
def naming(path: str) -> Iterator[None]:
    """Turn whatever a library raises on a bad file into an InputError that names the file."""
    try:
        yield
    except InputError:
        raise
    except UNREADABLE as error:
        if getattr(error, "errno", None) == errno.ENOSPC:
            raise
        raise InputError(
            f"{path} cannot be read ({type(error).__name__}: {error}); it may be incomplete or of another format than "
            "the configuration says: get it again or correct format"
        ) from error


def _unpacked(path: Path, scratch: Path | None) -> Path:
    scratch = scratch or Path(tempfile.mkdtemp(prefix="tokenunify-"))
    scratch.mkdir(parents=True, exist_ok=True)
    target = scratch / path.stem
    if not target.exists():
        temporary = scratch / f".{path.stem}.{os.getpid()}"
        with gzip.open(path) as packed, open(temporary, "wb") as file:
            shutil.copyfileobj(packed, file, 2**20)
        os.replace(temporary, target)
    return target


# ------------------------------------------------------------------------------------------------ formats


def _hdf5(path: str, dataset: str | None) -> SourceArray:
    file = h5py.File(path, "r", locking="best-effort")
    item = file.get(dataset) if dataset else None
    if not isinstance(item, h5py.Dataset):
        names: list[str] = []
        file.visititems(lambda name, found: names.append(name) if isinstance(found, h5py.Dataset) else None)
        raise InputError(f"{path} has no dataset {dataset!r}; it has {names}; correct dataset in the configuration")
    return SourceArray(path, item, _stated_voxel_size(dict(file.attrs)) or _stated_voxel_size(dict(item.attrs)))


def _stated_voxel_size(attributes: dict) -> VoxelSize | None:
    for key, nm in STATED.items():
        if np.size(attributes.get(key, ())) == 3:
            z, y, x = (float(value) * nm for value in attributes[key])
            return z, y, x
    return None


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
    return SourceArray(path, _Neuroproof(file), _stated_voxel_size(dict(file.attrs)))


def _npy(path: str, dataset: str | None) -> SourceArray:
    return SourceArray(path, np.load(path, mmap_mode="r", allow_pickle=False))


class _Sections:
    """A stack of equal 2D images, decoded one by one and kept for a while."""

    def __init__(self, name: str, read: Callable[[int], np.ndarray], num_sections: int):
        self.name = name
        first = self._checked(read(0), None)
        self.shape, self.dtype = (num_sections, *first.shape), first.dtype
        self.section = lru_cache(CACHED_SECTIONS)(lambda z: self._checked(read(z), first))

    def _checked(self, image: np.ndarray, first: np.ndarray | None) -> np.ndarray:
        if image.ndim != 2:
            raise InputError(f"{self.name}: expected grey images of 2 axes y, x, found shape {list(image.shape)}")
        if first is not None and (image.shape, image.dtype) != (first.shape, first.dtype):
            raise InputError(
                f"{self.name}: sections differ: the first is {first.dtype} {list(first.shape)}, another is "
                f"{image.dtype} {list(image.shape)}; make them equal"
            )
        return image

    def __getitem__(self, index: Any) -> np.ndarray:
        z, *rest = index if isinstance(index, tuple) else (index,)
        if not isinstance(z, slice):
            return self.section(range(self.shape[0])[z])[tuple(rest)]
        sections = [self.section(i)[tuple(rest)] for i in range(*z.indices(self.shape[0]))]
        return np.stack(sections) if sections else np.empty((0, *self.shape[1:]), self.dtype)


def _images(path: str, dataset: str | None) -> SourceArray:
    files = image_files(path)

    def read(z: int) -> np.ndarray:
        with naming(str(files[z])):
            return tifffile.imread(files[z]) if files[z].suffix.lower().startswith(".tif") else imageio.imread(files[z])

    return SourceArray(path, _Sections(path, read, len(files)), sections=True)


def _tiff(path: str, dataset: str | None) -> SourceArray:
    file = tifffile.TiffFile(path)
    series = file.series[0]
    size = _tiff_voxel_size(file)
    if len(series.shape) == 3 and len(series.pages) == series.shape[0]:
        turn = threading.Lock()

        def read(z: int) -> np.ndarray:
            with turn:
                return series.asarray(key=z)

        return SourceArray(path, _Sections(path, read, series.shape[0]), size, sections=True)
    return SourceArray(path, zarr.open_array(series.aszarr(level=0), mode="r"), size)


def _tiff_voxel_size(file: tifffile.TiffFile) -> VoxelSize | None:
    """From ImageJ's spacing and unit and the page's resolution."""
    metadata, page = file.imagej_metadata or {}, file.pages.first
    nm = NM.get(str(metadata.get("unit", "")))
    if nm is None or "spacing" not in metadata or "XResolution" not in page.tags:
        return None
    x, y = (page.tags[name].value[1] / page.tags[name].value[0] * nm for name in ("XResolution", "YResolution"))
    return float(metadata["spacing"]) * nm, float(y), float(x)


def _zarr(path: str, dataset: str | None) -> SourceArray:
    node = zarr.open(path, mode="r")
    size = None
    if dataset is not None:
        if not isinstance(node, zarr.Group) or dataset not in node:
            known = sorted(node) if isinstance(node, zarr.Group) else "a single array"
            raise InputError(f"{path} has no {dataset!r}; it has {known}; correct dataset in the configuration")
        node = node[dataset]
    if isinstance(node, zarr.Group):
        node, size = _highest_resolution(path, node)
    return SourceArray(path, node, size or _stated_voxel_size(dict(node.attrs)))


def _highest_resolution(path: str, group: zarr.Group) -> tuple[zarr.Array, VoxelSize | None]:
    """First dataset of an OME-Zarr image (0.4 or 0.5) and its scale in nm."""
    attributes = dict(group.attrs)
    images = attributes.get("ome", attributes).get("multiscales")
    if not images:
        raise InputError(f"{path} is a group without multiscales; it has {sorted(group)}; give dataset")
    first = images[0]["datasets"][0]
    scales = [t["scale"] for t in first.get("coordinateTransformations", []) if t["type"] == "scale"]
    units = [NM.get(axis.get("unit", "")) if isinstance(axis, dict) else None for axis in images[0].get("axes", [])]
    if not scales or len(scales[0]) != 3 or len(units) != 3 or None in units:
        return group[first["path"]], None
    z, y, x = (float(s) * float(u or 1) for s, u in zip(scales[0], units, strict=True))
    return group[first["path"]], (z, y, x)


READERS: dict[str, Callable[[str, str | None], SourceArray]] = {
    "hdf5": _hdf5,
    "neuroproof": _neuroproof,
    "npy": _npy,
    "tiff": _tiff,
    "images": _images,
    "zarr": _zarr,
}
