"""Expected run lengths: tubes whose lengths are known, edges by slow loops, and volumes in blocks and boxes."""

from itertools import combinations

import numpy as np
import pytest
from scipy.ndimage import binary_fill_holes
from skimage.morphology import skeletonize

from tokenunify.evaluation import run_length
from tokenunify.evaluation.run_length import Grid, Lengths, Samples
from tokenunify.geometry import Blocks

VOXEL_SIZE = (40.0, 8.0, 8.0)


def measured(labels, segments, *, spacing=40.0, voxel_size=VOXEL_SIZE, block_shape=(4, 16, 20)) -> Lengths:
    """Lengths of a volume that is sampled block by block."""
    blocks, step = Blocks(labels.shape, block_shape), run_length.steps(voxel_size, spacing)

    def samples(index: int) -> Samples:
        roi = blocks.roi(index)
        return run_length.sampled(labels[roi.slices], segments[roi.slices], roi, step)

    return run_length.of_volume(samples, Grid(blocks, step, voxel_size), np.zeros(1, np.uint64))


@pytest.fixture
def tubes() -> np.ndarray:
    """Two thin tubes along x, 21 samples of 5 voxels (800 nm apart by their ends) and 11 along z (400 nm)."""
    labels = np.zeros((11, 40, 105), np.uint16)
    labels[2, 10:15] = 1
    labels[:, 30:35, 50:55] = 2
    return labels


def scores(labels, segments, **settings) -> tuple[float, float]:
    return tuple(run_length.scores(measured(labels, segments, **settings)).values())


def test_a_perfect_segmentation(tubes):
    assert scores(tubes, tubes) == pytest.approx(((800**2 + 400**2) / 1200, 1))


def test_a_split_in_the_middle(tubes):
    segments = np.where(tubes == 2, 3, tubes)
    segments[2, :20, 55:] *= 5  # samples 0..10 and 11..20: the edge between them is in neither
    assert scores(tubes, segments) == pytest.approx(
        ((400**2 + 360**2 + 400**2) / 1200, (400**2 + 360**2 + 400**2) / (800**2 + 400**2))
    )


def test_a_merged_pair_counts_nothing_and_a_touch_is_tolerated(tubes):
    assert scores(tubes, np.where(tubes > 0, 7, 0)) == (0, 0)
    segments = tubes.copy()
    segments[:6][tubes[:6] == 2] = 1  # 200 nm of the second lie in the first's segment: 400 = 200 + 40 + 160
    assert scores(tubes, segments)[0] == pytest.approx((800**2 + 200**2 + 160**2) / 1200)
    segments[6][tubes[6] == 2] = 1  # and now 240 nm
    assert scores(tubes, segments)[0] == pytest.approx(120**2 / 1200)


def test_the_background_of_a_segmentation_is_no_segment(tubes):
    assert scores(tubes, tubes * 0) == (0, 0)


def test_without_a_skeleton_there_is_no_score(tubes):
    assert scores(tubes * 0, tubes) == (None, None)


@pytest.mark.parametrize("inside", [0, 5])
def test_what_lies_inside_a_neuron_does_not_change_its_skeleton(inside):
    labels = np.zeros((11, 11, 41), np.uint16)
    labels[1:10, 1:10, 1:40] = 4
    solid = measured(labels, labels, voxel_size=(40, 40, 40))
    labels[3, 4:6, 20] = inside
    hollow = measured(labels, labels, voxel_size=(40, 40, 40))
    assert solid.nm.sum() == hollow.nm.sum() > 1000


@pytest.mark.parametrize(
    ("voxel_size", "spacing", "step"),
    [
        ((40, 8, 8), 40, (1, 5, 5)),
        ((10, 10, 10), 40, (4, 4, 4)),
        ((50, 4, 6), 20, (1, 5, 3)),
        ((9, 9, 9), 4, (1, 1, 1)),
    ],
)
def test_samples_are_about_equally_far_apart(voxel_size, spacing, step):
    assert run_length.steps(voxel_size, spacing) == step


