"""The phantom: a pure function that gives dense, connected ground truth and sections that look like sections."""

import numpy as np
import pytest
from scipy import ndimage

from tokenunify.data.phantom import phantom

SHAPE = (12, 90, 130)


@pytest.fixture(scope="module")
def generated() -> tuple[np.ndarray, np.ndarray]:
    return phantom.generate(SHAPE, seed=7)


def test_types_and_shapes(generated):
    raw, labels = generated
    assert raw.shape == labels.shape == SHAPE
    assert (raw.dtype, labels.dtype) == (np.uint8, np.uint32)


def test_same_arguments_same_arrays(generated):
    np.random.seed(3)  # a global state must not matter
    raw, labels = phantom.generate(SHAPE, seed=7)
    np.testing.assert_array_equal(raw, generated[0])
    np.testing.assert_array_equal(labels, generated[1])


def test_seed_matters(generated):
    assert (phantom.generate(SHAPE, seed=8)[1] != generated[1]).any()


def test_labels_are_dense_and_consecutive(generated):
    _, labels = generated
    assert set(np.unique(labels)) == set(range(1, labels.max() + 1))
    assert labels.max() > 10


def test_every_label_is_connected(generated):
    _, labels = generated
    diagonals_in_a_plane = ndimage.generate_binary_structure(3, 2)
    for name, box in enumerate(ndimage.find_objects(labels.astype(np.int32)), start=1):
        assert ndimage.label(labels[box] == name, diagonals_in_a_plane)[1] == 1, name


def test_membranes_are_darker_than_what_they_enclose(generated):
    raw, labels = generated
    edge = np.zeros(SHAPE, bool)
    edge[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    edge[:, :, 1:] |= labels[:, :, 1:] != labels[:, :, :-1]
    inside = ndimage.distance_transform_edt(~edge, (1000, 1, 1)) > 5
    present = raw.any(axis=(1, 2))
    assert raw[present][edge[present]].mean() < raw[present][inside[present]].mean() - 40


def test_one_section_is_missing_and_it_is_an_inner_one(generated):
    missing = np.flatnonzero(~generated[0].any(axis=(1, 2)))
    assert len(missing) == 1
    assert 0 < missing[0] < SHAPE[0] - 1


def test_thin_volumes_keep_all_sections():
    assert phantom.generate((5, 40, 56), seed=1)[0].any(axis=(1, 2)).all()


def test_sections_differ_in_brightness_and_contrast(generated):
    raw = generated[0][generated[0].any(axis=(1, 2))]
    assert np.ptp(raw.mean(axis=(1, 2))) > 5
    assert raw.std(axis=(1, 2)).max() > 1.2 * raw.std(axis=(1, 2)).min()


def test_neurites_go_on_through_the_sections(generated):
    _, labels = generated
    assert (labels[1:] == labels[:-1]).mean() > 0.6


def test_density_sets_the_number_of_neurites():
    sparse, dense = (phantom.generate((6, 100, 140), seed=2, density=density)[1].max() for density in (0.5, 2.0))
    assert dense > 1.4 * sparse


def test_small_crumbs_join_a_neighbour(generated, monkeypatch):
    monkeypatch.setattr(phantom, "MIN_VOXELS", 0)
    _, pieces = phantom.generate(SHAPE, seed=7)
    _, joined = generated
    small = np.bincount(pieces.ravel())[pieces] < 40
    assert small.any()
    assert set(joined[small]) <= set(joined[~small])
    pairs = np.unique(np.stack([pieces[~small], joined[~small]]), axis=1)
    assert (np.bincount(pairs[0]) <= 1).all() and (np.bincount(pairs[1]) <= 1).all()  # larger ones stay as they are
    size = np.array(phantom.VOXEL_SIZE_NM)
    large = np.argwhere(~small) * size
    for voxel in np.argwhere(small)[::7]:
        distances = np.linalg.norm(large - voxel * size, axis=1)
        assert joined[tuple(voxel)] in joined[~small][np.isclose(distances, distances.min())]
