"""Boxes and the grid of blocks."""

import itertools

import numpy as np
import pytest

from tokenunify.geometry import Blocks, Roi

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
