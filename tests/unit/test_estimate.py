"""What `tokenunify plan` foresees, on costs that can be multiplied by hand."""

import json
import math
import re
from pathlib import Path

import h5py
import imageio.v3 as imageio
import numpy as np
import pytest
import zarr

from tokenunify import cli, config
from tokenunify.errors import InputError
from tokenunify.plan import estimate
from tokenunify.plan.estimate import Costs, Estimate, NetworkCost, StageCost
from tokenunify.plan.plan import Plan
from tokenunify.plan.workload import Workload

TEST, VALIDATION = 10 * 56 * 72, 9 * 40 * 72
BLOCK = 8 * 32 * 64
STAGES = ("download", "ingest", "pretrain", "finetune", "predict", "baseline", "fragments", "rag", "tune")
PLAIN = StageCost(start_seconds=2, seconds=100, bytes=3, memory_mb=50, memory_bytes=64)
COSTS = Costs(
    machine="paper",
    stages=dict.fromkeys((*STAGES, "agglomerate", "relabel", "evaluate"), PLAIN)
    | {"rag-2d": PLAIN.model_copy(update={"bytes": 7.0})},
    forward=NetworkCost(seconds_per_gflop=10, seconds_per_gb=0, memory=0.5),
    step=NetworkCost(seconds_per_gflop=0, seconds_per_gb=20, memory=2),
)


@pytest.fixture
def plan(root: Path) -> Plan:
    return Plan(config.load(root / "tests/config/tiny.yaml"))


def rows(plan: Plan, **throughput: float) -> dict:
    return Estimate(plan, COSTS, throughput).rows(Workload(plan, estimate.shapes(plan)).tasks("tiny"))


def test_block_wise_stages_count_blocks_voxels_and_bytes_of_both_volumes(plan: Plan):
    fragments = rows(plan)["fragments"]
    chains = 3  # waterz's and multicut's fragments, and the baseline's, of one model
    tuned = 2  # waterz and the baseline choose on the validation volume
    assert fragments.jobs == chains + tuned
    assert fragments.blocks == 8 * (chains + tuned)
    assert fragments.bytes == 3 * (chains * TEST + tuned * VALIDATION)
    assert fragments.seconds == pytest.approx(2 * fragments.jobs + 100e-6 * (chains * TEST + tuned * VALIDATION))
    assert fragments.longest == pytest.approx(2 + 100e-6 * TEST)
    assert fragments.memory_mb == pytest.approx(50 + 64 * BLOCK / 2**20)


def test_a_cost_may_depend_on_the_detail(plan: Plan):
    found = rows(plan)
    assert found["rag"].bytes / found["fragments"].bytes == pytest.approx(7 / 3)


def test_parts_are_jobs_that_share_the_work(plan: Plan):
    asked = {"relabel": config.Resources(parts=4)}
    one, four = rows(plan)["relabel"], rows(Plan(plan.config.model_copy(update={"resources": asked})))["relabel"]
    assert (four.jobs, four.blocks, four.bytes) == (4 * one.jobs, one.blocks, one.bytes)
    assert four.longest == pytest.approx(2 + 100e-6 * TEST / 4)


def test_networks_cost_operations_and_maps(plan: Plan):
    found = rows(plan)
    task = next(t for t in Workload(plan, estimate.shapes(plan)).tasks("tiny") if t.stage == "finetune")
    one = estimate.measured(task.crops)
    assert (task.crops.trained, task.crops.forward) == (6, 2)
    expected = 2 + 100e-6 * task.voxels + 6 * 20 * one.activation_bytes / 1e9 + 2 * 10 * one.flops / 1e9
    assert found["finetune"].seconds == pytest.approx(expected)
    assert found["finetune"].memory_mb == pytest.approx(50 + 2 * one.activation_bytes / 2**20)


def test_predicted_crops_are_those_of_the_tiling(plan: Plan):
    task = next(t for t in Workload(plan, estimate.shapes(plan)).tasks("tiny") if t.stage == "predict")
    z, y, x = [-1, 1, 3, 5, 7], [-4, 8, 20, 32, 36], [-4, 8, 20, 32, 44, 52]  # by half a crop, the last moved inwards
    assert task.crops.forward == len(z) * len(y) * len(x)


