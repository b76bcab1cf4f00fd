"""Levels of an image pyramid: sizes, reduction, and the OME-Zarr 0.5 metadata that describes them."""

from collections.abc import Sequence
from math import ceil
from typing import Any

import numpy as np

from tokenunify.geometry import Coordinate

VIEW = 128
"""The last level fits into a square of about this many pixels."""
NEARLY_ISOTROPIC = 1.5
VoxelSize = tuple[float, float, float]


def levels(shape: Coordinate, voxel_size_nm: VoxelSize) -> list[tuple[Coordinate, VoxelSize]]:
    """Shape and voxel size per level, full resolution first; thick sections stay until y and x are about as coarse."""
    found = [(shape, voxel_size_nm)]
    while max(found[-1][0][1:]) > VIEW:
        factor = factors(*found[-1])
        found.append(
            (
                _three(ceil(n / f) for n, f in zip(found[-1][0], factor, strict=True)),
                _three(v * f for v, f in zip(found[-1][1], factor, strict=True)),
            )
        )
    return found


def factors(shape: Coordinate, voxel_size_nm: VoxelSize) -> Coordinate:
    """Reduction (1 or 2 per axis) from a level to the next one."""
    coarsest = max(v for v, n in zip(voxel_size_nm, shape, strict=True) if n > 1)
    fine = [v * NEARLY_ISOTROPIC < coarsest for v in voxel_size_nm]
    halved = fine if any(f and n > 1 for f, n in zip(fine, shape, strict=True)) else [True] * 3
    return _three(2 if h and n > 1 else 1 for h, n in zip(halved, shape, strict=True))


def reduce_mean(image: np.ndarray, factor: Coordinate) -> np.ndarray:
    """Mean over windows of `factor` voxels, rounded; windows at the far faces repeat the last voxel."""
    return np.rint(_windows(image, factor).mean(axis=-1, dtype=np.float32)).astype(image.dtype)


def reduce_mode(labels: np.ndarray, factor: Coordinate) -> np.ndarray:
    """Most frequent label of each window of `factor` voxels, the first of equals."""
    windows = _windows(labels, factor)
    votes = np.stack([(windows == windows[..., i : i + 1]).sum(axis=-1) for i in range(windows.shape[-1])], axis=-1)
    return np.take_along_axis(windows, votes.argmax(axis=-1)[..., None], axis=-1)[..., 0]


def _windows(array: np.ndarray, factor: Coordinate) -> np.ndarray:
    padded = np.pad(array, [(0, -n % f) for n, f in zip(array.shape, factor, strict=True)], mode="edge")
    split = padded.reshape([k for n, f in zip(padded.shape, factor, strict=True) for k in (n // f, f)])
    return split.transpose(0, 2, 4, 1, 3, 5).reshape(*split.shape[::2], -1)


def multiscales(name: str, sizes: Sequence[VoxelSize], offset_nm: VoxelSize, method: str) -> dict[str, Any]:
    """The `ome` attribute of an image group whose levels 0, 1, ... have these voxel sizes in nm.

    A reduced voxel's centre lies between those of its window, which the translation says.
    """
    datasets = []
    for level, size in enumerate(sizes):
        centre = [o + (s - first) / 2 for o, s, first in zip(offset_nm, size, sizes[0], strict=True)]
        moves = [{"type": "scale", "scale": list(size)}, {"type": "translation", "translation": centre}]
        datasets.append({"path": str(level), "coordinateTransformations": moves})
    axes = [{"name": axis, "type": "space", "unit": "nanometer"} for axis in "zyx"]
    return {"version": "0.5", "multiscales": [{"name": name, "type": method, "axes": axes, "datasets": datasets}]}


def _three(values: Any) -> Any:
    z, y, x = values
    return z, y, x
