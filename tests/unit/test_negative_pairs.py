"""The share of negative pairs, and labels that have none."""

import logging

import numpy as np
import pytest

from tests.unit.test_crops import labelled, source
from tokenunify.affinities import IGNORE
from tokenunify.config import NEAREST
from tokenunify.errors import InputError
from tokenunify.learning import negative_pairs

SHAPE = (5, 20, 33)
CROP = (3, 8, 9)
z, y, x = np.indices(SHAPE)


def crops_of(labels, *, zero="background", erode=False, mask=None, crop=CROP):
    volume = labelled(shape=labels.shape, zero=zero, mask=mask)
    volume.labels[:] = labels
    return source([volume], crop=crop, erode=erode)


def apart():
    """Two columns of neurons that touch nowhere."""
    return np.where(x < 12, 1, np.where(x > 20, 2, 0)).astype(np.uint64)


def test_the_share_is_counted_over_known_pairs_of_neighbours(caplog):
    """One crop is the volume: 5 x 20 x 32 pairs in x, of which 5 x 20 cross from one neuron to the other."""
    caplog.set_level(logging.INFO)
    share = negative_pairs.check(crops_of(np.where(x < 12, 1, 2), crop=SHAPE))
    assert share == pytest.approx(5 * 20 / (5 * 20 * 32 + 5 * 19 * 33 + 4 * 20 * 33))
    assert f"{100 * share:.3g} % of the known pairs of neighbours" in caplog.text


@pytest.mark.parametrize(
    ("labels", "options"),
    [
        (apart(), {"zero": "unlabelled"}),
        (apart(), {"zero": "unlabelled", "erode": True}),
        (apart(), {"zero": "unlabelled", "erode": "3d"}),
        (np.where(apart(), apart(), IGNORE), {}),
        (np.where(x < 12, 1, 2), {"mask": (x != 12)}),
        (np.full(SHAPE, 7), {}),
    ],
    ids=["sparse", "eroded", "eroded in 3D", "unknown instead of 0", "masked", "one neuron"],
)
def test_labels_without_a_negative_pair_are_refused(labels, options):
    with pytest.raises(InputError, match=r"volumes a is negative .*zero: background.*2\^64-1 or 0 in a mask"):
        negative_pairs.check(crops_of(labels, **options))


@pytest.mark.parametrize(("labels", "mask"), [(np.full(SHAPE, IGNORE), None), (apart(), np.zeros(SHAPE, bool))])
def test_labels_without_ground_truth_are_refused(labels, mask):
    with pytest.raises(InputError, match="volumes a has ground truth"):
        negative_pairs.check(crops_of(labels, mask=mask))


def test_membrane_as_background_is_what_the_advice_gives():
    known = np.where((x < 12) | (x > 20) | (y < 2), apart(), IGNORE)
    assert negative_pairs.check(crops_of(known)) > negative_pairs.FEW


@pytest.mark.parametrize("place", [(9, 100, 120), (0, 1, 0), (4, 90, 77)])
def test_a_single_pair_in_a_large_volume_is_found(place, monkeypatch, caplog):
    """Which random crops miss; it may lie between two tiles."""
    monkeypatch.setattr(negative_pairs, "CROPS", 1)
    labels = np.full((10, 101, 121), IGNORE, np.uint64)
    labels[place] = 1
    labels[place[0], place[1] - 1, place[2]] = 2
    labels[:, 50:60] = 1
    assert 0 < negative_pairs.check(crops_of(labels)) < negative_pairs.FEW
    assert "that is very few" in caplog.text


def test_validation_crops_are_looked_at_too(caplog):
    def crop(known, target):
        return {"mask": np.full((len(NEAREST), *CROP), known), "targets": np.full((len(NEAREST), *CROP), target)}

    negative_pairs.check_validation([crop(True, 0.0), crop(True, 1.0), crop(False, 0.0)])
    assert caplog.text == ""
    negative_pairs.check_validation([crop(True, 1.0), crop(False, 0.0)])
    assert "no pair in the validation crops is negative" in caplog.text
    with pytest.raises(InputError, match="the 2 validation crops hold no pair of known voxels"):
        negative_pairs.check_validation([crop(False, 0.0)] * 2)
