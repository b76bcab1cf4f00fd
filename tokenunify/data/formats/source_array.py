"""What every reader returns: an array (z, y, x) read in boxes, with the voxel size that its file states."""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from math import inf, prod
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import dask
import numpy as np

from tokenunify.data.formats.absent import Absence, Count
from tokenunify.data.read_errors import naming
from tokenunify.errors import InputError
from tokenunify.geometry import Roi, VoxelSize

NM = {"angstrom": 0.1, "nm": 1.0, "nanometer": 1.0, "um": 1e3, "\u00b5m": 1e3, "micron": 1e3, "micrometer": 1e3}
NM |= {"\u03bcm": 1e3, "\\u00B5m": 1e3, "microns": 1e3, "mm": 1e6, "millimeter": 1e6, "meter": 1e9}
"""Units of length; ImageJ writes the micro sign as the six characters of its escape."""
NUMBERS = "biuf"
"""Kinds of numpy's types that voxels may have."""
KEPT_BYTES = 2**28
"""Decoded sections that are kept may take so many bytes of memory; more are kept in files."""
STATED = {"voxel_size_nm": 1.0, "voxel_size_nm_zyx": 1.0, "resolution": 1.0, "element_size_um": 1e3}
"""Attributes in use for the voxel size (`resolution`: CREMI; `element_size_um`: ilastik) and their unit in nm."""
Stated = tuple[float | None, float, float]
"""A voxel size in nm (z, y, x) as a file states it; None where it does not say how thick sections are."""


class Opening(NamedTuple):
    """How a file is opened: where and how much may be unpacked, and what its values are."""

    scratch: Path
    max_bytes: float = inf
    is_grey: bool = True
    """Whether tags that tell how values are shown hold: they do not for the numbers of labels and masks."""

    def check(self, what: str, num_bytes: int) -> None:
        """Raise InputError for an image that is larger, decoded, than the limit or than the memory."""
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if num_bytes > min(self.max_bytes, memory):
            limits = f"download.max_unpacked_gb allows {self.max_bytes / 1e9:g}, the memory {memory / 1e9:.3g}"
            raise InputError(
                f"{what} takes {num_bytes / 1e9:g} GB when decoded, by its header; {limits}: cut it into tiles or "
                "smaller sections, or raise the limit"
            )


