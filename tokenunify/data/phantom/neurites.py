"""Centre lines of generated neurites: branching walks that keep apart. Lengths in nm, order z, y, x."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

CELL_NM = 24.0
"""Grid of the space that is already taken."""
STEP_NM = 30.0
MEDIAN_RADIUS_NM = 85.0
NUM_PER_CUBIC_MICRON = 48.0
BRANCHES_PER_MICRON = 0.35
SPINES_PER_MICRON = 0.8
SPINY_RADIUS_NM = 140.0

Vector = NDArray[np.float64]


@dataclass
class Path:
    """One unbranched piece of a neurite: points (n, 3) along the centre line and the radius at each."""

    neurite: int
    points: Vector
    radii: Vector


@dataclass
class _Space:
    """Which neurite has taken each cell of the box [low, high); 0 is free."""

    low: Vector
    high: Vector
    owner: NDArray[np.int32] = field(init=False)

    def __post_init__(self) -> None:
        self.owner = np.zeros(np.ceil((self.high - self.low) / CELL_NM).astype(int) + 1, np.int32)

    def cells(self, points: Vector) -> NDArray[np.int64]:
        return np.clip(((points - self.low) / CELL_NM).astype(int), 0, np.array(self.owner.shape) - 1)

    def inside(self, point: Vector) -> bool:
        return bool((point >= self.low).all() and (point < self.high).all())

    def free(self, points: Vector, neurite: int) -> NDArray[np.bool_]:
        owner = self.owner[tuple(np.moveaxis(self.cells(points), -1, 0))]
        return (owner == 0) | (owner == neurite)

    def take(self, point: Vector, radius: float, neurite: int) -> None:
        paint_ball(self.owner, (point - self.low) / CELL_NM, np.full(3, radius / CELL_NM), neurite)


def paint_ball(grid: NDArray, centre: Vector, radii: Vector, value: int) -> None:
    """Set the zero voxels of `grid` within an ellipsoid (centre and half axes in voxels) to `value`."""
    low = np.maximum(np.ceil(centre - radii).astype(int), 0)
    high = np.minimum(np.floor(centre + radii).astype(int) + 1, grid.shape)
    if (low >= high).any():
        return
    z, y, x = (((np.arange(a, b) - c) / r) ** 2 for a, b, c, r in zip(low, high, centre, radii, strict=True))
    box = grid[low[0] : high[0], low[1] : high[1], low[2] : high[2]]
    box[(z[:, None, None] + y[:, None] + x <= 1) & (box == 0)] = value


def grow(low: Vector, high: Vector, density: float, rng: np.random.Generator) -> list[Path]:
    """Fill the box [low, high) with neurites, the thick ones first.

    `density` scales the number per volume; calibres follow so that the packing stays the same.
    """
    space = _Space(low, high)
    count = max(8, round(NUM_PER_CUBIC_MICRON * density * np.prod((high - low) / 1000)))
    median = MEDIAN_RADIUS_NM / np.sqrt(density)
    radii = np.sort(np.clip(rng.lognormal(np.log(median), 0.42, count), 0.6 * median, 2.8 * median))[::-1]
    paths: list[Path] = []
    for neurite, radius in enumerate(radii, start=1):
        free = np.flatnonzero(space.owner.ravel() == 0)
        if free.size == 0:
            break
        picks = np.stack(np.unravel_index(rng.choice(free, 40), space.owner.shape), axis=1)
        starts = space.low + (picks + 0.5) * CELL_NM
        room = space.free(starts[:, None] + radius * PROBES, neurite).mean(axis=1)
        best = int(room.argmax())
        if room[best] <= 0.75:
            continue
        direction = _unit(rng.normal(size=3))
        waiting = [(starts[best], direction, radius, 400), (starts[best], -direction, radius, 400)]
        while waiting:
            path, branches = _walk(space, neurite, *waiting.pop(), rng)
            if len(path.points) > 1:
                paths.append(path)
            waiting += branches
    return paths


def _walk(
    space: _Space, neurite: int, point: Vector, direction: Vector, radius: float, length: int, rng: np.random.Generator
) -> tuple[Path, list[tuple]]:
    """Step on, bending and swelling at random, until the box or the free space ends; spines end in a head.

    Returns the path, and point, direction, radius and length of the branches and spines that leave it.
    """
    points, radii, swelling = [point], [radius], 0.0
    spine = length < 20
    for index in range(length):
        candidates = _unit(direction + 0.3 * rng.normal(size=(10, 3)))
        ahead = points[-1] + STEP_NM * candidates
        swelling = 0.9 * swelling + 0.13 * rng.normal()
        here = radius * (2.4 if spine and index > length - 5 else float(np.exp(swelling)))
        room = space.free(ahead[:, None] + (STEP_NM * candidates)[:, None] + here * PROBES, neurite).mean(axis=1)
        best = int((room + 0.1 * candidates @ direction).argmax())
        if room[best] < 0.6 or not space.inside(ahead[best]):
            break
        direction = candidates[best]
        points.append(ahead[best])
        radii.append(here)
        space.take(ahead[best], here, neurite)
    branches: list[tuple] = []
    for before, after, here in zip(points[:-1], points[1:], radii[1:], strict=True) if length >= 60 else ():
        along = _unit(after - before)
        side = _unit(np.cross(along, rng.normal(size=3)))
        chance = rng.random() * 1000 / STEP_NM
        if chance < BRANCHES_PER_MICRON:
            branches.append((after, _unit(0.7 * along + 0.7 * side), 0.75 * here, length // 2))
        elif here > SPINY_RADIUS_NM and chance < BRANCHES_PER_MICRON + SPINES_PER_MICRON:
            neck = int((here + rng.uniform(150, 400)) / STEP_NM)
            branches.append((after, side, 0.3 * here, min(neck + 4, 19)))
    return Path(neurite, np.array(points), np.array(radii)), branches


def _unit(vectors: Vector) -> Vector:
    return vectors / (np.linalg.norm(vectors, axis=-1, keepdims=True) + 1e-9)


_CORNERS = _unit(np.array([[z, y, x] for z in (-1, 0, 1) for y in (-1, 0, 1) for x in (-1, 0, 1)], float))
PROBES = 0.8 * _CORNERS
"""27 points of a ball of radius 1 that tell whether there is room for it."""
