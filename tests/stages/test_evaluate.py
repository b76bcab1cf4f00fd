"""Stage evaluate: exact sums over blocks, erosion across block faces, refusals."""

import shutil

import numpy as np
import pytest

from tokenunify import affinities
from tokenunify.errors import InputError
from tokenunify.evaluation import evaluate, metrics, objects, run_length
from tokenunify.geometry import Blocks
from tokenunify.store import arrays, manifest


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
    splits = objects.worst_splits(table, found.shape)
    assert [(e["id"], e["bits"], len(e["pieces"])) for e in content["splits"]] == [
        (error.id, error.bits, len(error.pieces)) for error in splits
    ]
    assert content["merges"]
    for owners, pieces, errors in ((expected, found, content["splits"]), (found, expected, content["merges"])):
        for error, piece in [(e, piece) for e in errors for piece in e["pieces"]]:
            mine = (owners == error["id"]) & (expected > 0)
            assert tuple(piece["position"]) == tuple(np.argwhere(mine & (pieces == piece["id"]))[0])
            if piece["contact"]:
                around = tuple(slice(max(0, c - 1 - 18 * erode), c + 2 + 18 * erode) for c in piece["contact"])
                near = set(pieces[around][mine[around]].tolist())
                assert piece["id"] in near and near & {p["id"] for p in error["pieces"]} - {piece["id"]}
    assert any(piece["contact"] for error in content["splits"] for piece in error["pieces"])


@pytest.mark.parametrize("erode", [False, True])
def test_places_of_errors_do_not_depend_on_blocks_and_count_from_the_source(workspace, segmented, erode, tmp_path):
    prepared, volume, _, truth = segmented
    kinds = ("splits", "merges")
    workspace.block_shape = (10, 44, 60)
    whole = manifest.content(workspace.evaluate(prepared, volume, erode_labels=erode))
    workspace.block_shape = (2, 22, 30)
    blocks = manifest.content(workspace.evaluate(prepared, volume, erode_labels=erode))
    assert [blocks[kind] for kind in kinds] == [whole[kind] for kind in kinds]
    shutil.rmtree(tmp_path / "data")
    moved = manifest.content(
        workspace.evaluate(prepared, workspace.volume("test", truth, origin=(7, 11, 13)), erode_labels=erode)
    )
    for kind in kinds:
        for one, other in zip(blocks[kind], moved[kind], strict=True):
            for piece, expected in zip(other["pieces"], one["pieces"], strict=True):
                for place in ("position", "contact"):
                    assert piece[place] == (expected[place] and np.add(expected[place], (7, 11, 13)).tolist())


UNKNOWN = 2**64 - 1


def scores_of_labels(workspace, labels: np.ndarray, found: np.ndarray, name: str, **settings) -> dict:
    """Scores of a segmentation against labels that are stored as they are, or with `source_ids`."""
    source_ids = settings.pop("source_ids", None)
    volume = workspace.volume(name, labels, source_ids=source_ids, mask=settings.pop("mask", None))
    prepared = workspace.prepare("relabel", workspace.section("relabel"), [volume], f"relabel-{name}")
    arrays.zarr.open_array(str(arrays.prepared_store(prepared)), mode="r+")[:] = found
    content = manifest.content(workspace.evaluate(prepared, volume, skeleton_spacing_nm=16, **settings))
    return {key: value for key, value in content.items() if key not in ("inputs", "splits", "merges")}


@pytest.mark.parametrize("ignored", [0, 5, 300, 2**63 + 2, UNKNOWN])
@pytest.mark.parametrize("masked", [False, True])
def test_the_ignored_label_is_that_of_the_source(workspace, labels, make_labels, ignored, masked):
    known = np.array([0, 5, 300, 301, 2**63 + 1, 2**63 + 2], np.uint64)
    stored = (labels % np.uint64(6)).astype(np.uint8)
    found = labels * 3 + make_labels(labels.shape, count=4, seed=5)
    mask = np.ones(labels.shape, np.uint8)
    mask[:2, 5:] = not masked
    settings = {"ignore_label": ignored, "mask": mask if masked else None}
    kept = scores_of_labels(workspace, known[stored], found, "keep", **settings)
    dense = scores_of_labels(workspace, stored, found, "dense", source_ids=known, **settings)
    parts = stored + (6 * (np.indices(labels.shape)[2] > 30)).astype(np.uint8)  # each label in two
    parts[stored == 0] = 0
    apart = np.append(known, known)
    apart[6] = 7  # no label is 6
    components = scores_of_labels(workspace, parts, found, "components", source_ids=apart, **settings)
    expected = known[stored]
    unscored = (expected == ignored) | (mask == 0)
    expected[unscored], expected[~unscored] = 0, expected[~unscored] + np.uint64(1)
    assert kept == dense
    assert {key: kept[key] for key in ("voi_split", "voi_merge", "voi", "arand")} == metrics.scores(found, expected)
    assert kept["num_labels"] == np.unique(expected[expected > 0]).size
    assert components["num_segments"] == kept["num_segments"] == np.unique(found[expected > 0]).size
    assert kept["run_length_share"] == pytest.approx(dense["run_length_share"])


def test_an_ignored_label_that_no_voxel_has_is_told(workspace, labels, caplog):
    scores_of_labels(workspace, labels, labels, "known", ignore_label=3)
    assert "ignore_label" not in caplog.text
    scores_of_labels(workspace, labels, labels, "other", ignore_label=77)
    assert "volume other has no voxel of label 77" in caplog.text
    names = np.arange(13, dtype=np.uint64) * np.uint64(10)
    scores_of_labels(workspace, labels.astype(np.uint8), labels, "dense", ignore_label=3, source_ids=names)
    assert "volume dense has no voxel of label 3" in caplog.text


@pytest.mark.parametrize("damage", ["missing", "chunk"])
def test_a_table_of_the_sources_ids_that_is_not_whole_is_refused(workspace, labels, damage):
    names = np.arange(13, dtype=np.uint64) * np.uint64(10)
    volume = workspace.volume("test", labels.astype(np.uint8), source_ids=names)
    prepared = workspace.prepare("relabel", workspace.section("relabel"), [volume], "relabel")
    arrays.zarr.open_array(str(arrays.prepared_store(prepared)), mode="r+")[:] = labels
    table = volume.with_suffix(".zarr") / "labels" / "original_ids"
    shutil.rmtree(table if damage == "missing" else table / "c")
    with pytest.raises(InputError, match=r"original_ids is (not a readable zarr array|damaged)"):
        workspace.evaluate(prepared, volume, ignore_label=30)


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
    whole = run_length.scores(run_length.of_volume(lambda _: samples, grid, np.zeros(1, np.uint64)))
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
    assert len(calls) >= 3  # and the blocks of the worst errors
    assert len((folder / "ledger" / "part0of1.jsonl").read_text().splitlines()) == len(lines)
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
