"""HDF5 files `v.h5` whose voxels are in other files of their folder; each function returns the path and the dataset."""

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
from h5py import h5p, h5s

SHAPE = (6, 20, 30)
Made = tuple[Path, str]


def virtual(
    folder: Path,
    volume: np.ndarray,
    *,
    name: Callable[[int], str] = lambda z: f"s{z}.h5",
    skip: tuple = (),
    part: bool = False,
) -> Made:
    """A file s0.h5, s1.h5, ... of each section: taken whole, or a part of one that has more."""
    layout = h5py.VirtualLayout(volume.shape, volume.dtype)
    for z, section in enumerate(volume):
        with h5py.File(folder / f"s{z}.h5", "w") as file:
            file["d"] = np.pad(section, ((0, 3), (0, 2))) if part else section
            stored = file["d"].shape
        source = h5py.VirtualSource(name(z), "d", stored)
        if z not in skip:
            layout[z] = source[: section.shape[0], : section.shape[1]] if part else source
    with h5py.File(folder / "v.h5", "w") as file:
        file.create_virtual_dataset("raw", layout, fillvalue=0)
    return folder / "v.h5", "raw"


def numbered(folder: Path, volume: np.ndarray, *, files: bool = True) -> Made:
    """Sections of any number: files s0.h5, s1.h5, ... or data sets d0, d1, ... of s.h5."""
    for z in range(len(volume)):
        name, dataset = (f"s{z}.h5", "d") if files else ("s.h5", f"d{z}")
        with h5py.File(folder / name, "w" if files or z == 0 else "a") as file:
            file[dataset] = volume[z : z + 1]
    target = _growing(volume.shape)
    target.select_hyperslab((0, 0, 0), (h5s.UNLIMITED, 1, 1), (1, 1, 1), (1, *volume.shape[1:]))
    source = h5s.create_simple((1, *volume.shape[1:]))
    return _mapped(folder, volume, [(target, b"s%b.h5" if files else b"s.h5", b"d" if files else b"d%b", source)])


def unlimited(folder: Path, volume: np.ndarray, *, lengths: tuple[int, int] | None = None) -> Made:
    """Two files that grow along z, of half the sections' columns each."""
    half, mappings = volume.shape[2] // 2, []
    for number, length in enumerate(lengths or (len(volume), len(volume))):
        with h5py.File(folder / f"s{number}.h5", "w") as file:
            file.create_dataset("d", data=volume[:length], maxshape=(None, *volume.shape[1:]))
        spaces = _growing(volume.shape), _growing(volume.shape)
        for space in spaces:
            block = (h5s.UNLIMITED, volume.shape[1], half)
            space.select_hyperslab((0, 0, half * number), (1, 1, 1), (1, 1, 1), block)
        mappings.append((spaces[0], f"s{number}.h5".encode(), b"d", spaces[1]))
    return _mapped(folder, volume, mappings)


def _growing(shape: tuple[int, ...]):
    return h5s.create_simple(shape, (h5s.UNLIMITED, *shape[1:]))


def _mapped(folder: Path, volume: np.ndarray, mappings: list) -> Made:
    layout = h5p.create(h5p.DATASET_CREATE)
    for mapping in mappings:
        layout.set_virtual(*mapping)
    with h5py.File(folder / "v.h5", "w") as file:
        h5py.h5d.create(file.id, b"raw", h5py.h5t.STD_U8LE, _growing(volume.shape), layout)
    return folder / "v.h5", "raw"


def external(folder: Path, volume: np.ndarray, *, absolute: bool = False) -> Made:
    """Voxels as they are in memory, in v.raw."""
    name = str(folder / "v.raw") if absolute else "v.raw"
    with h5py.File(folder / "v.h5", "w") as file:
        layout = h5p.create(h5p.DATASET_CREATE)
        layout.set_external(name.encode(), 0, volume.nbytes)
        h5py.h5d.create(file.id, b"raw", h5py.h5t.STD_U8LE, h5s.create_simple(volume.shape), layout)
    (folder / "v.raw").write_bytes(volume.tobytes())
    return folder / "v.h5", "raw"


def external_link(folder: Path, volume: np.ndarray, dataset: str = "raw", *, name: str = "raw") -> Made:
    """A link to the data set d of other.h5, or to the group that holds it."""
    with h5py.File(folder / "other.h5", "w") as file:
        file["g/d"] = volume
    with h5py.File(folder / "v.h5", "w") as file:
        file[name] = h5py.ExternalLink("other.h5", "/g/d")
        file["group"] = h5py.ExternalLink("other.h5", "g")
    return folder / "v.h5", dataset
