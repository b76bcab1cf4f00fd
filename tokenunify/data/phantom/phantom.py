"""The phantom: generated neuropil as serial-section EM shows it, with dense ground truth, at 35 x 8 x 8 nm."""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.measure import label
from skimage.segmentation import relabel_sequential

from tokenunify.data.phantom import neurites
from tokenunify.data.phantom.neurites import Path
from tokenunify.data.phantom.staining import MITOCHONDRION, TUBULE, Stain, smooth_noise
from tokenunify.geometry import Coordinate

VOXEL_SIZE_NM = (35.0, 8.0, 8.0)
SLICES = 2
"""Slices drawn per section: a section shows the mean over its thickness, so oblique membranes fade."""
SLICE_NM = np.array([VOXEL_SIZE_NM[0] / SLICES, *VOXEL_SIZE_NM[1:]])
MARGIN = 16
"""Pixels drawn beyond the volume in y and x, from which the sections' shifts take."""
PAD_NM = 150.0
CORE = 0.65
"""Part of a neurite's radius that is drawn; the rest grows until neurites meet."""
MIN_VOXELS = 40


def generate(shape: Coordinate, seed: int, density: float = 1.0) -> tuple[NDArray[np.uint8], NDArray[np.uint32]]:
    """Generate raw and labels of `shape` (z, y, x), the same for the same arguments.

    Labels are 1..n without gaps or background, each connected; `density` scales the number of neurites per volume.
    """
    rng = np.random.default_rng(seed)
    drawn = (shape[0] * SLICES, shape[1] + 2 * MARGIN, shape[2] + 2 * MARGIN)
    paths = neurites.grow(np.full(3, -PAD_NM), np.array(drawn) * SLICE_NM + PAD_NM, density, rng)
    # The neurites' cores, which grow until they meet; smooth noise makes their membranes wavy.
    cores = np.zeros(drawn, np.int32)
    for path in paths:
        for point, radius in zip(path.points, path.radii, strict=True):
            neurites.paint_ball(cores, point / SLICE_NM, np.maximum(CORE * radius / SLICE_NM, 1), path.neurite)
    cells = cores[_nearest(cores == 0, SLICE_NM)]
    moved = []
    for axis, (size, length) in enumerate(zip(drawn, SLICE_NM, strict=True)):
        coarse = 40 * smooth_noise(drawn, tuple(320 / SLICE_NM), rng)
        fine = 10 * smooth_noise(drawn, tuple(110 / SLICE_NM), rng)
        start = np.arange(size).reshape([-1 if a == axis else 1 for a in range(3)])
        moved.append(np.clip(np.rint(start + (coarse + fine) / np.float32(length)), 0, size - 1).astype(np.int32))
    cells = cells[tuple(moved)]
    organelles, vesicles = _organelles(paths, drawn, rng)
    stain = Stain(int(cells.max()), (shape[0], *drawn[1:]), rng)
    # What alignment leaves, (y, x) in pixels: mostly a pixel, seldom a jump.
    shifts = rng.normal(0, 0.9, (shape[0], 2))
    jumps = rng.random(shape[0]) < 0.04
    shifts[jumps] += rng.normal(0, 4, (int(jumps.sum()), 2))
    shifts = np.clip(np.rint(shifts), -MARGIN, MARGIN).astype(int)
    # One section is lost in cutting, neither the first nor the last; none in very thin volumes.
    missing = int(rng.integers(1, shape[0] - 1)) if shape[0] >= 8 else -1
    raw, labels = np.empty(shape, np.uint8), np.empty(shape, np.uint32)
    for z in range(shape[0]):
        inside = slice(z * SLICES, (z + 1) * SLICES)
        below = cells[min((z + 1) * SLICES, len(cells) - 1)]
        near = vesicles[np.floor(vesicles[:, 0] / VOXEL_SIZE_NM[0]) == z, 1:] / VOXEL_SIZE_NM[1:]
        image = stain.section(z, cells[inside], below, organelles[inside], near)
        y, x = (slice(MARGIN + s, MARGIN + s + n) for s, n in zip(shifts[z], shape[1:], strict=True))
        raw[z] = 0 if z == missing else image[y, x]
        labels[z] = cells[z * SLICES + SLICES // 2, y, x]
    pieces = label(labels, background=0, connectivity=2)
    crumbs = (np.bincount(pieces.ravel()) < MIN_VOXELS)[pieces]
    if crumbs.any() and not crumbs.all():
        pieces = pieces[_nearest(crumbs, VOXEL_SIZE_NM)]
    return raw, relabel_sequential(pieces)[0].astype(np.uint32)


def _nearest(empty: NDArray[np.bool_], voxel_size: tuple[float, ...] | NDArray[np.float64]) -> tuple:
    """For each voxel, the indices of the nearest one that is not empty."""
    return tuple(ndimage.distance_transform_edt(empty, voxel_size, return_distances=False, return_indices=True))


def _organelles(
    paths: list[Path], shape: Coordinate, rng: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Draw mitochondria and tubules of the endoplasmic reticulum; place clouds of vesicles where neurites swell.

    Returns the image of the organelles, and the vesicles' centres (n, 3) in nm.
    """
    drawn = np.zeros(shape, np.uint8)
    for path in paths:
        steps = len(path.points)
        for _ in range(rng.poisson(steps * neurites.STEP_NM / 1100)):
            first = int(rng.integers(steps))
            part = slice(first, first + int(rng.uniform(8, 40)))
            for point, radius in zip(path.points[part], path.radii[part], strict=True):
                if radius > 75:
                    body = min(0.52 * radius, 140) / SLICE_NM
                    neurites.paint_ball(drawn, point / SLICE_NM, body, MITOCHONDRION)
        drift = np.cumsum(rng.normal(0, 0.12, (steps, 3)), axis=0) + rng.normal(0, 0.4, 3)
        for point, radius, aside in zip(path.points, path.radii, np.clip(drift, -0.5, 0.5), strict=True):
            if radius > 110:
                neurites.paint_ball(drawn, (point + radius * aside) / SLICE_NM, 28 / SLICE_NM, TUBULE)
    clouds = [np.empty((0, 3))]
    for path in paths:
        for _ in range(rng.poisson(len(path.points) * neurites.STEP_NM / 1500)):
            at = rng.integers(len(path.points))
            if path.radii[at] > 80:
                spread = 0.45 * path.radii[at] * rng.normal(size=(int(rng.uniform(15, 70)), 3))
                clouds.append(path.points[at] + spread)
    return drawn, np.concatenate(clouds)
