"""Data sets of HDF5 files, and neuroproof's labels in them."""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import h5py
import numpy as np

from tokenunify.data.formats import hdf5_references, hdf5_unwritten
from tokenunify.data.formats.absent import Unwritten
from tokenunify.data.formats.axes import ATTRIBUTES, Ordered, Stated, agreed, of_attributes, order
from tokenunify.data.formats.hdf5_references import Followed
from tokenunify.data.formats.source_array import NUMBERS, STATED, Opening, SourceArray, stated_voxel_size
from tokenunify.errors import InputError

FILTERS = {
    307: "bzip2",
    32000: "lzf",
    32001: "blosc",
    32004: "lz4",
    32008: "bitshuffle",
    32013: "zfp",
    32015: "zstd",
    32017: "sz",
    32018: "fcidecomp",
    32024: "sz3",
    32026: "blosc2",
    32028: "sperr",
    32029: "htj2k",
}
"""Names of the filters that the package hdf5plugin has."""
STATING = (*STATED, "units", "voxel_size", *ATTRIBUTES)
"""Attributes that state a voxel size or the axes."""


def open_hdf5(path: str, dataset: str | None, opening: Opening) -> SourceArray:
    """A data set, with all that it is made of in the folder of the file; one that was unpacked has no such folder."""
    return open_dataset(path, hdf5_references.opened(path), dataset, _folder(path, opening.scratch))


def _folder(path: str, scratch: Path) -> str | None:
    return None if Path(path).parent == scratch else hdf5_references.folder_of(path)


def open_dataset(path: str, file: h5py.File, dataset: str | None, folder: str | None = None) -> SourceArray:
    """The dataset of an open HDF5 file; `path` is how messages name the file, `folder` what it may refer to."""
    followed = hdf5_references.follow(path, file, dataset, folder) if dataset else None
    if followed is None:
        names: list[str] = []
        file.visititems(lambda name, found: names.append(name) if isinstance(found, h5py.Dataset) else None)
        raise InputError(f"{path} has no dataset {dataset!r}; it has {names}; correct dataset in the configuration")
    item = followed.dataset
    found, attributes = Voxels(path, followed), _attributes(item)
    axes = agreed(path, [*_axistags(path, item), *_hdf5_axes(item), *of_attributes(attributes)], len(item.shape))
    in_order: Sequence[str] = axes or "zyx"
    size = stated_voxel_size(attributes, in_order) or stated_voxel_size(_attributes(file), in_order)
    data: Voxels | Ordered = Ordered(found, order(path, axes, found.shape)) if axes else found
    return SourceArray(path, data, size, _unwritten(data))


def _unwritten(data: "Voxels | Ordered") -> Unwritten:
    return Unwritten(lambda box: data.unwritten(box.slices))


class Voxels:
    """A data set read when indexed. InputError tells of types that are no numbers, and of filters that are missing."""

    def __init__(self, path: str, followed: Followed):
        self.path, self.followed, self.dataset = path, followed, followed.dataset
        self.dtype = _dtype(path, self.dataset)
        if self.dataset.shape is None:
            raise InputError(f"{path}: {self.dataset.name} is a data set without voxels; give another as dataset")
        self.shape, self.chunks = self.dataset.shape, self.dataset.chunks

    def __getitem__(self, index: Any) -> np.ndarray:
        try:
            values = self.dataset[index]
        except OSError as error:
            if self.followed.filters:
                raise InputError(_no_filter(self.path, self.dataset.name, self.followed.filters)) from error
            raise
        hdf5_references.check_there(self.path, self.followed)
        return values

    def unwritten(self, box: hdf5_unwritten.Box) -> int:
        """Voxels of a box that nobody has written, where the file has its fill value."""
        return hdf5_unwritten.voxels(self.dataset, self.followed.parts, box)


def _dtype(path: str, dataset: h5py.Dataset) -> np.dtype:
    """The type, if it is integers, floats or booleans (enumerations in HDF5; other enumerations are integers)."""
    try:
        dtype = dataset.dtype
    except TypeError as error:
        raise InputError(_no_number(path, dataset.name, str(error))) from None
    if dtype.kind in NUMBERS:
        return dtype
    fields = f"a compound of {list(dtype.names)}" if dtype.names else str(dtype)
    raise InputError(_no_number(path, dataset.name, "text or references" if dtype.kind == "O" else fields))


