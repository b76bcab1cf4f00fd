"""A volume without labels is segmented by a data set's models: its table, and the same voxels as with labels."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import zarr
from ome_zarr.io import parse_url
from ome_zarr.reader import Reader

from tests.workflow.conftest import Checkout
from tokenunify.store import arrays

pytestmark = pytest.mark.workflow

TABLE = "results/unlabelled/segmentations.csv"
SEGMENTATIONS = ["waterz", "multicut"]


def add_unlabelled(checkout: Checkout, **application) -> None:
    """The raw of the test volume, from a file, as a volume that the models are applied to."""
    np.save(checkout.path / "raw.npy", arrays.open_volume(checkout.path / "data/volumes/tiny.json").raw[:])

    def change(config):
        source = {"raw": {"path": "raw.npy", "format": "npy"}}
        config["volumes"]["unlabelled"] = {"sources": [source], "voxel_size_nm": [35, 8, 8]}
        config["datasets"]["tiny"]["apply"] = [{"volume": "unlabelled", **application}]

    checkout.edit(change)


@pytest.fixture(scope="module")
def applied(finished: Checkout, tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    checkout = finished.copy(tmp_path_factory.mktemp("applied") / "tokenunify")
    add_unlabelled(checkout)
    checkout.snakemake(TABLE, "results/tiny/segmentations.csv", "results/report.html")
    return checkout


def image(checkout: Checkout, row: pd.Series) -> np.ndarray:
    return zarr.open_group(str(checkout.path / row.path), mode="r")["0"][:]


def test_the_table_says_what_the_images_hold(applied: Checkout):
    rows = pd.read_csv(applied.path / TABLE)
    assert list(rows.segmentation) == SEGMENTATIONS
    assert set(rows.model) == {"small"}
    for _, row in rows.iterrows():
        segments = image(applied, row)
        ids, sizes = np.unique(segments, return_counts=True)
        sizes = sizes[ids > 0]
        assert (row.num_segments, row.voxels) == (sizes.size, segments.size)
        assert (row.median_segment, row.largest_segment) == (int(np.median(sizes)), sizes.max())
        choice = json.loads((applied.path / row.path).parents[2].joinpath("agglomerate.json").read_text())["content"]
        assert (row.threshold, row.threshold_source) == (choice["value"], choice["source"])
        assert row.seconds > 0


def test_the_segmentation_is_that_of_the_volume_with_labels(applied: Checkout):
    unlabelled = pd.read_csv(applied.path / TABLE).set_index("segmentation")
    labelled = pd.read_csv(applied.path / "results/tiny/segmentations.csv").set_index("segmentation")
    assert list(labelled.index) == [*SEGMENTATIONS, "raw-watershed-tiny"]
    for name in SEGMENTATIONS:
        np.testing.assert_array_equal(image(applied, unlabelled.loc[name]), image(applied, labelled.loc[name]))
        same = ["threshold", "num_segments", "voxels", "median_segment", "largest_segment"]
        assert list(unlabelled.loc[name, same]) == list(labelled.loc[name, same])


def test_ome_zarr_opens_the_image(applied: Checkout):
    row = pd.read_csv(applied.path / TABLE).iloc[0]
    (node, *_) = Reader(parse_url(applied.path / row.path))()
    np.testing.assert_array_equal(np.asarray(node.data[0]), image(applied, row))


def test_the_report_shows_it(applied: Checkout):
    page = (applied.path / "results/report.html").read_text()
    row = pd.read_csv(applied.path / TABLE).iloc[0]
    assert "<h2>unlabelled: segmentations</h2>" in page
    assert row.path in page
    assert page.split("unlabelled: segmentations")[1].count("data:image/png") >= 3  # raw, affinities, segmentations


def test_nothing_is_left_to_do_and_one_segmentation_is_made_anew(applied: Checkout, tmp_path: Path):
    checkout = applied.copy(tmp_path / "tokenunify")
    assert checkout.planned(TABLE) == []
    checkout.edit(lambda config: config["segmentations"]["multicut"].update(beta=0.4))
    assert {job.rule for job in checkout.planned(TABLE)} == {
        *("agglomerate", "prepare_relabel", "relabel", "segmentations"),
    }


def test_its_scores_are_refused_and_its_costs_are_planned(applied: Checkout):
    done = applied.snakemake("results/unlabelled/metrics.csv", "--dry-run", check=False)
    assert "no model is evaluated on volume 'unlabelled'" in done.stdout + done.stderr
    done = applied.snakemake("results/tiny-train/segmentations.csv", "--dry-run", check=False)
    assert "no model segments volume 'tiny-train'; volumes with a table: tiny, tiny-validation, unlabelled" in (
        done.stdout + done.stderr
    )
    command = [sys.executable, "-m", "tokenunify", "plan", TABLE, "--configfile", "tests/config/tiny.yaml"]
    costs = ["--costs", str(Path(__file__).parents[2] / "benchmarks/costs.json"), "--voxels"]
    plan = subprocess.run([*command, *costs], cwd=applied.path, capture_output=True, text=True)
    assert plan.returncode == 0, plan.stderr
    stages = [line.split()[0] for line in plan.stdout.splitlines()[2:] if line]
    assert {"predict", "relabel"} <= set(stages)
    assert "evaluate" not in stages
