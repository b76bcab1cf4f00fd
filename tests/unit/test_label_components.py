"""Parts of labels: as scikit-image and scipy find them in the whole volume, whatever the blocks; killed and resumed."""

from itertools import count
from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage
from skimage.measure import label

from tokenunify.data.ingest import label_components
from tokenunify.geometry import Blocks
from tokenunify.kernels import components
from tokenunify.store import arrays, blockwise

SHAPE = (9, 34, 51)
BLOCK_SHAPES = [SHAPE, (1, 34, 51), (4, 7, 51), (5, 11, 13)]


def noise(*, num_labels: int, scale: int, dtype: str) -> np.ndarray:
    """Random labels in boxes of that size, and single voxels of others in them."""
    rng = np.random.default_rng(scale)
    values = rng.integers(0, num_labels, [-(-n // scale) for n in SHAPE])
    for axis in range(3):
        values = values.repeat(scale, axis)
    values = values[tuple(map(slice, SHAPE))].copy()
    strewn = rng.random(SHAPE) < 0.1
    values[strewn] = rng.integers(0, num_labels, np.count_nonzero(strewn))
    return values.astype(dtype)


def spirals() -> np.ndarray:
    """Two labels wound around each other, of which each block sees many pieces."""
    _, y, x = np.indices(SHAPE)
    angle, radius = np.arctan2(y - 17, x - 25), np.hypot(y - 17, x - 25)
    turn = (radius / 6 + angle / np.pi) % 2
    return np.where(turn < 0.8, 7, np.where(turn < 1.6, 3, 0)).astype(np.uint16)


VOLUMES = {
    "many": noise(num_labels=4, scale=1, dtype="uint8"),
    "boxes": noise(num_labels=3, scale=4, dtype="int32"),
    "wide": noise(num_labels=5, scale=3, dtype="uint64") * np.uint64(2**60),
    "swapped": noise(num_labels=3, scale=5, dtype=">u2"),
    "spirals": spirals(),
    "empty": np.zeros(SHAPE, np.uint8),
    "full": np.full(SHAPE, 9, np.uint8),
    "turned": noise(num_labels=3, scale=2, dtype="uint32").transpose(2, 0, 1),
}


def found(labels: np.ndarray, block_shape, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Labels of the parts, and the parts put together from all blocks."""
    blocks = Blocks(labels.shape, block_shape)
    of_parts, tables = label_components.find(lambda box: labels[box.slices], blocks, folder)
    values = np.empty(labels.shape, next(iter(tables.values())).dtype)
    for box, table in tables.items():
        values[box.slices] = label_components.of_voxels(components.numbered(labels[box.slices])[0], table)
    return of_parts, values


@pytest.mark.parametrize("block_shape", BLOCK_SHAPES)
@pytest.mark.parametrize("name", VOLUMES)
def test_parts_are_those_of_scikit_image(tmp_path, name, block_shape):
    labels = VOLUMES[name]
    of_parts, values = found(labels, block_shape, tmp_path)
    _, labels_by_rank = np.unique(labels, return_inverse=True)  # scikit-image takes no ids of 64 bits
    expected = label(labels_by_rank + (labels.min() > 0), background=0, connectivity=1)
    np.testing.assert_array_equal(values, expected)
    np.testing.assert_array_equal(of_parts[values], labels)
    assert len(of_parts) == expected.max() + 1
    assert values.dtype == np.min_scalar_type(expected.max())
    assert of_parts.dtype == labels.dtype.newbyteorder("=")


@pytest.mark.parametrize("name", ["many", "boxes", "spirals"])
def test_parts_of_each_label_are_those_of_scipy(tmp_path, name):
    labels = VOLUMES[name]
    of_parts, values = found(labels, (4, 7, 13), tmp_path)
    for own in np.unique(labels[labels > 0]):
        expected, number = scipy.ndimage.label(labels == own)
        ours = np.where(labels == own, values, 0)
        assert np.count_nonzero(of_parts == own) == number
        assert len(np.unique(np.stack([ours, expected]).reshape(2, -1), axis=1).T) == number + 1


def test_numbers_rise_with_the_first_voxel(tmp_path):
    _, values = found(VOLUMES["many"], (2, 5, 9), tmp_path)
    numbers, first = np.unique(values, return_index=True)
    assert (np.diff(first[numbers > 0]) > 0).all()
    np.testing.assert_array_equal(numbers, np.arange(values.max() + 1))


def test_edges_and_corners_do_not_join():
    labels = np.zeros((3, 4, 5), np.uint8)
    labels[0, 0, 0] = labels[0, 1, 1] = labels[1, 1, 2] = labels[2, 2, 3] = 8
    values, first = components.numbered(labels)
    np.testing.assert_array_equal(values[labels > 0], [1, 2, 3, 4])
    np.testing.assert_array_equal(first, np.flatnonzero(labels))


def test_nodes_take_the_first_that_pairs_join():
    pairs = np.array([[6, 5], [2, 5], [0, 3], [6, 2]])
    np.testing.assert_array_equal(components.joined(8, pairs), [0, 1, 2, 0, 4, 2, 2, 7])


def test_killed_at_every_step_and_resumed(tmp_path, monkeypatch):
    """Dies before a file is written or removed, once at each such step of a run from the start, and goes on."""

    class Killed(BaseException):
        pass

    labels, block_shape = VOLUMES["many"], (5, 20, 30)
    expected = found(labels, block_shape, tmp_path / "whole")
    left = 0

    def counted(function):
        def call(path, /, *arguments, **options):
            nonlocal left
            if Path(path).suffix in (".npz", ".jsonl"):  # a lock that stayed would be that of a living process
                left -= 1
                if left == 0:
                    raise Killed
            return function(path, *arguments, **options)

        return call

    for target, name in ((arrays, "write_npz"), (Path, "unlink"), (blockwise, "_record")):
        monkeypatch.setattr(target, name, counted(getattr(target, name)))
    for step in count(1):
        left = step
        try:
            found(labels, block_shape, tmp_path / str(step))
        except Killed:
            resumed = found(labels, block_shape, tmp_path / str(step))
            np.testing.assert_array_equal(resumed[0], expected[0])
            np.testing.assert_array_equal(resumed[1], expected[1])
        else:
            break
    assert step > 8 * 3  # eight blocks, each of which writes its table, removes planes and is recorded


def test_only_planes_that_are_waited_for_are_kept(tmp_path):
    most = 0

    def read(box):
        nonlocal most
        most = max(most, len(list(tmp_path.glob("*.?.npz"))))
        return VOLUMES["many"][box.slices]

    blocks = Blocks(SHAPE, (1, 17, 26))
    label_components.find(read, blocks, tmp_path)
    assert most <= 4 + 2 + 1  # of the four blocks of a section: below, beside, before
    assert not list(tmp_path.glob("*.?.npz"))
    assert len(list(tmp_path.glob("*.npz"))) == len(blocks)
