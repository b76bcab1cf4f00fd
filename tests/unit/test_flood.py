"""Flooding, next to scikit-image's watershed and to a slow one."""

import heapq
from itertools import count

import numpy as np
import pytest
from skimage.segmentation import watershed

from tokenunify.segmentation.flood import flood

SHAPES = [(1, 1, 7), (2, 9, 5), (4, 7, 13)]


def seeded(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """A few seeds, at least one in each section."""
    seeds = np.zeros(shape, np.uint32)
    for number, section in enumerate(seeds):
        places = rng.choice(section.size, 3, replace=False)
        section.ravel()[places] = 1 + 3 * number + np.arange(3)
    return seeds


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dimensions", [2, 3])
def test_distinct_heights_are_flooded_as_by_scikit_image(shape, dimensions):
    rng = np.random.default_rng(0)
    for _ in range(20):
        heights, seeds = rng.permutation(np.prod(shape)).reshape(shape) / 2**12, seeded(shape, rng)
        found = flood(heights.astype(np.float32), seeds, dimensions=dimensions)
        cut = [slice(None)] if dimensions == 3 else [slice(z, z + 1) for z in range(shape[0])]
        for part in cut:
            np.testing.assert_array_equal(found[part], watershed(heights[part], seeds[part].astype(np.int32)))


def by_heap(heights, seeds, dimensions):
    """Label at once, wait by (height, order of arrival)."""
    labels, waiting, arrivals = seeds.copy(), [], count()
    steps = [(0, 0, -1), (0, -1, 0), (-1, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    steps = sorted(step for step in steps if dimensions == 3 or step[0] == 0)
    for voxel in map(tuple, np.argwhere(seeds)):
        heapq.heappush(waiting, (heights[voxel], next(arrivals), voxel))
    while waiting:
        *_, voxel = heapq.heappop(waiting)
        for step in steps:
            there = tuple(v + s for v, s in zip(voxel, step, strict=True))
            if all(0 <= v < n for v, n in zip(there, seeds.shape, strict=True)) and not labels[there]:
                labels[there] = labels[voxel]
                heapq.heappush(waiting, (heights[there], next(arrivals), there))
    return labels


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("levels", [1, 3, 200])
def test_plateaus_are_flooded_first_in_first_out(shape, dimensions, levels):
    rng = np.random.default_rng(levels)
    for _ in range(20):
        heights = (rng.integers(0, levels + 1, shape) / levels).astype(np.float32)
        seeds = seeded(shape, rng)
        np.testing.assert_array_equal(flood(heights, seeds, dimensions=dimensions), by_heap(heights, seeds, dimensions))


def test_a_section_without_seeds_stays_empty_in_two_dimensions():
    seeds = np.zeros((3, 4, 5), np.uint32)
    seeds[1, 2, 3] = 7
    heights = np.zeros(seeds.shape, np.float32)
    assert [np.unique(section).tolist() for section in flood(heights, seeds, dimensions=2)] == [[0], [7], [0]]
    assert (flood(heights, seeds, dimensions=3) == 7).all()