@pytest.fixture(scope="module")
def noisy() -> tuple[np.ndarray, np.ndarray]:
    """Labels in lumps, and segments that cut across them."""
    random = np.random.default_rng(3)
    labels = random.integers(0, 4, (3, 5, 6)).repeat(4, 0).repeat(4, 1).repeat(4, 2)[:11, :19, :23]
    return labels, np.where(random.random(labels.shape) < 0.02, 0, 1 + labels // 2)


def slow_lengths(labels, segments, spacing) -> dict[tuple[int, int], float]:
    """Every pair of skeleton voxels that are 26-neighbours."""
    kept = np.zeros(labels.shape, bool)
    for voxel in map(np.array, np.ndindex(*labels.shape)):
        before = [tuple(voxel + o) for o in np.ndindex(3, 3, 3) for o in [np.array(o) - 1] if tuple(o) < (0, 0, 0)]
        inside = [b for b in before if min(b) >= 0 and all(i < n for i, n in zip(b, labels.shape, strict=True))]
        own = labels[tuple(voxel)]
        kept[tuple(voxel)] = own != 0 and all(labels[b] in (0, own) for b in inside)
    lengths: dict[tuple[int, int], float] = {}
    for first, second in combinations(np.argwhere(skeletonize(binary_fill_holes(kept))), 2):
        if np.abs(first - second).max() == 1 and labels[tuple(first)] == labels[tuple(second)] != 0:
            ends = {int(segments[tuple(first)]), int(segments[tuple(second)])}
            key = int(labels[tuple(first)]), ends.pop() if len(ends) == 1 else 0
            lengths[key] = lengths.get(key, 0) + float(np.sqrt((((first - second) * spacing) ** 2).sum()))
    return lengths


@pytest.mark.parametrize("voxel_size", [(10.0, 10.0, 10.0), (30.0, 7.0, 11.0)])
def test_edges_are_those_of_a_slow_search(noisy, voxel_size):
    labels, segments = noisy
    found = measured(labels, segments, spacing=1, voxel_size=voxel_size)
    expected = slow_lengths(labels, segments, voxel_size)
    assert len(expected) > 4
    keys = zip(found.labels.tolist(), found.segments.tolist(), strict=True)
    assert dict(zip(keys, found.nm.tolist(), strict=True)) == pytest.approx(expected)


def test_blocks_do_not_matter(noisy):
    labels, segments = noisy
    whole = measured(labels, segments, spacing=16, block_shape=labels.shape)
    for block_shape in [(1, 1, 1), (3, 4, 7), (11, 6, 9)]:
        found = measured(labels, segments, spacing=16, block_shape=block_shape)
        for column, expected in zip(found, whole, strict=True):
            np.testing.assert_array_equal(column, expected)


def test_boxes_change_little_with_a_halo_about_as_wide_as_a_neurite(monkeypatch):
    z, y, x = np.indices((40, 60, 60))
    centres = np.random.default_rng(1).random((12, 2)) * 60
    drift = [(y - p - 4 * np.sin(z / 7 + p)) ** 2 + (x - q - z / 8) ** 2 for p, q in centres]
    labels = np.where(np.min(drift, axis=0) < 25, 1 + np.argmin(drift, axis=0), 0)
    found = []
    for box, halo in [((40, 60, 60), (0, 0, 0)), ((16, 24, 24), (4, 4, 4))]:
        monkeypatch.setattr(run_length, "BOX", box)
        monkeypatch.setattr(run_length, "HALO", halo)
        table = measured(labels, labels, spacing=8, voxel_size=(8, 8, 8))
        found.append((table.nm.sum(), run_length.scores(table)["expected_run_length_nm"]))
    assert found[0] != found[1] == pytest.approx(found[0], rel=0.01)
