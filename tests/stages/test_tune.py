"""Stage tune: every candidate scored without relabelling, the best one chosen."""

from pathlib import Path

import numpy as np
import pytest

from tokenunify import cli, tune
from tokenunify.errors import InputError
from tokenunify.evaluation import metrics
from tokenunify.segmentation import lut, multicut, rag, waterz
from tokenunify.store import arrays, manifest

CANDIDATES = (0.05, 0.3, 0.9)


@pytest.fixture
def volumes(workspace, labels, make_labels, tmp_path):
    """Two volumes, each with affinities, fragments and graph: (rag, fragments, volume)."""
    made = []
    for name, truth in {"one": labels, "two": make_labels((6, 40, 60), count=7, seed=2)}.items():
        workspace.folder = tmp_path / name
        workspace.whole((4, 40, 60))
        volume = workspace.volume(name, truth)
        noise = np.random.default_rng(4).integers(-60, 61, (3, *truth.shape))
        perfect = workspace.perfect(volume, truth)
        store = arrays.zarr.open_array(str(arrays.prepared_store(perfect)), mode="r+")
        store[:] = np.clip(store[:] * 0.7 + 40 + noise, 0, 255).astype(np.uint8)
        fragments = workspace.fragments(perfect)
        made.append((workspace.rag(perfect, fragments), fragments, volume))
    workspace.folder = tmp_path
    return made


def run_tune(workspace, volumes, segmentation, **settings) -> Path:
    fixed = {"erode_labels": False, "ignore_label": 0}
    section = workspace.section("tune", **{"segmentation": segmentation, **fixed, **settings})
    rags, fragments, truths = zip(*volumes, strict=True) if volumes else ((), (), ())
    words = ["--rags", *rags, "--fragments", *fragments, "--volumes", *truths]
    output = workspace.folder / "tune" / "segmentation.json"
    arguments = ["tune", "--config-json", section, *map(str, words), "--output", str(output)]
    cli.run(cli.parser().parse_args(arguments))
    return output


def side_by_side(volumes, tables) -> dict[str, float]:
    """Scores of the volumes relabelled and laid side by side, with different ids."""
    segments, truths = [], []
    for number, ((_, fragments, volume), table) in enumerate(zip(volumes, tables, strict=True)):
        segments.append(table.apply(arrays.open_prepared(fragments)[:]).ravel() + np.uint64(number * 10**9))
        truth = arrays.open_volume(volume).labels[:].ravel()
        truths.append(np.where(truth > 0, truth + np.uint64(number * 1000), 0))
    return metrics.scores(np.concatenate(segments)[None, None], np.concatenate(truths)[None, None])


def test_the_curve_is_that_of_relabelled_volumes_and_its_lowest_voi_is_chosen(workspace, volumes):
    content = manifest.content(run_tune(workspace, volumes, {"method": "waterz", "threshold": {"tune": CANDIDATES}}))
    graphs = [rag.load(paths[0]) for paths in volumes]
    for entry, value in zip(content["curve"], CANDIDATES, strict=True):
        expected = side_by_side(volumes, [waterz.agglomerate(graph, [value])[value] for graph in graphs])
        assert entry == pytest.approx({"value": value, **expected}, abs=1e-12)
    vois = [entry["voi"] for entry in content["curve"]]
    assert content["value"] == CANDIDATES[int(np.argmin(vois))]
    assert len(set(vois)) == 3
    assert content["volumes"] == ["one", "two"]


def test_labels_outside_the_mask_choose_nothing(workspace, labels):
    workspace.whole((4, 40, 60))
    mask = np.ones(labels.shape, np.uint8)
    mask[:3], mask[:, 22:, 9:] = 0, 0
    predicted = workspace.perfect(volume := workspace.volume("one", labels, mask=mask), labels)
    fragments = workspace.fragments(predicted)
    graph, curves = workspace.rag(predicted, fragments), []
    for seed in (1, 2):
        garbage = np.random.default_rng(seed).integers(0, 99, labels.shape).astype(np.uint64)
        stored = arrays.zarr.open_array(str(volume.with_suffix(".zarr") / "labels/0"), mode="r+")
        stored[:] = np.where(mask, labels, garbage)
        made = run_tune(
            workspace, [(graph, fragments, volume)], {"method": "waterz", "threshold": {"tune": CANDIDATES}}
        )
        curves.append(manifest.content(made)["curve"])
    assert curves[0] == curves[1]


def test_betas_are_tuned_too(workspace, volumes):
    content = manifest.content(run_tune(workspace, volumes[:1], {"method": "multicut", "beta": {"tune": (0.2, 0.8)}}))
    graph = rag.load(volumes[0][0])
    for entry in content["curve"]:
        expected = side_by_side(volumes[:1], [multicut.agglomerate(graph, entry["value"])])
        assert entry == pytest.approx({"value": entry["value"], **expected}, abs=1e-12)


def test_ties_go_to_the_first_candidate():
    table = metrics.contingency(np.array([[[4, 4, 9, 9]]]), np.array([[[1, 1, 2, 2]]]))
    alone = lut.Lut(np.array([4, 9], np.uint64), np.array([4, 9], np.uint64))
    scored = tune.curve((0.5, 0.3), [{0.5: alone, 0.3: alone}], [table])
    assert min(scored, key=lambda entry: entry["voi"])["value"] == 0.5


def test_lists_of_different_length_and_fixed_values_are_refused(workspace, volumes):
    with pytest.raises(InputError, match="as many --rags as --fragments and --volumes, at least one, got 0, 0 and 0"):
        run_tune(workspace, [], {"method": "waterz", "threshold": {"tune": CANDIDATES}})
    with pytest.raises(InputError, match=r"fixed at 0\.4; give \{tune: "):
        run_tune(workspace, volumes, {"method": "waterz", "threshold": 0.4})
