"""Fragments (supervoxels): a seeded watershed of the boundary map, in each section or in 3D."""

from functools import reduce
from pathlib import Path
from typing import Any

import bioimage_cpp as bic
import numpy as np
from skimage.morphology import local_maxima

from tokenunify.config import Fragments
from tokenunify.geometry import Coordinate, Roi, check_shapes
from tokenunify.kernels.components import numbered
from tokenunify.segmentation.distance import capped_distance
from tokenunify.segmentation.flood import flood
from tokenunify.stages.sections import Fragments as Section
from tokenunify.store import arrays, blockwise, forms


def boundary_map(affinities: np.ndarray, settings: Fragments) -> np.ndarray:
    """Boundary in [0, 1] (z, y, x), float32: 1 - mean, or 1 - minimum, of the affinities' channels.

    affinities (3, z, y, x): float32, or uint8 as stored, of which no copy in floats is made.
    """
    channels = affinities[1:] if settings.dimensions == 2 else affinities
    if settings.boundary == "max":
        return 1 - _in_floats(channels.min(axis=0))
    return 1 - reduce(np.add, map(_in_floats, channels)) / np.float32(len(channels))


def _in_floats(values: np.ndarray) -> np.ndarray:
    return arrays.to_float(values) if values.dtype == np.uint8 else values


def watershed(affinities: np.ndarray, settings: Fragments) -> np.ndarray:
    """Fragments (z, y, x), uint32, of affinities as for `boundary_map`: every voxel gets one, ids are unique and > 0.

    Seeds are the regional maxima (a plateau is one seed) of the distance to the boundary; where there is no boundary
    at all, or nothing else (a missing section), they are the regional minima of the map that is flooded.
    """
    boundary = boundary_map(affinities, settings)
    if settings.dimensions == 3:
        return basins(boundary, settings)
    fragments = np.empty(boundary.shape, np.uint32)
    last = 0
    for section, target in zip(boundary, fragments, strict=True):
        target[:] = basins(section, settings)
        target += np.uint32(last)
        last = int(target.max())
    return fragments


def basins(boundary: np.ndarray, settings: Fragments) -> np.ndarray:
    """Fragments of a section or a volume, uint32 from 1."""
    heights, seeds = landscape(boundary, settings)
    fragments = flood(heights, seeds)
    return flood(heights, without_small(fragments, min_size=settings.min_size)) if settings.min_size else fragments


def landscape(boundary: np.ndarray, settings: Fragments) -> tuple[np.ndarray, np.ndarray]:
    """Heights to flood, float32 in [0, 1], and seeds (uint32, from 1), of a section or a volume."""
    distance = distances(boundary < settings.threshold, settings)
    heights = _smooth(boundary, settings.sigma_weights)
    if settings.distance_weight and (farthest := distance.max()) > 0:
        inverted = 1 - (distance - distance.min()) / farthest
        heights = np.float32(1 - settings.distance_weight) * heights + np.float32(settings.distance_weight) * inverted
    return heights, seeds_of(distance, heights, connectivity=boundary.ndim if settings.diagonal_seeds else 1)


def distances(inside: np.ndarray, settings: Fragments) -> np.ndarray:
    """Euclidean distance, in voxels, of each voxel inside to the boundary, capped (Fragments.halo), then smoothed."""
    cap = min(settings.halo[-inside.ndim :]) or sum(inside.shape)
    if inside.all():
        return np.full(inside.shape, cap, np.float32)
    return _smooth(capped_distance(inside, cap=cap), settings.sigma_seeds)


def _smooth(values: np.ndarray, sigma: float) -> np.ndarray:
    return bic.filters.gaussian_smoothing(values, sigma) if sigma else values


def seeds_of(distance: np.ndarray, heights: np.ndarray, *, connectivity: int) -> np.ndarray:
    """Labels (uint32, from 1) of the regional maxima of `distance`; if it is constant, of the minima of `heights`."""
    landscape = distance if distance.min() < distance.max() else -heights
    maxima = local_maxima(landscape, connectivity=connectivity)
    if not maxima.any():  # constant: one plateau
        maxima[:] = True
    return bic.segmentation.label(maxima, connectivity=connectivity).astype(np.uint32)


def without_small(fragments: np.ndarray, *, min_size: int) -> np.ndarray:
    """Fragments with 0 in place of those of fewer than `min_size` voxels; all stay where none is larger."""
    gone = (np.bincount(fragments.ravel()) < min_size)[fragments]
    return fragments if gone.all() else np.where(gone, np.uint32(0), fragments)


def number(fragments: np.ndarray, roi: Roi, volume_shape: Coordinate, *, dimensions: int) -> np.ndarray:
    """Canonical ids (uint64) of the fragments of a box: 1 + raster index in the volume of a fragment's first voxel.

    What the box's faces cut apart becomes separate fragments (connected by faces, within a section if dimensions is 2).
    Fragment 0 stays 0.
    """
    ids = np.empty(fragments.shape, np.uint64)
    depth = len(fragments) if dimensions == 3 else 1
    for z in range(0, len(fragments), depth):
        components, first = numbered(fragments[z : z + depth])
        place = np.unravel_index(first, components.shape)
        in_volume = (place[0] + z + roi.offset[0], place[1] + roi.offset[1], place[2] + roi.offset[2])
        names = np.zeros(first.size + 1, np.uint64)
        names[1:] = 1 + np.ravel_multi_index(in_volume, volume_shape)
        np.take(names, components, out=ids[z : z + depth], mode="clip")  # the mode that writes straight into `out`
    return ids


def of_block(affinities: Any, mask: Any, roi: Roi, settings: Fragments) -> np.ndarray:
    """Fragments (z, y, x), uint64, of a box of a volume.

    affinities (c, z, y, x), uint8, nearest neighbours first, and mask (z, y, x) or None: the volume's arrays or stores.
    Where the mask is 0 the affinities count as 0, and so do the fragments.
    """
    z, y, x = affinities.shape[-3:]
    halo = (0, *settings.halo[1:]) if settings.dimensions == 2 else settings.halo
    outer = roi.grow(halo, halo, (z, y, x))
    values = affinities[(slice(0, 3), *outer.slices)]
    if mask is None:
        fragments = watershed(values, settings)
    else:
        inside = mask[outer.slices]
        fragments = watershed(values * inside, settings) * inside
    return number(fragments[roi.within(outer)], roi, (z, y, x), dimensions=settings.dimensions)


def run(
    section: Section,
    plain: dict,
    *,
    affinities: Path,
    volume: Path,
    prepared: Path,
    output: Path,
    part: tuple[int, int],
) -> None:
    """Fill a part of the blocks of the `fragments` store (z, y, x), uint64."""
    source, opened = arrays.open_prepared(affinities, forms.Affinities), arrays.open_volume(volume)
    check_shapes(str(affinities), source.shape[-3:], str(volume), opened.raw.shape)

    def compute(_index: int, roi: Roi) -> np.ndarray:
        return of_block(source, opened.mask, roi, section)

    blockwise.fill(prepared, output, compute, part=part, plain=plain, inputs=[affinities, volume])
