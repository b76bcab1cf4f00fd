"""Augmentations: raw and labels stay together, anisotropy is respected, chance comes from the generator alone."""

import numpy as np
import pytest

from tokenunify.config import Augment
from tokenunify.learning import augment

NEVER = dict.fromkeys(["flip", "rotate", "intensity", "noise", "blur", "missing", "misalign", "elastic"], 0.0)
ANISOTROPIC, ISOTROPIC = (40.0, 8.0, 8.0), (10.0, 10.0, 10.0)


def only(**given):
    return Augment(**{**NEVER, **given})


@pytest.fixture
def pair():
    """Labels (5, 20, 28) in large patches, and a raw that shows them."""
    coarse = np.random.default_rng(1).permutation(5 * 4 * 4).reshape(5, 4, 4).astype(np.uint64)
    labels = coarse.repeat(5, 1).repeat(7, 2)
    return labels.astype(np.float32) / 80, labels


def orders(voxel_size_nm):
    rng = np.random.default_rng(0)
    return {augment.choose_axes(rng, only(rotate=1.0), voxel_size_nm)[0] for _ in range(100)}


def test_only_axes_of_equal_voxel_size_are_exchanged():
    assert orders(ANISOTROPIC) == {(0, 2, 1)}
    assert orders((40.0, 8.0, 6.0)) == {(0, 1, 2)}
    assert len(orders(ISOTROPIC)) == 5


def test_flips_follow_their_probability():
    rng = np.random.default_rng(0)
    steps = np.array([augment.choose_axes(rng, only(flip=0.25), ANISOTROPIC)[1] for _ in range(2000)])
    np.testing.assert_allclose((steps == -1).mean(0), 0.25, atol=0.04)


@pytest.mark.parametrize("order", [(0, 1, 2), (0, 2, 1), (2, 0, 1), (1, 2, 0)])
def test_reorient_gives_the_shape_that_was_asked_for(order):
    shape = (3, 5, 7)
    array = np.random.default_rng(0).random(augment.shape_before(shape, order))
    turned = augment.reorient(array, order, (1, -1, 1))
    assert turned.shape == shape
    np.testing.assert_array_equal(turned, np.flip(array.transpose(order), 1))


def test_deformations_move_raw_and_labels_together(pair):
    for seed in range(5):
        rng = np.random.default_rng(seed)
        raw, labels = augment.deform(rng, only(elastic=1.0, misalign=1.0), *pair, ANISOTROPIC)
        assert raw.shape == labels.shape == pair[0].shape
        assert labels.dtype == np.uint64
        inside = np.isclose(raw * 80, labels.astype(np.float32), atol=0.01)  # not where linear and nearest must differ
        assert inside.mean() > 0.5
        assert (labels != pair[1]).any()


def test_shift_behind_moves_the_later_sections(pair):
    labels = pair[1]
    moved = augment.shift_behind(labels, 2, (3, -4))
    np.testing.assert_array_equal(moved[:2], labels[:2])
    np.testing.assert_array_equal(moved[2:, 3:, :-4], labels[2:, :-3, 4:])


def test_elastic_within_sections_leaves_z_alone():
    coordinates = augment.elastic_coordinates(np.random.default_rng(0), (4, 33, 47), flat=True)
    np.testing.assert_array_equal(coordinates[0], np.indices((4, 33, 47))[0])
    displaced = coordinates[1:] - np.indices((4, 33, 47))[1:]
    assert np.abs(displaced).max() > 0.5
    assert np.abs(np.diff(displaced, axis=-1)).max() < 2  # smooth
    assert (displaced == displaced[:, :1]).all()


@pytest.mark.parametrize("length", [1, 2, 5])
def test_mirrored_is_numpys_reflection(length):
    index = augment.mirrored(np.arange(-13, 17), length)
    expected = np.pad(np.arange(length), (13, 17 - length), mode="reflect")
    np.testing.assert_array_equal(index, expected)


@pytest.mark.parametrize("name", ["intensity", "noise", "blur", "missing"])
def test_degradations_stay_in_range_and_change_the_raw_only(pair, name):
    raw = pair[0].copy()
    changed = augment.degrade(np.random.default_rng(2), only(**{name: 1.0}), raw, ANISOTROPIC)
    assert changed.shape == raw.shape and changed.dtype == np.float32
    assert changed.min() >= 0 and changed.max() <= 1
    assert (changed != raw).any()
    np.testing.assert_array_equal(raw, pair[0])


def test_a_missing_section_is_one_section(pair):
    changed = augment.degrade(np.random.default_rng(2), only(missing=1.0), pair[0], ANISOTROPIC)
    assert (changed != pair[0]).any(axis=(1, 2)).sum() == 1


def test_blur_is_weaker_across_thick_sections():
    raw = np.zeros((9, 21, 21), np.float32)
    raw[4, 10, 10] = 1
    changed = augment.degrade(np.random.default_rng(0), only(blur=1.0), raw, ANISOTROPIC)
    assert changed[4, 10, 11] > 10 * changed[5, 10, 10]


def test_nothing_happens_at_probability_zero(pair):
    rng = np.random.default_rng(0)
    assert augment.choose_axes(rng, only(), ISOTROPIC) == ((0, 1, 2), (1, 1, 1))
    raw, labels = augment.deform(rng, only(), *pair, ISOTROPIC)
    np.testing.assert_array_equal(augment.degrade(rng, only(), raw, ISOTROPIC), pair[0])
    np.testing.assert_array_equal(labels, pair[1])


def test_same_generator_same_result(pair):
    config = Augment(**dict.fromkeys(NEVER, 0.7))
    results = []
    for _ in range(2):
        rng = np.random.default_rng((4, 2))
        raw, labels = augment.deform(rng, config, *pair, ANISOTROPIC)
        results.append((augment.degrade(rng, config, raw, ANISOTROPIC), labels))
    np.testing.assert_array_equal(results[0][0], results[1][0])
    np.testing.assert_array_equal(results[0][1], results[1][1])
