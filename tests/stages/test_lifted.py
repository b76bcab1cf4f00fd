"""Lifted edges from prepare to agglomerate, with affinities at twelve offsets that a network predicts."""

import numpy as np
import pytest
import torch
from bioimage_cpp.graph import UndirectedGraph
from bioimage_cpp.graph.lifted_multicut import LiftedMulticutObjective

from tokenunify import blockings, config, tune
from tokenunify.errors import InputError
from tokenunify.geometry import Roi
from tokenunify.learning import checkpoint, networks
from tokenunify.segmentation import lifted, lut, multicut, rag
from tokenunify.stages import sections
from tokenunify.store import arrays, manifest

FAR = [(-2, 0, 0), (-3, 0, 0), (0, -5, 0), (0, 0, -5), (0, -9, 0), (0, 0, -9), (0, -4, -4), (0, 4, -4), (-2, 6, 0)]
OFFSETS = (*config.NEAREST, *FAR)
CROP = {"crop": (4, 16, 20), "stride": (2, 8, 10), "padding": (1, 3, 4)}


@pytest.fixture
def weights(workspace):
    torch.manual_seed(3)
    description = config.Superhuman(filters=(3, 4)).model_dump(mode="json")
    network, path = networks.build(description, OFFSETS), workspace.folder / "models" / "weights.json"
    path.parent.mkdir()
    checkpoint.save_weights(path.with_name(checkpoint.WEIGHTS), network.state_dict())
    digest = manifest.file_sha256(path.with_name(checkpoint.WEIGHTS))
    manifest.write(path, {"weights": digest, "network": description, "finetune": {"offsets": OFFSETS}})
    return path


@pytest.fixture
def predicted(workspace, labels, weights):
    raw = np.random.default_rng(0).integers(0, 256, labels.shape, np.uint8)
    inputs = {"raw": workspace.volume("test", labels, raw), "weights": weights}
    section = workspace.section("predict", **CROP, flips=True, offsets=OFFSETS)
    prepared = workspace.prepare("predict", section, list(inputs.values()), "predict")
    options = ["--config-json", section, "--raw", inputs["raw"], "--weights", weights, "--prepared", prepared]
    options += ["--threads", 1, "--device", "cpu", "--part", "0/1", "--output", prepared.with_name("part0of1.json")]
    workspace.call("predict", *options)
    return prepared


def test_from_twelve_channels_to_the_table_in_any_blocks(workspace, predicted, tmp_path):
    affinities = arrays.open_prepared(predicted)[:]
    assert affinities.shape == (12, 10, 40, 60)
    workspace.block_shape = (10, 44, 60)
    fragments = workspace.fragments(predicted)
    labels = arrays.open_prepared(fragments)[:]
    near, linked, far = graphs_of(affinities, labels)
    assert 0 < len(far.edges) < len(linked.edges)
    for parts, block_shape in enumerate([(2, 22, 30), (4, 44, 30), (10, 22, 60)], start=1):
        workspace.block_shape, workspace.parts, workspace.folder = block_shape, parts, tmp_path / str(parts)
        made = workspace.rag(predicted, fragments, lifted=True)
        found = rag.merge(rag.lifted_parts(made))
        for name, table in vars(linked).items():
            np.testing.assert_array_equal(getattr(found, name), table, err_msg=name)
        output = workspace.agglomerate(made, method="multicut", lifted=True, beta=0.4)
        content, stored = manifest.content(output), lut.read(output)
        expected = multicut.agglomerate(near, 0.4, lifted=far)
        np.testing.assert_array_equal(stored.segments, expected.segments)
        assert content["energy"] == pytest.approx(own_energy(near, far, expected))


def graphs_of(affinities, labels):
    """The rag, that of long-range pairs, and the lifted edges, of arrays."""
    near = rag.from_arrays(affinities, labels, OFFSETS, histograms=False)
    linked = lifted.of_block(affinities, labels, Roi((0, 0, 0), labels.shape), OFFSETS)
    return near, linked, lifted.apart(linked, near)


def own_energy(near, far, table) -> float:
    """The energy as bioimage-cpp's objective counts it."""
    pairs, far_pairs, groups = (
        np.searchsorted(near.nodes, ids).astype(np.uint64) for ids in (near.edges, far.edges, table.segments)
    )
    graph = UndirectedGraph.from_unique_edges(near.nodes.size, pairs)
    options = {"lifted_uvs": far_pairs, "lifted_costs": multicut.costs(far, 0.4)}
    return LiftedMulticutObjective(graph, multicut.costs(near, 0.4), **options).energy(groups)


def test_blockings_have_them_too(workspace, predicted, tmp_path):
    source, shape, segmentation = arrays.open_prepared(predicted), (4, 22, 60), {"method": "multicut", "lifted": True}
    text = workspace.section("blockings", segmentation=segmentation, block_shapes=[shape])
    section, _ = sections.from_json("blockings", text)
    found = blockings.segment(source, None, section, 0.4, shape, tmp_path / "scratch", OFFSETS)
    near, _, far = graphs_of(source[:], found.fragments[:])
    np.testing.assert_array_equal(found.lut.segments, multicut.agglomerate(near, 0.4, lifted=far).segments)
    assert (found.lut.segments != multicut.agglomerate(near, 0.4).segments).any()


def test_a_rag_without_them_is_made_again(workspace, predicted):
    made = workspace.rag(predicted, workspace.fragments(predicted))
    with pytest.raises(InputError, match=r"lifted/merged/part0of1\.npz is missing; delete .* run snakemake again"):
        workspace.agglomerate(made, method="multicut", lifted=True)


def test_the_baseline_has_no_lifted_edges(workspace, labels):
    predicted = workspace.perfect(workspace.volume("test", labels), labels)
    made = workspace.rag(predicted, workspace.fragments(predicted), lifted=True)
    assert rag.merge(rag.lifted_parts(made)).edges.shape == (0, 2)


def test_beta_is_tuned_with_them(workspace, predicted):
    fragments = workspace.fragments(predicted)
    made = workspace.rag(predicted, fragments, lifted=True)
    segmentation = {"method": "multicut", "lifted": True, "beta": {"tune": (0.3, 0.5)}}
    section = workspace.section("tune", segmentation=segmentation, erode_labels=False, ignore_label=0)
    output, volume = workspace.folder / "tune.json", workspace.folder / "data/volumes/test.json"
    workspace.call(
        *["tune", "--config-json", section, "--output", output],
        *["--rags", made, "--fragments", fragments, "--volumes", volume],
    )
    near = rag.load(made)
    far = lifted.apart(rag.merge(rag.lifted_parts(made)), near)
    labels, pieces = arrays.open_volume(volume).labels[:], arrays.open_prepared(fragments)[:]
    for entry in manifest.content(output)["curve"]:
        segments = multicut.agglomerate(near, entry["value"], lifted=far).apply(pieces)
        assert entry["voi"] == pytest.approx(tune.metrics.scores(segments, labels)["voi"])
