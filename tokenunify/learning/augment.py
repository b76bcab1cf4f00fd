"""Augmentations of a training crop: raw (z, y, x) float32 in [0, 1] and its labels change together.

What moves voxels moves both, raw interpolated linearly, labels by the nearest voxel; beyond the crop's faces both are
mirrored. Every function draws from the generator that it is given and from nothing else.
"""

from itertools import permutations

import numpy as np
from scipy.ndimage import gaussian_filter, map_coordinates, zoom

from tokenunify.config import Augment, RawAugment
from tokenunify.geometry import Coordinate, VoxelSize

Axes = tuple[int, int, int]

CONTRAST, BRIGHTNESS, GAMMA = 1.25, 0.1, 1.4  # factor up to, shift up to, exponent up to (and their inverses)
SECTION_CONTRAST, SECTION_BRIGHTNESS = 1.1, 0.04
NOISE = 0.1  # largest standard deviation
BLUR = 1.2  # standard deviation up to (from 0.3), in voxels of the section plane
SHIFT = 8  # largest misalignment in voxels
ELASTIC_SPACING, ELASTIC_SHIFT = 32, 4.0  # voxels between control points, standard deviation of their displacement
ISOTROPY = 1.1  # voxel sizes within this ratio count as equal


def interchangeable(a: float, b: float) -> bool:
    """Whether two axes with these voxel sizes may be exchanged."""
    return max(a, b) <= ISOTROPY * min(a, b)


def choose_axes(rng: np.random.Generator, config: RawAugment, voxel_size_nm: VoxelSize) -> tuple[Axes, Axes]:
    """A permutation of the axes that the voxel size allows, and the axes' steps: 1, or -1 for a flip."""
    as_it_is = (0, 1, 2)
    others = [
        (a, b, c)
        for a, b, c in permutations(as_it_is)
        if (a, b, c) != as_it_is and all(map(interchangeable, voxel_size_nm, [voxel_size_nm[i] for i in (a, b, c)]))
    ]
    turned = rng.random() < config.rotate and others
    order = others[rng.integers(len(others))] if turned else as_it_is
    z, y, x = np.where(rng.random(3) < config.flip, -1, 1).tolist()
    return order, (z, y, x)


def shape_before(shape: Coordinate, order: Axes) -> Coordinate:
    """Extent to read so that `reorient` gives `shape`."""
    z, y, x = (shape[order.index(axis)] for axis in range(3))
    return z, y, x


def reorient(array: np.ndarray, order: Axes, steps: Axes) -> np.ndarray:
    """Permute the axes, then flip those with step -1."""
    return array.transpose(order)[tuple(slice(None, None, step) for step in steps)]


def deform(
    rng: np.random.Generator, config: Augment, raw: np.ndarray, labels: np.ndarray, voxel_size_nm: VoxelSize
) -> tuple[np.ndarray, np.ndarray]:
    """Elastic deformation and misaligned sections."""
    if rng.random() < config.elastic:
        flat = not interchangeable(voxel_size_nm[0], voxel_size_nm[1])
        coordinates = elastic_coordinates(rng, raw.shape, flat)
        raw = map_coordinates(raw, coordinates, order=1, mode="mirror")
        nearest = (mirrored(np.rint(c).astype(np.intp), n) for c, n in zip(coordinates, labels.shape, strict=True))
        labels = labels[tuple(nearest)]
    if rng.random() < config.misalign:
        first, shift = int(rng.integers(1, max(2, len(raw)))), tuple(rng.integers(-SHIFT, SHIFT + 1, 2).tolist())
        raw, labels = shift_behind(raw, first, shift), shift_behind(labels, first, shift)
    return raw, labels


def elastic_coordinates(rng: np.random.Generator, shape: tuple[int, ...], flat: bool) -> np.ndarray:
    """Sampling positions (3, z, y, x) displaced smoothly; with `flat` within sections, equally in all of them."""
    grid = [1 if flat and axis == 0 else max(2, n // ELASTIC_SPACING + 2) for axis, n in enumerate(shape)]
    positions = np.indices(shape, np.float32)
    for axis in range(1 if flat else 0, 3):
        knots = rng.normal(0, ELASTIC_SHIFT, grid).astype(np.float32)
        smooth = zoom(
            knots, [1 if g == 1 else n / g for n, g in zip(shape, grid, strict=True)], order=3, mode="nearest"
        )
        positions[axis] += smooth
    return positions


def mirrored(index: np.ndarray, length: int) -> np.ndarray:
    """Indices outside [0, length) reflected at the first and the last voxel, as often as needed."""
    period = max(1, 2 * (length - 1))
    folded = index % period
    return np.minimum(folded, period - folded) if length > 1 else np.zeros_like(index)


def shift_behind(array: np.ndarray, first: int, shift: tuple[int, int]) -> np.ndarray:
    """Move all sections from `first` on by `shift` (y, x) voxels."""
    _, height, width = array.shape
    rows, columns = mirrored(np.arange(height) - shift[0], height), mirrored(np.arange(width) - shift[1], width)
    return np.concatenate([array[:first], array[first:][:, rows][:, :, columns]])


def degrade(rng: np.random.Generator, config: Augment, raw: np.ndarray, voxel_size_nm: VoxelSize) -> np.ndarray:
    """Changes of the raw alone: intensity, blur, noise, a lost section."""
    if rng.random() < config.intensity:
        raw = intensity(rng, raw)
    if rng.random() < config.blur:
        sigma = rng.uniform(0.3, BLUR) * voxel_size_nm[1] / np.asarray(voxel_size_nm)
        raw = gaussian_filter(raw, sigma)
    if rng.random() < config.noise:
        raw = raw + rng.normal(0, rng.uniform(0, NOISE), raw.shape).astype(np.float32)
    if rng.random() < config.missing:
        raw = raw.copy()
        raw[rng.integers(len(raw))] = rng.choice([0.0, raw.mean()])
    return np.clip(raw, 0, 1)


def intensity(rng: np.random.Generator, raw: np.ndarray) -> np.ndarray:
    """Contrast, brightness and gamma of the crop, then contrast and brightness of every section."""
    raw = (raw - 0.5) * _factor(rng, CONTRAST) + 0.5 + rng.uniform(-BRIGHTNESS, BRIGHTNESS)
    raw = np.clip(raw, 0, 1) ** _factor(rng, GAMMA)
    contrast = _factor(rng, SECTION_CONTRAST, len(raw))[:, None, None]
    brightness = rng.uniform(-SECTION_BRIGHTNESS, SECTION_BRIGHTNESS, (len(raw), 1, 1))
    return ((raw - 0.5) * contrast + 0.5 + brightness).astype(np.float32)


def _factor(rng: np.random.Generator, largest: float, size: int | None = None) -> np.ndarray:
    return np.exp(rng.uniform(-np.log(largest), np.log(largest), size))