def _no_number(path: str, name: str, found: str) -> str:
    return (
        f"{path}: expected integers or floats in {name}, of a size that numpy has, found {found}; give "
        "another dataset, or store the numbers alone as one"
    )


def _no_filter(path: str, name: str, filters: dict[int, str]) -> str:
    known = ", ".join(f"{code} ({FILTERS.get(code) or told or 'not named'})" for code, told in filters.items())
    advice = (
        "install the package hdf5plugin, which has it, and set HDF5_PLUGIN_PATH to its folder (pip install hdf5plugin; "
        'export HDF5_PLUGIN_PATH=$(python -c "import hdf5plugin; print(hdf5plugin.PLUGIN_PATH)"))'
        if filters.keys() <= FILTERS.keys()
        else "set HDF5_PLUGIN_PATH to the folder with its plugin"
    )
    return (
        f"{path}: {name} is packed by the HDF5 filter {known}, which is not installed; {advice}, or run `h5repack -f "
        "GZIP=1` on the file where it can be read"
    )


def _attributes(item: Any) -> dict:
    """Those that state axes or a voxel size; one that h5py cannot read states nothing, nor does an empty one."""
    found = ((key, _attribute(item, key)) for key in STATING)
    return {key: value for key, value in found if value is not None and not isinstance(value, h5py.Empty)}


def _attribute(item: Any, key: str) -> Any:
    try:
        return item.attrs.get(key)
    except (OSError, TypeError, ValueError, RuntimeError):
        return None


def _hdf5_axes(item: h5py.Dataset) -> list[Stated]:
    """By HDF5's dimension labels, and by the names of dimension scales."""
    labels = [dimension.label for dimension in item.dims]
    scales = [
        PurePosixPath(scale[0].name or "").name if (scale := dict(enumerate(dimension.values()))) else ""
        for dimension in item.dims
    ]
    return [Stated("its dimension labels", labels), Stated("its dimension scales", scales)]


def _axistags(path: str, item: h5py.Dataset) -> list[Stated]:
    """By vigra's or ilastik's `axistags`, which is that and nothing else."""
    tags = _attribute(item, "axistags")
    if "axistags" not in item.attrs or isinstance(tags, h5py.Empty):
        return []
    if not (found := of_attributes({"axistags": tags})):
        raise InputError(
            f"{path}: expected vigra's description of axes in the attribute axistags of {item.name}, found {tags!r}; "
            "correct or remove the attribute"
        )
    return found


class _Neuroproof:
    """Supervoxels `stack` passed through the table `transforms` (supervoxel, body)."""

    def __init__(self, path: str, stack: Voxels, transforms: np.ndarray):
        table = transforms.astype(np.int64)
        order = np.argsort(table[:, 0], kind="stable")
        self.path, self.stack = path, stack
        self.keys, self.bodies = table[order, 0], table[order, 1].astype(np.uint64)
        self.shape, self.dtype = stack.shape, self.bodies.dtype

    def __getitem__(self, index: Any) -> np.ndarray:
        stack = np.asarray(self.stack[index])
        position = np.minimum(np.searchsorted(self.keys, stack), len(self.keys) - 1)
        unknown = self.keys[position] != stack
        if unknown.any():
            raise InputError(f"{self.path}: supervoxel {stack[unknown][0]} is not in `transforms`")
        return self.bodies[position]


def open_neuroproof(path: str, dataset: str | None, opening: Opening) -> SourceArray:
    """Labels as neuroproof writes them."""
    file = hdf5_references.opened(path)
    found = [
        hdf5_references.follow(path, file, name, _folder(path, opening.scratch)) for name in ("stack", "transforms")
    ]
    stack, table = (Voxels(path, followed) if followed else None for followed in found)
    if stack is None or table is None:
        missing = sorted({"stack", "transforms"} - set(file))
        raise InputError(f"{path} is not in neuroproof's form: it has {sorted(file)} but no {missing}")
    if len(table.shape) != 2 or table.shape[1] != 2 or not table.shape[0]:
        raise InputError(
            f"{path}: expected rows of two ids (supervoxel, body) in `transforms`, found shape {list(table.shape)}; "
            "get the file again"
        )
    size = stated_voxel_size(_attributes(file))
    return SourceArray(path, _Neuroproof(path, stack, table[:]), size, _unwritten(stack))
