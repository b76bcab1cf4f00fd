"""From affinities to a segmentation, stage by stage, as the workflow calls them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from tokenunify import affinities, config
from tokenunify.errors import InputError
from tokenunify.evaluation import metrics
from tokenunify.segmentation import baseline, lut, rag
from tokenunify.store import arrays, blockwise, manifest

SMOOTHED = {"boundary": "max", "sigma_seeds": 2.0, "sigma_weights": 2.0, "diagonal_seeds": True, "min_size": 20}
WHOLE_SECTIONS = [(2, 44, 60), (4, 44, 60), (10, 44, 60)]


def shard_bytes(prepared: Path) -> dict[str, bytes]:
    store = arrays.prepared_store(prepared)
    files = [path for path in sorted((store / "c").rglob("*")) if path.is_file()]
    return {str(path.relative_to(store)): path.read_bytes() for path in files}


@pytest.fixture
def predicted(workspace, labels):
    return workspace.perfect(workspace.volume("test", labels), labels)


def noisy(labels, seed=1):
    perfect, _ = affinities.targets(labels, config.NEAREST, "background", erode=True)
    noise = np.random.default_rng(seed).normal(0, 0.15, perfect.shape)
    return arrays.to_uint8(0.1 + 0.8 * perfect + noise)


@pytest.mark.parametrize(
    "segmentation",
    [
        {"method": "waterz"},
        {"method": "waterz", "score": "mean"},
        {"method": "multicut", "fragments": SMOOTHED},
        {"method": "multicut", "fragments": {"dimensions": 3, "halo": (2, 8, 8)}},
    ],
)
def test_perfect_affinities_give_the_labels_back(workspace, make_labels, segmentation):
    truth = make_labels((10, 88, 120), count=10, seed=3)
    workspace.whole((10, 88, 120))
    segmented = workspace.segment(workspace.perfect(workspace.volume("test", truth), truth), **segmentation)
    assert metrics.scores(arrays.open_prepared(segmented).array, affinities.erode_labels(truth))["voi"] < 0.05


def test_the_bytes_are_the_same_for_any_blocks_and_parts_that_hold_whole_sections(workspace, labels, tmp_path):
    workspace.affinities(workspace.volume("test", labels), noisy(labels))
    results = []
    for number, (block_shape, parts) in enumerate(zip(WHOLE_SECTIONS, (3, 2, 1), strict=True)):
        copy = workspace.copy(tmp_path / str(number), block_shape=block_shape, parts=parts)
        segmented = copy.segment(copy.folder / "predict" / "prepared.json")
        lut_bytes = (copy.folder / "segmentation" / "lut.npy").read_bytes()
        results.append((shard_bytes(copy.folder / "fragments" / "prepared.json"), lut_bytes, shard_bytes(segmented)))
    assert results[0] == results[1] == results[2]


def test_fragments_in_3d_are_the_same_for_any_parts(workspace, labels, tmp_path):
    workspace.affinities(workspace.volume("test", labels), noisy(labels))
    found = []
    for parts in (1, 2, 7):
        copy = workspace.copy(tmp_path / str(parts), parts=parts)
        predicted = copy.folder / "predict" / "prepared.json"
        found.append(shard_bytes(copy.fragments(predicted, dimensions=3, halo=(2, 8, 8))))
    assert found[0] == found[1] == found[2]


def test_rag_lut_and_segmentation_are_the_same_for_any_blocking_of_given_fragments(workspace, labels, tmp_path):
    predicted = workspace.affinities(workspace.volume("test", labels), noisy(labels))
    workspace.block_shape = (10, 44, 60)
    fragments = workspace.fragments(predicted)
    whole = rag.from_arrays(arrays.open_prepared(predicted)[:], arrays.open_prepared(fragments)[:], histograms=False)
    for parts, block_shape in enumerate([(2, 22, 30), (4, 44, 30), (10, 22, 60)], start=1):
        workspace.block_shape, workspace.parts, workspace.folder = block_shape, parts, tmp_path / str(parts)
        loaded = rag.load(workspace.rag(predicted, fragments))
        for name, table in vars(whole).items():
            np.testing.assert_array_equal(getattr(loaded, name), table, err_msg=name)


def test_fragments_of_cut_sections_are_connected_and_have_canonical_ids(workspace, predicted):
    fragments = arrays.open_prepared(workspace.fragments(predicted, halo=(0, 8, 8)))[:]
    flat = fragments.ravel()
    values, firsts = np.unique(flat, return_index=True)
    np.testing.assert_array_equal(values, firsts + 1)
    blocks = np.indices(fragments.shape) // np.array(workspace.block_shape)[:, None, None, None]
    owner = np.ravel_multi_index(tuple(blocks), (5, 2, 2)).ravel()
    assert all(np.unique(owner[flat == value]).size == 1 for value in values[:50])


@pytest.fixture
def parted(workspace):
    """A volume of one neuron whose mask leaves out some columns, and the last sections: (affinities, mask)."""
    mask = np.ones((10, 40, 60), np.uint8)
    mask[:, :, 23:25] = mask[6:] = 0
    volume = workspace.volume("test", None, np.zeros(mask.shape, np.uint8), mask)
    return workspace.affinities(volume, np.full((3, *mask.shape), 255, np.uint8)), mask


@pytest.mark.parametrize(("dimensions", "pieces"), [(2, 12), (3, 2)])
def test_fragments_end_at_the_mask(workspace, parted, dimensions, pieces):
    predicted, mask = parted
    workspace.block_shape = (10, 44, 60)
    found = arrays.open_prepared(workspace.fragments(predicted, dimensions=dimensions))[:]
    np.testing.assert_array_equal(found > 0, mask)
    assert np.unique(found[mask > 0]).size == pieces
    assert not np.intersect1d(found[..., :23], found[..., 25:]).any()


def test_a_mask_goes_through_to_the_segmentation_in_any_blocks(workspace, parted, tmp_path):
    _, mask = parted
    for number, block_shape in enumerate([(2, 22, 30), (4, 44, 60)]):
        copy = workspace.copy(tmp_path / str(number), block_shape=block_shape, parts=2)
        segmented = arrays.open_prepared(copy.segment(copy.folder / "predict" / "prepared.json"))[:]
        np.testing.assert_array_equal(segmented > 0, mask)
        assert np.unique(segmented).size == 3


def test_a_killed_stage_goes_on_and_ends_with_the_same_bytes(workspace, predicted, tmp_path, monkeypatch):
    undisturbed = workspace.copy(tmp_path / "undisturbed").fragments(predicted)
    calls, record = [], blockwise._record

    def killed_at_the_fourth(ledger, entry):
        calls.append(entry["block"])
        if len(calls) == 4:
            raise KeyboardInterrupt
        record(ledger, entry)

    monkeypatch.setattr(blockwise, "_record", killed_at_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        workspace.fragments(predicted)
    assert not (workspace.folder / "fragments" / "part0of1.json").exists()
    resumed = workspace.fragments(predicted)
    assert calls == [0, 1, 2, 3, *range(3, 20)]
    assert shard_bytes(resumed) == shard_bytes(undisturbed)
    assert manifest.read(resumed.with_name("part0of1.json"))["run"]["blocks"] == 20


def test_rag_resumes_and_a_lost_block_is_named(workspace, predicted, monkeypatch):
    fragments = workspace.fragments(predicted)
    write, calls = arrays.write_npz, []

    def killed_at_the_third(*arguments, **tables):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        write(*arguments, **tables)

    monkeypatch.setattr(arrays, "write_npz", killed_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        workspace.rag(predicted, fragments)
    part = workspace.rag(predicted, fragments)
    run = manifest.read(part)["run"]
    assert (run["blocks"], run["blocks_computed_now"]) == (20, 18)
    lost = part.parent / manifest.content(part)["store"] / "blocks" / "7.npz"
    lost.unlink()
    workspace.parts = 2
    with pytest.raises(InputError, match=r"7\.npz is missing; delete .*snakemake"):
        workspace.rag(predicted, fragments)


def test_the_graph_of_a_part_is_kept_and_a_damaged_one_is_named_and_made_again(workspace, predicted):
    workspace.parts, fragments = 2, workspace.fragments(predicted)
    part = workspace.rag(predicted, fragments)
    kept, damaged = (
        part.parent / manifest.content(part)["store"] / "merged" / f"part{number}of2.npz" for number in range(2)
    )
    whole, changed = damaged.read_bytes(), kept.stat().st_mtime_ns
    damaged.write_bytes(whole[:-40])
    with pytest.raises(InputError, match=r"part1of2\.npz is damaged.*; delete .*part0of2\.json and the manifests"):
        rag.load(part)
    workspace.rag(predicted, fragments)
    assert (damaged.read_bytes(), kept.stat().st_mtime_ns) == (whole, changed)


def test_agglomerate_says_what_it_used(workspace, predicted, labels):
    part = workspace.rag(predicted, workspace.fragments(predicted))
    content = manifest.content(workspace.agglomerate(part, method="waterz", threshold=0.4))
    table = lut.read(workspace.folder / "segmentation" / "agglomerate.json")
    assert (content["method"], content["value"], content["source"]) == ("waterz", 0.4, "fixed")
    assert content["num_fragments"] == table.fragments.size > content["num_segments"] == np.unique(table.segments).size
    assert content["lut"] == manifest.file_sha256(workspace.folder / "segmentation" / "lut.npy")


def test_agglomerate_with_a_hierarchy_reads_the_parts(workspace, labels):
    predicted = workspace.affinities(workspace.volume("test", labels), noisy(labels))
    workspace.parts = 3
    part = workspace.rag(predicted, workspace.fragments(predicted))
    exact = manifest.read(workspace.agglomerate(part, method="waterz"))
    idle = manifest.read(workspace.agglomerate(part, method="waterz", hierarchy=0))
    close = manifest.read(workspace.agglomerate(part, method="waterz", hierarchy=0.4))
    assert idle["content"] == exact["content"]
    assert close["content"]["lut"] != exact["content"]["lut"]
    assert close["content"]["num_segments"] == pytest.approx(exact["content"]["num_segments"], rel=0.1)
    assert close["run"]["voxels"] == exact["run"]["voxels"] == labels.size


def test_agglomerate_takes_the_tuned_value(workspace, predicted):
    part = workspace.rag(predicted, workspace.fragments(predicted))
    tuned = workspace.folder / "tuned.json"
    manifest.write(tuned, {"value": 0.3})
    candidates = {"method": "multicut", "beta": {"tune": [0.3, 0.7]}}
    content = manifest.content(workspace.agglomerate(part, tuned, **candidates))
    assert (content["value"], content["source"]) == (0.3, "validation")
    with pytest.raises(InputError, match="one manifest of tune as --tuned, got 0"):
        workspace.agglomerate(part, **candidates)
    manifest.write(tuned, {"value": 0.4})
    with pytest.raises(InputError, match=r"value 0\.4 is not among the candidates \[0\.3, 0\.7\]"):
        workspace.agglomerate(part, tuned, **candidates)


def test_relabel_names_a_fragment_that_the_table_lacks(workspace, predicted):
    fragments = workspace.fragments(predicted)
    agglomerated = workspace.agglomerate(workspace.rag(predicted, fragments), method="waterz")
    path, table = agglomerated.with_name("lut.npy"), lut.read(agglomerated)
    lut.write(path, lut.Lut(table.fragments[1:], table.segments[1:]))
    with pytest.raises(InputError, match=r"lut\.npy is damaged: its SHA-256 is"):
        workspace.relabel(fragments, agglomerated)
    manifest.write(agglomerated, {**manifest.content(agglomerated), "lut": manifest.file_sha256(path)})
    with pytest.raises(InputError, match=r"lut\.npy: the lut lacks 1 fragments, the first is 1"):
        workspace.relabel(fragments, agglomerated)


def test_damage_of_an_input_store_is_named(workspace, predicted):
    shard = next(path for path in sorted((arrays.prepared_store(predicted) / "c").rglob("*")) if path.is_file())
    shard.unlink()
    with pytest.raises(InputError, match="lacks 1 of its shard files"):
        workspace.fragments(predicted)


def test_an_output_store_that_vanished_is_named(workspace, predicted):
    prepared = workspace.fragments(predicted)
    shutil.rmtree(arrays.prepared_store(prepared).parent)
    volume = workspace.folder / "data" / "volumes" / "test.json"
    inputs = {"affinities": predicted, "volume": volume, "prepared": prepared}
    with pytest.raises(InputError, match=rf"fragments\.zarr is not a readable.*delete {prepared.parent} and run"):
        workspace.run_parts("fragments", workspace.section("fragments"), inputs, prepared.parent)


def test_baseline_is_the_smaller_of_two_smoothed_voxels_for_any_blocking(workspace, tmp_path):
    raw = np.random.default_rng(3).integers(0, 256, (10, 40, 60)).astype(np.uint8)
    volume = workspace.volume("test", None, raw)
    found = []
    for number, block_shape in enumerate([(2, 22, 30), (4, 44, 30), (10, 44, 60)]):
        copy = workspace.copy(tmp_path / str(number), block_shape=block_shape, parts=2)
        made = copy.array("baseline", copy.section("baseline", sigma_nm=12.0), {"raw": volume}, name="predict")
        found.append(shard_bytes(made))
    assert found[0] == found[1] == found[2]
    smoothed = np.rint(baseline.smooth(raw, (12 / 40, 12 / 8, 12 / 4))).astype(np.uint8)
    stored = arrays.open_prepared(made)[:]
    assert stored[1, 3, 20, 7] == min(smoothed[3, 20, 7], smoothed[3, 19, 7])
    assert stored[2, 3, 20, 0] == smoothed[3, 20, 0]
    np.testing.assert_array_equal(stored[0, 1:], np.minimum(smoothed[1:], smoothed[:-1]))


def test_baseline_refuses_raw_that_is_not_uint8(workspace):
    volume = workspace.volume("test", None, np.zeros((10, 40, 60), np.uint16))
    with pytest.raises(InputError, match="raw of type uint8, found uint16"):
        workspace.array("baseline", workspace.section("baseline", sigma_nm=8.0), {"raw": volume})


def test_manifests_have_no_times_in_what_is_hashed(workspace, predicted, tmp_path):
    fragments = workspace.fragments(predicted)
    part = workspace.rag(predicted, fragments)
    first = json.dumps([manifest.content(fragments.with_name("part0of1.json")), manifest.content(part)])
    fragments.with_name("part0of1.json").unlink()
    part.unlink()
    fragments = workspace.fragments(predicted)
    workspace.parts = 3
    part = workspace.rag(predicted, fragments)
    assert first == json.dumps([manifest.content(fragments.with_name("part0of1.json")), manifest.content(part)])
