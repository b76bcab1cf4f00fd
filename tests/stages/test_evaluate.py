"""Stage evaluate: exact sums over blocks, erosion across block faces, refusals."""

import json
from dataclasses import asdict

import numpy as np
import pytest

from tokenunify import affinities, arrays, manifest
from tokenunify.errors import InputError
from tokenunify.evaluation import evaluate, metrics, objects, run_length
from tokenunify.geometry import Blocks


@pytest.fixture
def segmented(workspace, labels, make_labels):
    """A volume with some unlabelled and unknown voxels, and a segmentation that differs from its labels."""
    truth = labels.copy()
    truth[2:4, 5:20, 7:30] = 0
    truth[6, :9, :11] = affinities.IGNORE
    volume = workspace.volume("test", truth)
    prepared = workspace.prepare("relabel", workspace.section("relabel"), [volume], "relabel")
    found = labels * 3 + make_labels(labels.shape, count=4, seed=5)
    arrays.zarr.open_array(str(arrays.prepared_store(prepared)), mode="r+")[:] = found
    return prepared, volume, found, truth


@pytest.mark.parametrize("erode", [False, True])
@pytest.mark.parametrize("block_shape", [(2, 22, 30), (4, 22, 60), (10, 44, 60)])
def test_blocks_add_up_to_the_whole(workspace, segmented, erode, block_shape):
    prepared, volume, found, truth = segmented
    workspace.block_shape = block_shape
    content = manifest.content(workspace.evaluate(prepared, volume, erode_labels=erode))
    expected = affinities.erode_labels(truth) if erode else truth
    expected = np.where(expected == affinities.IGNORE, 0, expected)
    assert {key: content[key] for key in ("voi_split", "voi_merge", "voi", "arand")} == metrics.scores(found, expected)
    assert content["num_labels"] == np.unique(expected[expected > 0]).size
    assert content["num_segments"] == np.unique(found[expected > 0]).size
    assert (content["erode_labels"], content["ignore_label"]) == (erode, 0)
    table = metrics.without(metrics.contingency(found, expected), 0)
    splits, merges = (worst(table, found.shape) for worst in (objects.worst_splits, objects.worst_merges))
    assert content["splits"] == json.loads(json.dumps([asdict(error) for error in splits])) != []
    assert content["merges"] == json.loads(json.dumps([asdict(error) for error in merges])) != []


def test_what_the_mask_excludes_is_not_scored(workspace, labels):
    mask = np.ones(labels.shape, np.uint8)
    mask[3:6, :20, 5:31] = 0
    volume = workspace.volume("test", labels, mask=mask)
    prepared = workspace.prepare("relabel", workspace.section("relabel"), [volume], "relabel")
    arrays.zarr.open_array(str(arrays.prepared_store(prepared)), mode="r+")[:] = labels * mask
    content = manifest.content(workspace.evaluate(prepared, volume, erode_labels=True, ignore_label=999))
    expected = np.where(mask, affinities.erode_labels(labels), 999)
    assert {key: content[key] for key in ("voi", "arand")} == {
        key: metrics.scores(labels * mask, expected, 999)[key] for key in ("voi", "arand")
    }
    assert content["num_segments"] == np.unique(labels[expected != 999]).size


def test_run_lengths_are_those_of_the_whole_volume(workspace, segmented):
    prepared, volume, found, truth = segmented
    expected = np.where(truth == affinities.IGNORE, 0, truth)
    grid = run_length.Grid(Blocks(truth.shape, truth.shape), (1, 2, 4), (40, 8, 4))
    samples = run_length.Samples(expected[:, ::2, ::4], found[:, ::2, ::4])
    whole = run_length.scores(run_length.of_volume(lambda _: samples, grid, 0))
    content = manifest.content(workspace.evaluate(prepared, volume, skeleton_spacing_nm=16))
    assert {key: content[key] for key in whole} == whole
    assert 0 < content["run_length_share"] < 1
    assert not set(whole) & set(manifest.content(workspace.evaluate(prepared, volume)))


def test_a_killed_evaluation_continues(workspace, segmented, monkeypatch):
    prepared, volume, _, _ = segmented
    whole = manifest.content(workspace.evaluate(prepared, volume, skeleton_spacing_nm=16))
    folder = next(path.parent for path in (workspace.folder / "segmentation").glob("*/blocks"))
    lines = (folder / "ledger" / "part0of1.jsonl").read_text().splitlines()
    (folder / "ledger" / "part0of1.jsonl").write_text("\n".join(lines[:-3]) + "\n")
    calls = []
    monkeypatch.setattr(evaluate, "read", lambda *a, real=evaluate.read, **k: calls.append(1) or real(*a, **k))
    again = workspace.evaluate(prepared, volume, skeleton_spacing_nm=16)
    assert len(calls) == 3
    assert manifest.content(again) == whole


def test_another_shape_is_refused(workspace, segmented, labels):
    other = workspace.volume("other", labels[:, :22])
    with pytest.raises(InputError, match=r"shape \[10, 40, 60\], expected that of the labels of .*\[10, 22, 60\]"):
        workspace.evaluate(segmented[0], other)


def test_a_volume_without_labels_is_refused(workspace, segmented):
    bare = workspace.volume("bare", None, np.zeros((10, 40, 60), np.uint8))
    with pytest.raises(InputError, match="volume bare has no labels"):
        workspace.evaluate(segmented[0], bare)


def test_labels_of_nothing_but_the_ignored_one_are_refused(workspace, segmented, labels):
    empty = workspace.volume("empty", np.zeros_like(labels))
    with pytest.raises(InputError, match="no voxel has another label than 0"):
        workspace.evaluate(segmented[0], empty)