def test_every_stored_channel_takes_its_bytes(plan: Plan):
    lifted = plan.config.model_dump(mode="json", exclude_unset=True)
    lifted["finetune"]["offsets"] = [[-1, 0, 0], [0, -1, 0], [0, 0, -1], [-2, 0, 0], [0, -9, 0], [0, 0, -9]]
    lifted["segmentations"]["multicut"]["lifted"] = True
    more, usual = rows(Plan(config.from_dict(lifted))), rows(plan)
    assert more["predict"].bytes == 2 * usual["predict"].bytes
    assert more["baseline"].bytes == usual["baseline"].bytes


def test_a_given_throughput_stands_in(plan: Plan):
    assert rows(plan, relabel=1000.0)["relabel"].longest == pytest.approx(2 + TEST / 1000)


def test_advice_names_what_to_set(plan: Plan):
    slow = rows(plan, relabel=1.0, evaluate=1.0)
    lines = "\n".join(estimate.advice(plan, slow))
    assert f"resources.relabel.parts: {-(-(TEST + 2) // 7200)} " in lines
    assert "resources.evaluate.runtime: 672 " in lines
    assert "fragments" not in lines


def test_a_volume_grows_in_all_axes():
    assert estimate.scaled((125, 1250, 1250), 1000 * 125 * 1250**2) == (1250, 12500, 12500)


def test_the_command_prints_every_size(root: Path, tmp_path: Path, capsys):
    costs = tmp_path / "costs.json"
    costs.write_text(COSTS.model_dump_json())
    words = ["--configfile", str(root / "tests/config/tiny.yaml"), "--costs", str(costs), "--voxels", "1e12"]
    assert cli.main(["plan", "results/tiny/metrics.csv", *words]) == 0
    printed = capsys.readouterr().out
    assert "tiny, as configured: 10 x 56 x 72\n" in printed
    shape = re.search(r"tiny, 1e\+12 voxels: (\d+) x (\d+) x (\d+)\n", printed)
    assert math.prod(map(int, shape.groups())) == pytest.approx(1e12, rel=1e-3)
    assert "Measured on paper." in printed


@pytest.mark.parametrize(
    ("target", "words"),
    [("results/other/metrics.csv", "no model is evaluated"), ("metrics.csv", "must be results/VOLUME/metrics.csv")],
)
def test_bad_targets_are_explained(root: Path, tmp_path: Path, target: str, words: str, caplog):
    costs = tmp_path / "costs.json"
    costs.write_text(COSTS.model_dump_json())
    options = ["--configfile", str(root / "tests/config/tiny.yaml"), "--costs", str(costs)]
    assert cli.main(["plan", target, *options]) == 1
    assert words in caplog.text


@pytest.mark.parametrize("kind", ["npy", "hdf5", "zarr", "images"])
def test_the_shape_of_a_local_source_is_known_before_it_is_ingested(tmp_path, monkeypatch, kind):
    monkeypatch.setenv("EM", str(tmp_path))
    raw = np.zeros((3, 20, 31), np.uint8)
    place = {"path": f"${{EM}}/raw.{kind}", "format": kind, **({"dataset": "raw"} if kind == "hdf5" else {})}
    path = tmp_path / f"raw.{kind}"
    if kind == "npy":
        np.save(path, raw)
    elif kind == "hdf5":
        with h5py.File(path, "w") as file:
            file["raw"] = raw
    elif kind == "zarr":
        zarr.create_array(str(path), data=raw)
    else:
        path.mkdir()
        for z, section in enumerate(raw):
            imageio.imwrite(path / f"{z}.png", section)
    gone = {"path": "${NOT_SET}/raw.npy", "format": "npy"}
    volumes = {"v": {"sources": [{"raw": gone}, {"raw": place}], "voxel_size_nm": [40, 4, 4]}}
    assert estimate.shapes(Plan(config.from_dict({"volumes": volumes})))("v") == raw.shape
    volumes["v"]["sources"].pop()
    assert estimate.shapes(Plan(config.from_dict({"volumes": volumes})))("v") == (0, 0, 0)


def test_volumes_alone_are_a_configuration_and_a_report_of_nothing_is_refused():
    volumes = {"v": {"sources": [{"phantom": {"seed": 1, "shape": [5, 6, 7]}}], "voxel_size_nm": [40, 4, 4]}}
    plan = Plan(config.from_dict({"volumes": volumes}))
    assert json.loads(plan.ingest("v"))["voxel_size_nm"] == [40, 4, 4]
    with pytest.raises(InputError, match=r"results/report\.html: no model is tested .*ask for data/volumes/VOLUME"):
        plan.shown_volumes()
    with pytest.raises(InputError, match=r"results/v/metrics\.csv: no model is evaluated on volume 'v'"):
        plan.runs("v")
