"""The `raw-watershed` baseline: Gaussian-smoothed raw intensities stand for affinities (bright inside, dark membrane).

The affinity of voxel v and its lower neighbour along an axis is the smaller of the two smoothed intensities, / 255: the
pair is parted as soon as one of them is on a membrane. Beyond the volume's face v stands alone.
"""

from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter1d

from tokenunify.errors import InputError
from tokenunify.geometry import Roi
from tokenunify.stages.sections import Baseline
from tokenunify.store import arrays, blockwise

TRUNCATE = 4.0
"""Standard deviations after which the Gaussian is cut."""


def smooth(raw: np.ndarray, sigma: tuple[float, ...]) -> np.ndarray:
    """Gaussian smoothing of uint8 intensities (z, y, x), `sigma` in voxels; float64."""
    smoothed = raw.astype(np.float64)
    for axis, width in enumerate(sigma):
        if reach(width):
            smoothed = gaussian_filter1d(smoothed, width, axis, mode="nearest", radius=reach(width))
    return smoothed


def reach(sigma: float) -> int:
    """Voxels on either side that the smoothing sees."""
    return int(TRUNCATE * sigma + 0.5)


def lower_of_pairs(values: np.ndarray) -> np.ndarray:
    """Per axis the smaller of each voxel and its lower neighbour: (z, y, x) to (3, z, y, x)."""
    pairs = np.stack([values] * 3)
    for axis in range(3):
        here = np.moveaxis(pairs[axis], axis, 0)
        here[1:] = np.minimum(here[1:], np.moveaxis(values, axis, 0)[:-1])
    return pairs


def run(section: Baseline, plain: dict, *, raw: Path, prepared: Path, output: Path, part: tuple[int, int]) -> None:
    """Fill a part of the blocks of the `affinities` store (3, z, y, x), uint8; any blocking gives the same bytes."""
    volume = arrays.open_volume(raw)
    if volume.raw.dtype != np.uint8:
        raise InputError(f"{raw}: the baseline needs raw of type uint8, found {volume.raw.dtype}; convert the source")
    z, y, x = volume.raw.shape
    sigma = tuple(section.sigma_nm / size for size in volume.voxel_size_nm)
    context = (reach(sigma[0]), reach(sigma[1]), reach(sigma[2]))
    low = (context[0] + 1, context[1] + 1, context[2] + 1)

    def compute(_index: int, roi: Roi) -> np.ndarray:
        outer = roi.grow(low, context, (z, y, x))
        smoothed = np.rint(smooth(volume.raw[outer.slices], sigma)).astype(np.uint8)
        return lower_of_pairs(smoothed)[(slice(None), *roi.within(outer))]

    blockwise.fill(prepared, output, compute, part=part, plain=plain, inputs=[raw])
