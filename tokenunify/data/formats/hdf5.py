"""Data sets of HDF5 files, and the labels that neuroproof writes in them."""

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
    """A data set; other files that it is made of lie in the file's folder, and a file that was unpacked has none."""
    return open_dataset(path, hdf5_references.opened(path), dataset, _folder(path, opening.scratch))


def _folder(path: str, scratch: Path) -> str | None:
    return None if Path(path).parent == scratch else hdf5_references.folder_of(path)


def open_dataset(path: str, file: h5py.File, dataset: str | None, folder: str | None = None) -> SourceArray:
    """The data set of an open HDF5 file; `path` is how messages name the file, `folder` has all it may refer to."""
    followed = hdf5_references.follow(path, file, dataset, folder) if dataset else None
    if followed is None:
        names: list[str] = []
        file.visititems(lambda name, found: names.append(name) if isinstance(found, h5py.Dataset) else None)
        raise InputError(f"{path} has no dataset {dataset!r}; it has {names}; correct dataset in the configuration")
    found, item = Voxels(path, followed), followed.dataset
    attributes, tags = _attributes(item), _attribute(item, "axistags")
    vigra = of_attributes({"axistags": tags})  # unlike the others, it has no other meaning
    if not vigra and "axistags" in item.attrs and not isinstance(tags, h5py.Empty):
        raise InputError(
            f"{path}: expected vigra's description of axes in the attribute axistags of {item.name}, found {tags!r}; "
            "correct or remove the attribute"
        )
    labels = Stated("its dimension labels", [dimension.label for dimension in item.dims])
    attached = [dict(enumerate(dimension.values())) for dimension in item.dims]
    scales = [PurePosixPath(scale[0].name or "").name if scale else "" for scale in attached]
    stated = [*vigra, labels, Stated("its dimension scales", scales), *of_attributes(attributes)]
    axes = agreed(path, stated, len(item.shape))
    in_order: Sequence[str] = axes or "zyx"
    size = stated_voxel_size(attributes, in_order) or stated_voxel_size(_attributes(file), in_order)
    data: Voxels | Ordered = Ordered(found, order(path, axes, found.shape)) if axes else found
    return SourceArray(path, data, size, _unwritten(data))


def _unwritten(data: "Voxels | Ordered") -> Unwritten:
    return Unwritten(lambda box: data.unwritten(box.slices))


class Voxels:
    """A data set read when indexed; InputError for a type that is no number, and for filters that are missing."""

    def __init__(self, path: str, followed: Followed):
        self.path, self.followed, self.dataset = path, followed, followed.dataset
        try:
            self.dtype = self.dataset.dtype  # booleans are an enumeration in HDF5; other enumerations are integers
            found = f"a compound of {list(self.dtype.names)}" if self.dtype.names else str(self.dtype)
            found = "text or references" if self.dtype.kind == "O" else found
            is_number = self.dtype.kind in NUMBERS
        except TypeError as error:
            found, is_number = str(error), False
        if not is_number:
            raise InputError(
                f"{path}: expected integers or floats in {self.dataset.name}, of a size that numpy has, found {found}; "
                "give another dataset, or store the numbers alone as one"
            )
        if self.dataset.shape is None:
            raise InputError(f"{path}: {self.dataset.name} is a data set without voxels; give another as dataset")
        self.shape, self.chunks = self.dataset.shape, self.dataset.chunks

    def __getitem__(self, index: Any) -> np.ndarray:
        try:
            values = self.dataset[index]
        except OSError as error:
            missing = self.followed.filters
            if not missing:
                raise
            known = ", ".join(f"{code} ({FILTERS.get(code) or told or 'not named'})" for code, told in missing.items())
            advice = (
                "install the package hdf5plugin, which has it, and set HDF5_PLUGIN_PATH to its folder (pip install "
                'hdf5plugin; export HDF5_PLUGIN_PATH=$(python -c "import hdf5plugin; print(hdf5plugin.PLUGIN_PATH)"))'
                if missing.keys() <= FILTERS.keys()
                else "set HDF5_PLUGIN_PATH to the folder with its plugin"
            )
            raise InputError(
                f"{self.path}: {self.dataset.name} is packed by the HDF5 filter {known}, which is not installed; "
                f"{advice}, or run `h5repack -f GZIP=1` on the file where it can be read"
            ) from error
        hdf5_references.check_there(self.path, self.followed)
        return values

    def unwritten(self, box: hdf5_unwritten.Box) -> int:
        """Number of voxels of a box that nobody has written: HDF5 reads the fill value there."""
        return hdf5_unwritten.voxels(self.dataset, self.followed.parts, box)


def _attributes(item: Any) -> dict:
    """The attributes that state axes or a voxel size, without those that are empty or that h5py cannot read."""
    found = ((key, _attribute(item, key)) for key in STATING)
    return {key: value for key, value in found if value is not None and not isinstance(value, h5py.Empty)}


def _attribute(item: Any, key: str) -> Any:
    try:
        return item.attrs.get(key)
    except (OSError, TypeError, ValueError, RuntimeError):
        return None


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
    """The labels of a file as neuroproof writes it: supervoxels, and a table of the bodies that they belong to."""
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
