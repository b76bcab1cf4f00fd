"""The segmentation's pyramid: every level against a slow mode, whatever the parts and blocks, and as others read it."""

from collections import Counter
from itertools import product

import numpy as np
import ome_zarr_models
import pytest
import zarr

from tokenunify.data.formats.ome_zarr import open_zarr
from tokenunify.segmentation import lut
from tokenunify.store import arrays, manifest, pyramid

SHAPE = (5, 67, 75)
LEVELS = [SHAPE, (5, 34, 38), (5, 17, 19)]
BLOCKS = [(4, 44, 60), (8, 88, 60), (4, 88, 120)]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(pyramid, "SMALLEST_SHARE", 1)
    monkeypatch.setattr(pyramid, "VIEW", 20)


@pytest.fixture(scope="module")
def coarse(make_labels) -> np.ndarray:
    """Neurites, some of them ending between sections."""
    return make_labels(SHAPE, count=20, seed=4)


def segmented(workspace, labels, **settings):
    """The prepared.json of a segmentation that equals the labels, by relabel."""
    workspace.chunk_shape, workspace.shard_shape = (2, 11, 15), (4, 22, 30)
    for name, value in settings.items():
        setattr(workspace, name, value)
    fragments = workspace.prepare("fragments", workspace.section("fragments"), [workspace.volume("test", labels)], "f")
    arrays.open_writable(fragments)[:] = labels
    agglomerated, ids = workspace.folder / "segmentation" / "agglomerate.json", np.unique(labels)
    path = agglomerated.with_name("lut.npy")
    lut.write(path, lut.Lut(ids, ids))
    manifest.write(agglomerated, {"lut": manifest.file_sha256(path)})
    return workspace.relabel(fragments, agglomerated)


def group(prepared) -> zarr.Group:
    return zarr.open_group(str(arrays.prepared_store(prepared).parent), mode="r")


def slow_mode(labels: np.ndarray, factor: tuple[int, ...]) -> np.ndarray:
    """The label most frequent in each window, the first of equals; the last voxel repeats at the far faces."""
    last = np.array(labels.shape) - 1
    reduced = np.zeros([-(-n // f) for n, f in zip(labels.shape, factor, strict=True)], labels.dtype)
    for index in np.ndindex(*reduced.shape):
        window = product(*(range(i * f, i * f + f) for i, f in zip(index, factor, strict=True)))
        reduced[index] = Counter(labels[tuple(np.minimum(v, last))] for v in window).most_common(1)[0][0]
    return reduced


@pytest.mark.parametrize("block_shape", BLOCKS)
def test_every_level_is_the_mode_of_the_one_before(workspace, coarse, block_shape):
    image = group(segmented(workspace, coarse, block_shape=block_shape, parts=2))
    assert [image[level].shape for level in sorted(image)] == LEVELS
    np.testing.assert_array_equal(image["0"][:], coarse)
    for level in ("1", "2"):
        np.testing.assert_array_equal(image[level][:], slow_mode(image[str(int(level) - 1)][:], (1, 2, 2)))


def files(prepared) -> dict[str, bytes]:
    root = arrays.prepared_store(prepared).parent
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_parts_give_the_same_bytes_and_fill_whole_shards(workspace, coarse, tmp_path):
    results = []
    for parts in (1, 3):
        workspace.folder = tmp_path / str(parts)
        prepared = segmented(workspace, coarse, block_shape=BLOCKS[0], parts=parts)
        results.append(files(prepared))
    assert results[0] == results[1]
    image = group(prepared)
    for level, share in (("1", (4, 22, 30)), ("2", (4, 11, 15))):
        shards = image[level].shards
        assert all(n % s == 0 for n, s in zip(share, shards, strict=True))
        assert all(s % c == 0 for s, c in zip(shards, image[level].chunks, strict=True))
        arrays.open_complete(arrays.prepared_store(prepared).with_name(level), "")


def test_other_readers_open_it(workspace, coarse):
    prepared = segmented(workspace, coarse, block_shape=BLOCKS[0])
    source = open_zarr(str(arrays.prepared_store(prepared).parent), None)
    assert source.voxel_size_nm == (40, 8, 4)
    np.testing.assert_array_equal(source[:], coarse)
    image = ome_zarr_models.open_ome_zarr(group(prepared))
    multiscale = image.attributes.ome.multiscales[0]
    assert [axis.name for axis in multiscale.axes] == ["z", "y", "x"]
    scales = [data.coordinateTransformations[0].scale for data in multiscale.datasets]
    shifts = [data.coordinateTransformations[1].translation for data in multiscale.datasets]
    assert scales == [[40, 8, 4], [40, 16, 8], [40, 32, 16]]
    assert shifts == [[0, 0, 0], [0, 4, 2], [0, 12, 6]]
