"""Pictures: the right cut, colours that show errors, scale bars of the right length, curves that do not change."""

import io

import numpy as np
import pandas as pd
import pytest
from matplotlib.image import imread

from tokenunify.evaluation import figures

LABELS = np.array([[1, 1, 1, 2, 2, 0], [1, 1, 1, 2, 2, 0], [7, 7, 7, 7, 7, 0]], np.uint64)


def test_the_middle_section_is_cut_around_its_centre():
    volume = np.arange(7 * 600 * 9).reshape(7, 600, 9)
    (plane,) = figures.planes(volume.shape, (30.0, 8.0, 4.0))
    assert (plane.name, plane.pixel_nm) == ("yx", (8.0, 4.0))
    np.testing.assert_array_equal(plane.cut(volume), volume[3, 44:556])
    channels = np.stack([volume, volume + 1])
    np.testing.assert_array_equal(plane.cut(channels), channels[:, 3, 44:556])


def test_isotropic_volumes_are_cut_across_too():
    volume = np.arange(7 * 8 * 9).reshape(7, 8, 9)
    section, across = figures.planes(volume.shape, (10.0, 9.0, 8.0))
    assert (section.name, across.name, across.pixel_nm) == ("yx", "zx", (10.0, 8.0))
    np.testing.assert_array_equal(across.cut(volume), volume[:, 3])


def slow_matches(segmentation, labels):
    overlaps = {}
    for segment, label in zip(segmentation.ravel().tolist(), labels.ravel().tolist(), strict=True):
        if segment and label:
            overlaps[segment, label] = overlaps.get((segment, label), 0) + 1
    return {
        s: t
        for (s, t), count in overlaps.items()
        if count == max(n for (a, b), n in overlaps.items() if a == s or b == t)
        and sum(n == count for (a, b), n in overlaps.items() if a == s or b == t) == 1
    }


def test_matches_are_mutual():
    random = np.random.default_rng(3)
    labels = random.integers(0, 5, (20, 30)).repeat(3, axis=1).astype(np.uint64)
    segmentation = np.where(random.random(labels.shape) < 0.7, labels + 10, random.integers(0, 9, labels.shape))
    assert figures.matches(segmentation.astype(np.uint64), labels) == slow_matches(segmentation, labels)


def test_a_segment_has_its_neurons_colour_and_errors_show():
    truth = figures.coloured(LABELS)
    assert np.isnan(truth[:, 5]).all()
    same = figures.coloured(LABELS * 3 + 50, LABELS)
    np.testing.assert_array_equal(same[:, :5], truth[:, :5])
    split = LABELS.copy()
    split[2, 3:5] = 9
    found = figures.coloured(split, LABELS)
    np.testing.assert_array_equal(found[2, :3], truth[2, :3])
    assert not any((found[2, 3] == colour).all() for colour in truth.reshape(-1, 3))
    merged = np.where(LABELS == 2, 1, LABELS)
    np.testing.assert_array_equal(figures.coloured(merged, LABELS)[0, 3], truth[0, 0])


def test_a_neuron_has_the_same_colour_in_every_section():
    np.testing.assert_array_equal(figures.coloured(LABELS[2:])[0, 0], figures.coloured(LABELS)[2, 0])
    assert figures.coloured(LABELS + np.uint64(2**63)).shape == (3, 6, 3)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.uint64])
def test_small_and_large_ids_have_colours(dtype: type):
    """Labels are stored in the smallest type that holds them."""
    labels = np.array([[0, 1, np.iinfo(dtype).max]], dtype)
    colour = figures.coloured(labels)
    assert np.isnan(colour[0, 0]).all()
    assert (colour[0, 1] != colour[0, 2]).any()
    assert np.array_equal(figures.coloured(labels.astype(np.uint64), labels), colour, equal_nan=True)


def test_colours_differ_and_are_in_range():
    colours = figures.colours(np.arange(300))
    assert np.unique(colours, axis=0).shape == (300, 3)
    assert colours.min() >= 0
    assert colours.max() <= 1


def test_the_overlay_is_half_transparent_with_light_edges_and_raw_where_there_is_no_id():
    raw = np.array([[0.2, 0.2, 0.8]])
    colour = np.array([[[1.0, 0.0, 0.4]] * 2 + [[np.nan] * 3]])
    expected = np.array([[[0.6, 0.1, 0.3]] * 2 + [[0.8] * 3]])
    expected[0, 1] = 0.4 * expected[0, 1] + 0.6
    np.testing.assert_allclose(figures.overlay(raw, colour), expected)


def test_edges_are_where_the_next_row_or_column_differs():
    ids = np.random.default_rng(1).integers(0, 2, (6, 9))
    expected = [
        [(r < 5 and ids[r, c] != ids[r + 1, c]) or (c < 8 and ids[r, c] != ids[r, c + 1]) for c in range(9)]
        for r in range(6)
    ]
    np.testing.assert_array_equal(figures.edges(np.repeat(ids[..., None], 3, axis=2)), expected)


@pytest.mark.parametrize(("width", "bar"), [(1500, 500), (1499, 200), (80, 20), (3.1, 1), (60000, 20000)])
def test_the_bar_is_a_round_length(width, bar):
    assert figures.bar_nm(width) == pytest.approx(bar)


def test_a_picture_has_square_pixels_and_a_bar():
    image = np.full((30, 40), 0.5)
    shown = imread(io.BytesIO(figures.picture(image, (8.0, 4.0))), format="png")[..., :3]
    height, width = shown.shape[:2]
    assert height / width == pytest.approx(30 * 8 / (40 * 4), rel=0.01)
    assert max(height, width) >= figures.MIN_PIXELS
    white = (shown == 1).all(axis=2)
    assert white.any(axis=0).sum() == pytest.approx(width * figures.bar_nm(160) / 160, abs=1)


def log(factor: float) -> pd.DataFrame:
    loss = [factor, factor / 2, factor / 3]
    return pd.DataFrame(
        {"step": [10, 20, 30], "loss": loss, "validation_loss": [np.nan, 0.4, 0.3], "seconds": [5, 10, 15]}
    )


def test_curves_are_the_same_every_time():
    runs = [figures.Training("one", 0, log(1.0)), figures.Training("one", 2, log(2.0))]
    first = figures.training(iter(runs))
    assert first == figures.training(runs)
    assert b"<svg" in first


def test_tuning_curves_are_the_same_every_time():
    curve = [{"value": v, "voi_split": v, "voi_merge": 1 - v} for v in (0.1, 0.3, 0.7)]
    tuned = [figures.Tuning("one", name, seed, curve, 0.3) for name in "abcd" for seed in (0, 1)]
    tuned.append(figures.Tuning("two", "e", 0, curve[:1], 0.1))
    assert figures.tuning(tuned) == figures.tuning(iter(tuned))


def test_a_log_without_validation_is_drawn():
    bare = log(1.0).assign(validation_loss=np.nan)
    assert figures.training([figures.Training("one", 0, bare)])
