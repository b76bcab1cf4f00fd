"""Boxes and the grid of blocks."""

import itertools

import numpy as np
import pytest

from tokenunify.geometry import Blocks, Roi, free_starts, subtract

VOLUME, BLOCK = (7, 20, 33), (3, 8, 32)


def test_blocks_tile_the_volume_once():
    blocks = Blocks(VOLUME, BLOCK)
    covered = np.zeros(VOLUME, int)
    for index in range(len(blocks)):
        covered[blocks.roi(index).slices] += 1
    assert len(blocks) == 3 * 3 * 2
    assert (covered == 1).all()


def test_raster_order_x_fastest():
    blocks = Blocks(VOLUME, BLOCK)
    assert [blocks.roi(i).offset for i in range(3)] == [(0, 0, 0), (0, 0, 32), (0, 8, 0)]
    assert blocks.roi(len(blocks) - 1) == Roi((6, 16, 32), (1, 4, 1))


@pytest.mark.parametrize("num_parts", [1, 2, 5, 18, 40])
def test_parts_are_contiguous_and_complete(num_parts: int):
    blocks = Blocks(VOLUME, BLOCK)
    parts = [blocks.part(part, num_parts) for part in range(num_parts)]
    assert list(itertools.chain.from_iterable(parts)) == list(range(len(blocks)))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_halo_is_clipped_at_the_faces():
    roi = Roi((3, 0, 32), (3, 8, 1))
    grown = roi.grow((1, 2, 3), (4, 5, 6), VOLUME)
    assert grown == Roi((2, 0, 29), (5, 13, 4))
    values = np.arange(np.prod(VOLUME)).reshape(VOLUME)
    assert (values[grown.slices][roi.within(grown)] == values[roi.slices]).all()


def test_a_box_without_others_is_made_of_disjoint_boxes():
    """Against the voxels themselves, for boxes that touch, cut, hold or miss each other."""
    random = np.random.default_rng(0)
    for _ in range(60):
        corners = random.integers(0, [6, 7, 9], (4, 3))
        boxes = [Roi(tuple(map(int, c)), tuple(map(int, random.integers(1, 5, 3)))) for c in corners]
        box, holes = boxes[0].moved((1, 0, 2)), boxes[1:]
        expected = np.zeros((14, 14, 14), bool)
        expected[box.slices] = True
        for hole in holes:
            expected[hole.slices] = False
        covered = np.zeros(expected.shape, int)
        for part in subtract(box, holes):
            covered[part.slices] += 1
        np.testing.assert_array_equal(covered, expected)
        shared = np.zeros(expected.shape, bool)
        shared[box.slices] = True
        outside = np.ones(expected.shape, bool)
        outside[holes[0].slices] = False
        overlap = box.overlap(holes[0])
        assert (overlap.num_voxels if overlap else 0) == (shared & ~outside).sum()


def test_voxels_are_numbered_in_raster_order():
    roi = Roi((2, 3, 4), (3, 4, 5))
    found = [roi.voxel(number) for number in range(roi.num_voxels)]
    assert found == list(itertools.product(range(2, 5), range(3, 7), range(4, 9)))


@pytest.mark.parametrize("crop", [(1, 1, 1), (2, 3, 4), (6, 2, 1)])
def test_free_starts_are_those_of_all_crops_that_touch_nothing(crop):
    region, avoid = Roi((1, 0, 2), (6, 9, 12)), (Roi((3, 2, 0), (2, 3, 7)), Roi((0, 5, 9), (4, 9, 2)))
    hidden = np.zeros((20, 20, 20), bool)
    for box in avoid:
        hidden[box.slices] = True
    expected = {
        start
        for start in itertools.product(range(20), repeat=3)
        if all(o <= s and s + c <= e for o, s, c, e in zip(region.offset, start, crop, region.end, strict=True))
        and not hidden[Roi(start, crop).slices].any()
    }
    boxes = free_starts(region, crop, avoid)
    found = [box.voxel(number) for box in boxes for number in range(box.num_voxels)]
    assert len(found) == len(set(found))
    assert set(found) == expected
    assert free_starts(region, (7, 1, 1), avoid) == ()
