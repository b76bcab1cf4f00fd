"""Pyramid levels: which axes shrink, by how much, and what the metadata says of it."""

import tracemalloc
from collections import Counter
from itertools import product

import numpy as np
import pytest

from tokenunify.store import pyramid

SHAPE = (3, 7, 10)


def windows(array: np.ndarray, factor: tuple[int, int, int]) -> dict[tuple[int, ...], list[int]]:
    """Slow and obvious: the voxels behind each reduced voxel, the last one repeated at the far faces."""
    last = np.array(array.shape) - 1
    found: dict[tuple[int, ...], list[int]] = {}
    for index in product(*(range(-(-n // f) * f) for n, f in zip(array.shape, factor, strict=True))):
        reduced = tuple(i // f for i, f in zip(index, factor, strict=True))
        found.setdefault(reduced, []).append(int(array[tuple(np.minimum(index, last))]))
    return found


def test_thick_sections_stay_until_nearly_isotropic():
    shapes, sizes = zip(*pyramid.levels((100, 1250, 1251), (35, 8, 8)), strict=True)
    assert sizes == ((35, 8, 8), (35, 16, 16), (35, 32, 32), (70, 64, 64), (140, 128, 128))
    assert shapes == ((100, 1250, 1251), (100, 625, 626), (100, 313, 313), (50, 157, 157), (25, 79, 79))


def test_isotropic_volumes_shrink_in_every_axis():
    assert pyramid.levels((300, 290, 280), (10, 10, 10))[1] == ((150, 145, 140), (20, 20, 20))


def test_small_volumes_have_one_level():
    assert pyramid.levels((200, 128, 90), (35, 8, 8)) == [((200, 128, 90), (35, 8, 8))]


def test_blocks_fill_the_levels_that_divide_them_into_boxes_worth_a_file():
    found = pyramid.block_levels((300, 2100, 2000), (40, 10, 10), (32, 256, 384))
    assert [level.block_shape for level in found] == [(32, 256, 384), (32, 128, 192), (32, 64, 96), (16, 32, 48)]
    assert found[2] == ((300, 525, 500), (40, 40, 40), (1, 2, 2), (32, 64, 96))
    assert len(pyramid.block_levels((300, 2100, 2000), (40, 10, 10), (32, 255, 384))) == 1
    assert len(pyramid.block_levels((1, 1, 1), (40, 10, 10), (32, 256, 384))) == 1


def test_a_single_section_keeps_its_thickness():
    assert pyramid.levels((1, 300, 200), (35, 8, 8))[-1] == ((1, 75, 50), (35, 32, 32))


@pytest.mark.parametrize("factor", [(1, 2, 2), (2, 2, 2), (1, 1, 2)])
def test_mean_equals_the_slow_one(factor):
    image = np.random.default_rng(0).integers(0, 256, SHAPE).astype(np.uint8)
    reduced = pyramid.reduce_mean(image, factor)
    assert reduced.dtype == np.uint8
    for index, values in windows(image, factor).items():
        assert abs(reduced[index] - sum(values) / len(values)) <= 0.5


@pytest.mark.parametrize("factor", [(1, 2, 2), (2, 2, 2), (2, 1, 2)])
def test_mode_equals_the_slow_one(factor):
    labels = np.random.default_rng(0).integers(2**63, 2**63 + 3, SHAPE, dtype=np.uint64)
    reduced = pyramid.reduce_mode(labels, factor)
    assert reduced.dtype == np.uint64
    for index, values in windows(labels, factor).items():
        assert reduced[index] == Counter(values).most_common(1)[0][0]


def test_mode_needs_little_more_than_the_labels():
    labels = np.random.default_rng(0).integers(0, 9, (16, 64, 64), dtype=np.uint64)
    tracemalloc.start()
    pyramid.reduce_mode(labels, (2, 2, 2))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.5 * labels.nbytes


def test_translation_is_the_centre_of_the_window():
    ome = pyramid.multiscales("raw", [(35, 8, 8), (35, 16, 16), (70, 32, 32)], (105, 0, 16), "mean")
    shifts = [d["coordinateTransformations"][1]["translation"] for d in ome["multiscales"][0]["datasets"]]
    assert shifts == [[105, 0, 16], [105, 4, 20], [122.5, 12, 28]]
