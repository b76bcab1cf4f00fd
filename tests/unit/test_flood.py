"""Flooding, next to scikit-image's watershed and to a slow one."""

import heapq
from itertools import count

import numpy as np
import pytest
from skimage.segmentation import watershed

from tokenunify.segmentation.flood import LEVELS, flood

SHAPES = [(1, 7), (9, 5), (1, 3, 8), (4, 7, 13)]


def seeded(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """A few seeds."""
    seeds = np.zeros(shape, np.uint32)
    seeds.ravel()[rng.choice(seeds.size, 5, replace=False)] = rng.permutation(5) + 1
    return seeds


@pytest.mark.parametrize("shape", SHAPES)
def test_distinct_heights_are_flooded_as_by_scikit_image(shape):
    rng = np.random.default_rng(0)
    for _ in range(20):
        heights, seeds = rng.permutation(np.prod(shape)).reshape(shape) / 2**12, seeded(shape, rng)
        expected = watershed(heights, seeds.astype(np.int32))
        np.testing.assert_array_equal(flood(heights.astype(np.float32), seeds), expected)


def by_heap(heights, seeds):
    """Label at once, wait by (height, order of arrival)."""
    labels, waiting, arrivals = seeds.copy(), [], count()
    below = [tuple(-row) for row in np.eye(seeds.ndim, dtype=int)]
    steps = [*below, *(tuple(-s for s in step) for step in reversed(below))]
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
@pytest.mark.parametrize("levels", [1, 3, 200])
def test_plateaus_are_flooded_first_in_first_out(shape, levels):
    rng = np.random.default_rng(levels)
    for _ in range(20):
        heights, seeds = (rng.integers(0, levels + 1, shape) / levels).astype(np.float32), seeded(shape, rng)
        np.testing.assert_array_equal(flood(heights, seeds), by_heap(heights, seeds))


def test_without_seeds_nothing_is_flooded():
    assert not flood(np.zeros((3, 4, 5), np.float32), np.zeros((3, 4, 5), np.uint32)).any()


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_means_of_8_bit_channels_that_are_equal_are_one_plateau(channels):
    levels = np.arange(255 * channels + 1)
    whole = levels / (255 * channels) * (LEVELS - 1)
    np.testing.assert_allclose(whole, np.rint(whole), atol=1e-9)
    assert np.diff(np.rint(whole)).min() >= 1
