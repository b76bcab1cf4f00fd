"""How stained sections look: membranes, cytoplasm, mitochondria, vesicles, uneven contrast, blur and noise."""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from tokenunify.geometry import Coordinate

Image = NDArray[np.float32]
Section = NDArray[np.uint8]

CYTOPLASM, MEMBRANE, MATRIX, LUMEN = 182.0, 52.0, 112.0, 196.0
MITOCHONDRION, TUBULE = 1, 2
"""Values of the organelle image."""
VESICLE_RADIUS = 2.4
BLUR, NOISE, GRAIN = 0.75, 11.0, 13.0


def smooth_noise(shape: tuple[int, ...], scale: tuple[float, ...], rng: np.random.Generator) -> Image:
    """Noise of unit variance that varies over `scale` voxels per axis, interpolated between coarse random values."""
    coarse = [int(np.ceil(n / s)) + 3 for n, s in zip(shape, scale, strict=True)]
    values = rng.normal(size=coarse).astype(np.float32)
    for axis, (n, s) in enumerate(zip(shape, scale, strict=True)):
        position = np.arange(n) / s + 1
        index, rest = position.astype(int), position % 1
        weights = (_spline(rest + 1), _spline(rest), _spline(1 - rest), _spline(2 - rest))
        column = [-1 if a == axis else 1 for a in range(len(shape))]
        parts = [np.take(values, index + k - 1, axis) * w.astype("f4").reshape(column) for k, w in enumerate(weights)]
        values = np.sum(parts, axis=0, dtype=np.float32)
    return values * np.float32(1.5 ** len(shape))


def _spline(distance: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cubic B-spline: positive, so the noise has no overshoot."""
    near = 2 / 3 - distance**2 + distance**3 / 2
    return np.where(distance < 1, near, np.maximum(2 - distance, 0) ** 3 / 6)


class Stain:
    """Draws sections one after the other; what varies from neurite to neurite stays the same in all of them."""

    def __init__(self, num_neurites: int, shape: Coordinate, rng: np.random.Generator):
        self.rng = rng
        self.grey = (CYTOPLASM + rng.normal(0, 11, num_neurites + 1)).astype(np.float32)
        self.slow = smooth_noise(shape, (6, 120, 120), rng)
        self.phase = 9 * smooth_noise(shape, (8, 60, 60), rng)
        self.pale = int(rng.integers(shape[0]))

    def section(self, z: int, cells: NDArray, below: NDArray, organelles: NDArray, vesicles: NDArray) -> Section:
        """Section z as uint8 (y, x) from its slices of cells and organelles (s, y, x).

        `below` is the first slice of the next section, `vesicles` (n, 2) centres in pixels.
        """
        # Membranes, faint where they lie flat in the section.
        stained = np.mean([borders(cell) for cell in cells], axis=0, dtype=np.float32)
        flat = np.mean([a != b for a, b in zip(cells, [*cells[1:], below], strict=True)], axis=0, dtype=np.float32)
        stained = ndimage.gaussian_filter(np.maximum(stained, 0.45 * flat), 0.6) * 1.25
        uneven = 1 + 0.22 * smooth_noise(stained.shape, (14, 14), self.rng)
        membrane = np.clip(stained * uneven, 0, 0.95)
        image = self.grey[cells].mean(axis=0) + GRAIN * self._grain(membrane.shape)
        # Mitochondria with cristae, and the walls of all organelles.
        free = ndimage.gaussian_filter(membrane, 1.5) < 0.12
        inside = (organelles == MITOCHONDRION).mean(axis=0, dtype=np.float32) * free
        cristae = np.abs(np.sin(self.phase[z] + np.arange(image.shape[1]) * 0.28)) ** 2
        texture = MATRIX - 34 * cristae + 8 * self._grain(image.shape)
        image = image + (texture - image) * ndimage.gaussian_filter(inside, 0.5)
        walls = np.mean([borders(o) for o in organelles], axis=0, dtype=np.float32) * free
        image = image + (MEMBRANE + 12 - image) * np.clip(0.8 * ndimage.gaussian_filter(walls, 0.6), 0, 0.85)
        # Vesicles: pale discs with dark rims, where their centre is free of membranes.
        free = ndimage.maximum_filter(membrane, 5) < 0.4
        for centre in vesicles:
            y, x = np.round(centre).astype(int)
            if not (4 <= y < image.shape[0] - 4 and 4 <= x < image.shape[1] - 4 and free[y, x]):
                continue
            box = image[y - 4 : y + 5, x - 4 : x + 5]
            rows, columns = np.ogrid[y - 4 : y + 5, x - 4 : x + 5]
            distance = np.hypot(rows - centre[0], columns - centre[1])
            ring = 0.75 * np.exp(-(((distance - VESICLE_RADIUS) / 0.8) ** 2))
            box += (LUMEN - box) * (distance < VESICLE_RADIUS - 0.5)
            box += (MEMBRANE + 20 - box) * ring
        image += (MEMBRANE - image) * membrane
        # Thickness, staining and the detector: blur, contrast and brightness differ from section to section.
        image = ndimage.gaussian_filter(image, BLUR * self.rng.uniform(0.85, 1.35)) + 7 * self.slow[z]
        gain, offset = self.rng.normal(1, 0.07), self.rng.normal(0, 7)
        if z == self.pale:
            gain *= 0.6
        noise = self.rng.normal(0, NOISE, image.shape)
        return np.clip(np.rint(140 + offset + gain * (image - 140) + noise), 1, 255).astype(np.uint8)

    def _grain(self, shape: tuple[int, ...]) -> Image:
        fine = ndimage.gaussian_filter(self.rng.normal(size=shape).astype(np.float32), 1.1)
        return fine / np.float32(0.26)


def borders(cells: NDArray) -> NDArray[np.bool_]:
    """Pixels of a 2D label image that touch another label along y or x: a membrane two pixels wide."""
    marked = np.zeros(cells.shape, bool)
    for axis in (0, 1):
        one, other = [slice(None)] * 2, [slice(None)] * 2
        one[axis], other[axis] = slice(None, -1), slice(1, None)
        differs = cells[tuple(one)] != cells[tuple(other)]
        marked[tuple(one)] |= differs
        marked[tuple(other)] |= differs
    return marked
