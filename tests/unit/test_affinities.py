"""Affinities and border erosion against slow, obvious loops."""

import numpy as np
import pytest

from tokenunify.affinities import IGNORE, erode_labels, from_labels, targets

OFFSETS = [(-1, 0, 0), (0, -1, 0), (0, 0, -1), (0, -3, 0), (2, 0, -1)]


def reference_from_labels(labels, offsets, zero):
    affinities = np.zeros((len(offsets), *labels.shape), np.float32)
    mask = np.zeros(affinities.shape, bool)
    for c, offset in enumerate(offsets):
        for v in np.ndindex(labels.shape):
            w = tuple(a + b for a, b in zip(v, offset, strict=True))
            if not all(0 <= a < n for a, n in zip(w, labels.shape, strict=True)):
                continue
            pair = {int(labels[v]), int(labels[w])}
            unknown = IGNORE in pair or (zero == "unlabelled" and 0 in pair)
            mask[c][v] = not unknown
            affinities[c][v] = len(pair) == 1 and not pair & {0, IGNORE}
    return affinities, mask


def reference_erode(labels):
    result = labels.copy()
    _, height, width = labels.shape
    for z, y, x in np.ndindex(labels.shape):
        rows = [abs(i) if i < height else 2 * height - 2 - i for i in (y - 1, y, y + 1)]
        columns = [abs(i) if i < width else 2 * width - 2 - i for i in (x - 1, x, x + 1)]
        window = {int(labels[z, i, j]) for i in rows for j in columns} - {0, IGNORE}
        if len(window) > 1 and labels[z, y, x] != IGNORE:
            result[z, y, x] = 0
    return result


@pytest.fixture
def labels():
    """Blocks of three neurons, zeros and unknown voxels, (4, 7, 9)."""
    rng = np.random.default_rng(3)
    coarse = rng.choice(np.array([0, 1, 2**63 + 5, 7, IGNORE], np.uint64), (2, 3, 3))
    return coarse.repeat(2, 0).repeat(3, 1).repeat(3, 2)[:, :7, :9]


@pytest.mark.parametrize("zero", ["background", "unlabelled"])
def test_from_labels_matches_reference(labels, zero):
    affinities, mask = from_labels(labels, OFFSETS, zero)
    expected, known = reference_from_labels(labels, OFFSETS, zero)
    assert affinities.dtype == np.float32 and mask.dtype == bool
    np.testing.assert_array_equal(affinities, expected)
    np.testing.assert_array_equal(mask, known)


def test_channel_pairs_a_voxel_with_its_predecessor():
    labels = np.ones((1, 1, 4), np.uint8)
    labels[..., 2:] = 2
    affinities, mask = from_labels(labels, OFFSETS[:3])
    assert affinities[2, 0, 0].tolist() == [0, 1, 0, 1]
    assert mask[2, 0, 0].tolist() == [False, True, True, True]
    assert not mask[:2].any()


def test_offset_longer_than_the_array_is_all_masked():
    affinities, mask = from_labels(np.ones((2, 3, 4), np.int32), [(-5, 0, 0), (0, 9, 0)])
    assert not affinities.any() and not mask.any()


def test_signed_and_small_dtypes_have_no_ignore_label():
    for dtype in (np.uint8, np.int16, np.int64):
        labels = np.full((2, 2, 2), np.iinfo(dtype).max, dtype)
        affinities, mask = from_labels(labels, OFFSETS[:3])
        assert affinities[mask].all()


def test_erode_labels_matches_reference(labels):
    before = labels.copy()
    np.testing.assert_array_equal(erode_labels(labels), reference_erode(labels))
    np.testing.assert_array_equal(labels, before)


def test_erosion_across_sections_is_the_same_along_every_axis(labels):
    eroded = erode_labels(labels, (0, 1, 2))
    turned = erode_labels(labels.transpose(1, 2, 0), (0, 1, 2)).transpose(2, 0, 1)
    np.testing.assert_array_equal(eroded, turned)
    assert ((eroded == 0) >= (erode_labels(labels) == 0)).all()
    pillar = np.array([1, 1, 2, 0, 3], np.uint8).reshape(5, 1, 1)
    assert erode_labels(pillar, (0, 1, 2)).ravel().tolist() == [1, 0, 0, 0, 3]
    assert erode_labels(pillar).ravel().tolist() == pillar.ravel().tolist()


@pytest.mark.parametrize("zero", ["background", "unlabelled"])
def test_eroded_borders_are_background_whatever_zero_means(labels, zero):
    affinities, mask = targets(labels, OFFSETS[:3], zero, erode=True)
    np.testing.assert_array_equal(affinities, reference_from_labels(reference_erode(labels), OFFSETS[:3], zero)[0])
    np.testing.assert_array_equal(mask, reference_from_labels(labels, OFFSETS[:3], zero)[1])


def test_published_arrays(golden):
    arrays = golden("affinity_a.npz")
    eroded = erode_labels(arrays["labels"])
    np.testing.assert_array_equal(eroded, arrays["labels_border_eroded"])
    affinities, mask = from_labels(eroded, OFFSETS[:3])
    np.testing.assert_array_equal(affinities[mask], arrays["affs"][mask])
    np.testing.assert_array_equal(from_labels(arrays["labels"], OFFSETS[:3])[0], arrays["affs_no_erosion_zeropad"])
