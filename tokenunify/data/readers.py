"""Open source files as arrays that are read in boxes, whatever their format."""

import contextlib
import gzip
import os
import shutil
import struct
import tempfile
import threading
import zlib
from collections.abc import Callable, Iterator
from functools import lru_cache
from math import inf, prod
from pathlib import Path
from typing import Any, Protocol

import h5py
import imageio.v3 as imageio
import numpy as np
import tifffile
import zarr
from PIL import Image

from tokenunify.data.sources import DISK_FULL, image_files
from tokenunify.errors import InputError
from tokenunify.geometry import VoxelSize

Image.MAX_IMAGE_PIXELS = None  # sections of EM exceed what Pillow takes for an attack
BAD_BYTES = (EOFError, SyntaxError, struct.error, zlib.error, tifffile.TiffFileError)
UNREADABLE = (OSError, ValueError, KeyError, IndexError, RuntimeError, *BAD_BYTES)
"""What the libraries raise on a bad file; Pillow raises SyntaxError."""
GZIP_MAGIC = b"\x1f\x8b"
NM = {"angstrom": 0.1, "nm": 1.0, "nanometer": 1.0, "um": 1e3, "\u00b5m": 1e3, "micron": 1e3, "micrometer": 1e3}
NM |= {"\\u00B5m": 1e3, "mm": 1e6, "millimeter": 1e6}
"""Units of length; ImageJ writes the micro sign as the six characters of its escape."""
STATED = {"voxel_size_nm": 1.0, "voxel_size_nm_zyx": 1.0, "resolution": 1.0, "element_size_um": 1e3}
"""Attributes in use for the voxel size (`resolution`: CREMI; `element_size_um`: ilastik) and their unit in nm."""


class ArrayLike(Protocol):
    """What a box can be read from."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> Any: ...

    def __getitem__(self, index: Any) -> Any: ...


class SourceArray:
    """A 3D array (z, y, x) in a file, read when indexed; reading errors name the file.

    `voxel_size_nm` is what the file states, or None; `sections` is there where whole sections are read at a time.
    """

    ndim = 3

    def __init__(self, path: str, data: ArrayLike, voxel_size_nm: VoxelSize | None = None):
        if len(data.shape) != 3:
            raise InputError(
                f"{path}: expected an array of 3 axes z, y, x, found {len(data.shape)} axes, shape {list(data.shape)}; "
                "give a 3D array, or a folder of images with one file per section"
            )
        if 0 in data.shape:
            raise InputError(
                f"{path}: expected voxels in every axis, found shape {list(data.shape)}; get the file again"
            )
        self.path, self.data, self.voxel_size_nm = path, data, voxel_size_nm
        self.sections = data if isinstance(data, _Sections) else None
        z, y, x = (int(n) for n in data.shape)
        self.shape = (z, y, x)
        self.dtype = np.dtype(data.dtype)

    def __getitem__(self, index: Any) -> np.ndarray:
        with naming(self.path):
            return np.asarray(self.data[index])

    @contextlib.contextmanager
    def keeping(self, num_sections: int) -> Iterator[None]:
        """Keep that many decoded sections meanwhile: boxes of the same sections, read in turn, decode each once."""
        if self.sections is None:
            yield
            return
        self.sections.keep(num_sections)
        try:
            yield
        finally:
            self.sections.keep(0)


def open_array(path: str | Path, format: str, dataset: str | None = None, scratch: Path | None = None) -> SourceArray:
    """Open a file, folder or glob of the given format; gzip files are unpacked into the folder `scratch` first.

    Raises InputError for an unreadable file, a dataset that is not there, and arrays that are not 3D.
    """
    path = str(path)
    with naming(path):
        if _is_packed(path):
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
        if getattr(error, "errno", None) in DISK_FULL:
            raise
        raise InputError(
            f"{path} cannot be read ({type(error).__name__}: {error}); it may be incomplete or of another format than "
            "the configuration says: get it again or correct format"
        ) from error


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
    sizes = (_product([nm] * 3, attributes.get(key)) for key, nm in STATED.items())
    return next(filter(None, sizes), None)


def _product(*factors: Any) -> VoxelSize | None:
    """Product per axis; None where that is not three positive numbers: such a voxel size is not stated."""
    try:
        z, y, x = (prod(map(float, values)) for values in zip(*map(np.ravel, factors), strict=True))
    except (TypeError, ValueError):
        return None
    return (z, y, x) if all(0 < size < inf for size in (z, y, x)) else None


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
    """A stack of equal 2D images, decoded one by one."""

    def __init__(self, name: str, read: Callable[[int], np.ndarray], num_sections: int):
        first = read(0)
        if first.ndim != 2:
            raise InputError(f"{name}: expected grey images of 2 axes y, x, found shape {list(first.shape)}")
        self.name, self.read = name, read
        self.shape, self.dtype = (num_sections, *first.shape), first.dtype
        self.keep(0)

    def keep(self, num_sections: int) -> None:
        """Keep that many of the sections decoded from now on; let go of earlier ones."""
        self.section = lru_cache(num_sections)(self._decode)

    def _decode(self, z: int) -> np.ndarray:
        image = self.read(z)
        if (image.shape, image.dtype) != (self.shape[1:], self.dtype):
            raise InputError(
                f"{self.name}: sections differ: the first is {self.dtype} {list(self.shape[1:])}, another is "
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

    return SourceArray(path, _Sections(path, read, len(files)))


def _tiff(path: str, dataset: str | None) -> SourceArray:
    file = tifffile.TiffFile(path)
    series = file.series[0]
    size = _tiff_voxel_size(file)
    if len(series.shape) == 3 and len(series.pages) == series.shape[0]:
        turn = threading.Lock()

        def read(z: int) -> np.ndarray:
            with turn:
                return series.asarray(key=z)

        return SourceArray(path, _Sections(path, read, series.shape[0]), size)
    return SourceArray(path, zarr.open_array(series.aszarr(level=0), mode="r"), size)


def _tiff_voxel_size(file: tifffile.TiffFile) -> VoxelSize | None:
    """From ImageJ's spacing and unit and the page's resolution."""
    metadata = file.imagej_metadata
    if not metadata:
        return None
    ratios = [file.pages.first.tags.valueof(f"{axis}Resolution", (0, 1)) for axis in "YX"]
    sizes = [units / pixels if pixels else 0 for pixels, units in ratios]
    return _product([NM.get(str(metadata.get("unit")))] * 3, [metadata.get("spacing"), *sizes])


def _zarr(path: str, dataset: str | None) -> SourceArray:
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
    return SourceArray(path, node, _stated_voxel_size(dict(node.attrs)))


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
    size = _product([NM.get(str(axis.get("unit"))) for axis in axes[-3:]], *scales) if scales else None
    return SourceArray(path, _Squeezed(array), size or _stated_voxel_size(dict(array.attrs)))


class _Squeezed:
    """The last three axes of an array whose other axes have size 1."""

    def __init__(self, array: zarr.Array):
        self.array, self.first = array, (0,) * (array.ndim - 3)
        self.shape, self.dtype = array.shape[-3:], array.dtype

    def __getitem__(self, index: Any) -> np.ndarray:
        rest = index if isinstance(index, tuple) else (index,)
        return self.array[(*self.first, *rest)]


READERS: dict[str, Callable[[str, str | None], SourceArray]] = {
    "hdf5": _hdf5,
    "neuroproof": _neuroproof,
    "npy": _npy,
    "tiff": _tiff,
    "images": _images,
    "zarr": _zarr,
}
