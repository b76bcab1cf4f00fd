import numpy as np
import pytest
import zarr
from skimage.metrics import adapted_rand_error, variation_of_information

from tokenunify.errors import InputError
from tokenunify.evaluation import metrics
from tokenunify.geometry import Blocks

SHAPE = (4, 9, 13)


def volumes(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Segmentation and labels that agree in part; both have a 0."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 6, (4, 5, 5)).repeat(2, axis=1).repeat(3, axis=2)[:, :9, :13]
    noise = random.integers(0, 9, SHAPE)
    return np.where(random.random(SHAPE) < 0.2, noise, labels * (1 + seed % 2)), labels


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("ignore", [0, 2])
def test_scores_equal_scikit_images(seed, ignore):
    segmentation, labels = volumes(seed)
    split, merge = variation_of_information(labels, segmentation, ignore_labels=(ignore,))
    expected = {
        "voi_split": split,
        "voi_merge": merge,
        "voi": split + merge,
        "arand": adapted_rand_error(labels, segmentation, ignore_labels=(ignore,))[0],
    }
    found = metrics.scores(segmentation.astype(np.uint64), labels.astype(np.uint64), ignore)
    assert found == pytest.approx(expected, rel=0, abs=1e-12)


def test_splitting_and_merging_are_told_apart():
    labels = np.repeat([1, 2], 8).reshape(1, 2, 8)
    halves = np.tile(np.repeat([5, 6], 4), 2).reshape(1, 2, 8) + labels * 10
    apart = metrics.scores(halves, labels)
    assert (apart["voi_split"], apart["voi_merge"]) == (1, 0)
    assert apart["arand"] == pytest.approx(1 - 2 * 4 * 12 / (4 * 12 + 2 * 56))
    together = metrics.scores(np.full_like(labels, 3), labels)
    assert (together["voi_split"], together["voi_merge"]) == (0, 1)


def nested_loops(segmentation, labels) -> dict:
    """(label, segment) -> voxels and raster index of the first."""
    overlaps = {}
    for index, voxel in enumerate(np.ndindex(labels.shape)):
        count, first = overlaps.get(pair := (int(labels[voxel]), int(segmentation[voxel])), (0, index))
        overlaps[pair] = count + 1, first
    return dict(sorted(overlaps.items()))


@pytest.mark.parametrize("block_shape", [(1, 9, 13), (3, 4, 5), (4, 2, 13), (2, 7, 3), (3, 9, 1), (4, 5, 8)])
@pytest.mark.parametrize("many_rows", [1, 20, 2**20])
def test_tables_of_blocks_add_up_to_nested_loops_in_any_order(block_shape, many_rows, monkeypatch):
    monkeypatch.setattr(metrics, "MANY_ROWS", many_rows)
    segmentation, labels = volumes(1)
    blocks = Blocks(SHAPE, block_shape)
    rois = map(blocks.roi, range(len(blocks)))
    parts = [metrics.contingency(segmentation[roi.slices], labels[roi.slices], roi, SHAPE) for roi in rois]
    expected = [(*pair, *values) for pair, values in nested_loops(segmentation, labels).items()]
    for table in (metrics.merge(parts[::-1]), metrics.contingency(segmentation, labels)):
        np.testing.assert_array_equal(np.stack(table, axis=1), expected)
        assert {column.dtype for column in table} == {np.dtype(np.uint64)}


def test_zarr_arrays_are_read_in_slabs(tmp_path):
    segmentation, labels = volumes(2)
    stored = []
    for name, values in {"segmentation": segmentation, "labels": labels}.items():
        array = zarr.create_array(tmp_path / name, shape=SHAPE, dtype="uint64", chunks=(1, 5, 4), shards=(3, 5, 8))
        array[:] = values
        stored.append(array)
    assert metrics.scores(*stored) == metrics.scores(segmentation, labels)


@pytest.mark.parametrize("dtypes", [("uint8", "int64"), ("int16", ">u4"), ("uint64", "bool")])
def test_the_type_of_the_ids_does_not_matter(dtypes):
    segmentation, labels = (array.clip(0, 1) if "bool" in dtypes else array for array in volumes(4))
    found = metrics.contingency(segmentation.astype(dtypes[0]), labels.astype(dtypes[1]))
    expected = metrics.contingency(segmentation.astype(np.uint64), labels.astype(np.uint64))
    for column, wanted in zip(found, expected, strict=True):
        assert column.dtype == np.uint64
        np.testing.assert_array_equal(column, wanted)


def test_large_ids_stay_apart():
    labels = np.array([[[2**63, 2**63 + 1, 2**64 - 2]]], np.uint64)
    assert metrics.scores(labels, labels) == {"voi_split": 0, "voi_merge": 0, "voi": 0, "arand": 0}


def test_different_shapes_and_nothing_to_score_are_refused():
    segmentation, labels = volumes(3)
    with pytest.raises(InputError, match=r"segmentation has shape \[4, 9, 12\], expected that of labels, \[4, 9, 13\]"):
        metrics.scores(segmentation[..., 1:], labels)
    with pytest.raises(InputError, match="no voxel has another label than 0"):
        metrics.scores(segmentation, labels * 0)


@pytest.mark.parametrize("ignored", [-3, 2, 2**64 - 3, 999, -(2**70)])
def test_the_ignored_label_is_compared_by_the_arrays_own_values(ignored):
    segmentation, labels = volumes(3)
    labels = labels - 3
    expected = pytest.approx(metrics.scores(segmentation, np.where(labels == ignored, 0, labels + 10)), abs=1e-12)
    for dtype in (np.int64, np.int8, ">i2"):
        assert metrics.scores(segmentation, labels.astype(dtype), ignored) == expected
    wrapped = labels.astype(np.uint64)  # what was -3 is 2^64-3
    own = {2: 2, 2**64 - 3: -3}.get(ignored)
    expected = pytest.approx(metrics.scores(segmentation, np.where(labels == own, 0, labels + 10)), abs=1e-12)
    assert metrics.scores(segmentation, wrapped, ignored) == expected


def test_neighbouring_large_ids_are_told_apart_as_the_ignored_label():
    labels = np.array([[[2**63, 2**63 + 1, 2**64 - 2, 2**64 - 1]]], np.uint64)
    segmentation = np.array([[[1, 1, 2, 2]]])
    assert metrics.scores(segmentation, labels)["voi"] == 1
    assert metrics.scores(segmentation, labels, 2**63 + 1)["voi"] == pytest.approx(2 / 3)
    assert metrics.scores(segmentation, labels, 2**64 - 1)["voi"] == pytest.approx(2 / 3)
    whole = metrics.scores(segmentation == 1, labels == 2**63, np.bool_(False))
    assert whole == {"voi_split": 0, "voi_merge": 0, "voi": 0, "arand": 0}