class ArrayLike(Protocol):
    """What a box can be read from."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> Any: ...

    def __getitem__(self, index: Any) -> Any: ...


class SourceArray:
    """A 3D array (z, y, x) in a file, read when indexed; reading errors name the file.

    `voxel_size_nm` is what the file states, or None. `sections` is set where whole sections are read at a time. For a
    box that was fetched alone, `box` is its place in the source, `whole` the source's shape, and `lacking` what was
    counted as absent there. `absence` tells what the file does not store, where its format allows that.
    """

    ndim = 3

    def __init__(self, path: str, data: ArrayLike, voxel_size_nm: Stated | None = None, absence: Absence | None = None):
        if len(data.shape) != 3:
            raise InputError(
                f"{path}: expected an array of 3 axes z, y, x, found {len(data.shape)} axes, shape {list(data.shape)}; "
                "give a 3D array, or a folder of images with one file per section"
            )
        if 0 in data.shape:
            raise InputError(
                f"{path}: expected voxels in every axis, found shape {list(data.shape)}; get the file again"
            )
        self.dtype = np.dtype(data.dtype)
        if self.dtype.kind not in NUMBERS:
            raise InputError(
                f"{path}: expected voxels that are integers, floats or booleans, found {self.dtype}; store the numbers "
                "alone, as one of these"
            )
        self.path, self.data, self.voxel_size_nm = path, data, voxel_size_nm
        self.sections = data if isinstance(data, Sections) else None
        z, y, x = (int(n) for n in data.shape)
        self.shape = (z, y, x)
        self.box, self.whole = Roi((0, 0, 0), self.shape), self.shape
        self.absence = absence
        self.lacking: Count | None = None

    @property
    def depth(self) -> int:
        """Sections of a chunk of the file: boxes of that many decode each chunk once."""
        chunks = getattr(self.data, "chunks", None)
        return int(chunks[0]) if chunks else 1

    def __getitem__(self, index: Any) -> np.ndarray:
        with naming(self.path):
            return np.asarray(self.data[index])

    def absent(self, box: Roi) -> Count:
        """How much of the box the source does not store; a box that was fetched alone counts as a whole."""
        if self.lacking or not self.absence:
            return self.lacking or Count(0, 0)
        with naming(self.path):
            return self.absence.absent(box)

    def read(self, box: Roi) -> np.ndarray:
        """The voxels of a box of the source."""
        return self[box.within(self.box)]

    @contextlib.contextmanager
    def keeping(self, num_sections: int, scratch: Path) -> Iterator[None]:
        """Keep that many decoded sections meanwhile: boxes of the same sections, read in turn, decode each once.

        Sections that are too large for memory are kept in files of the folder `scratch`.
        """
        if self.sections is None:
            yield
            return
        self.sections.keep(num_sections, scratch)
        try:
            yield
        finally:
            self.sections.keep(0)


class Sections:
    """A stack of equal 2D images, decoded one by one; those asked for last may be kept. Several threads may ask."""

    def __init__(self, name: str, read: Callable[[int], np.ndarray], num_sections: int):
        first = read(0)
        if first.ndim != 2:
            raise InputError(f"{name}: expected grey images of 2 axes y, x, found shape {list(first.shape)}")
        self.name, self.read = name, read
        self.shape, self.dtype = (num_sections, *first.shape), first.dtype
        self.turn = threading.Lock()
        self.keep(0)

    def keep(self, num_sections: int, scratch: Path | None = None) -> None:
        """Keep that many of the sections decoded from now on, in memory or as files; let go of earlier ones."""
        size = num_sections * prod(self.shape[1:]) * self.dtype.itemsize
        self.num_kept, self.folder = num_sections, scratch if size > KEPT_BYTES else None
        self.kept: dict[int, np.ndarray | Path] = {}  # in the order in which they leave

    def _cut(self, z: int, rest: tuple) -> np.ndarray:
        """A part of a section: of the one that is kept, or else of one that is decoded, and kept, now."""
        with self.turn:
            found = self.kept.pop(z, None)
            if found is not None:
                self.kept[z] = found  # to the end of those that leave
        if found is None:
            found = image = self.read(z)
            if (image.shape, image.dtype) != (self.shape[1:], self.dtype):
                raise InputError(
                    f"{self.name}: sections differ: the first is {self.dtype} {list(self.shape[1:])}, another is "
                    f"{image.dtype} {list(image.shape)}; make them equal"
                )
            if self.folder is not None:
                self.folder.mkdir(parents=True, exist_ok=True)
                found = self.folder / f"{z}.npy"
                np.save(found, image)
            with self.turn:
                self.kept[z] = found
                while len(self.kept) > self.num_kept:
                    left = self.kept.pop(next(iter(self.kept)))
                    if isinstance(left, Path):
                        left.unlink()
        return np.array(np.load(found, mmap_mode="r")[rest]) if isinstance(found, Path) else found[rest]

    def __getitem__(self, index: Any) -> np.ndarray:
        z, *rest = index if isinstance(index, tuple) else (index,)
        if not isinstance(z, slice):
            return self._cut(range(self.shape[0])[z], tuple(rest))
        sections = dask.compute(*(dask.delayed(self._cut)(i, tuple(rest)) for i in range(*z.indices(self.shape[0]))))
        return np.stack(sections) if sections else np.empty((0, *self.shape[1:]), self.dtype)


def stated_voxel_size(attributes: dict, names: Sequence[str] = "zyx") -> VoxelSize | None:
    """Voxel size in nm (z, y, x) that the attributes of a file or an array state.

    It stands in the order of the axes, whose `names` are given: a number for each of them, or for z, y and x alone.
    """
    for key, nm in STATED.items():
        in_order = "zyx" if key.endswith("_zyx") else names
        if size := product([nm] * 3, turned(attributes.get(key), in_order)):
            return size
    units = _in_nm(attributes.get("units"))
    if size := product(turned(units, names), turned(attributes.get("voxel_size"), names)):
        return size
    transform = attributes.get("transform")  # COSEM's, which names the axes of its scale and their units
    if not isinstance(transform, dict) or not isinstance(transform.get("axes"), list):
        return None
    its_names = [str(name).lower() for name in transform["axes"]]
    return product(turned(_in_nm(transform.get("units")), its_names), turned(transform.get("scale"), its_names))


def turned(values: Any, names: Sequence[str]) -> list | None:
    """The values stated for the named axes, or for those of space alone, in the order z, y, x; None without them."""
    space = [name for name in names if name in ("z", "y", "x")]
    named = names if values is not None and np.size(values) == len(names) else space
    try:
        by_name = dict(zip(named, values, strict=True))
        return [by_name[axis] for axis in "zyx"]
    except (KeyError, TypeError, ValueError):
        return None


def _in_nm(units: Any) -> list[float | None] | None:
    """The units of length as numbers of nm; one may stand for all axes."""
    units = [units] * 3 if isinstance(units, str) else units
    return [NM.get(str(unit)) for unit in units] if isinstance(units, list) else None


def product(*factors: Any) -> VoxelSize | None:
    """The product of the factors for each axis; None where it is not three positive numbers: no size is stated then."""
    try:
        z, y, x = (prod(map(float, values)) for values in zip(*map(np.ravel, factors), strict=True))
    except (TypeError, ValueError):
        return None
    return (z, y, x) if all(0 < size < inf for size in (z, y, x)) else None
