"""Edits and what reruns: dry runs on a finished tiny run; two of them executed."""

import shutil
from pathlib import Path

import pandas as pd
import pytest

from tests.workflow.conftest import TARGETS, Checkout, Job
from tokenunify.stages.table import STAGES

pytestmark = pytest.mark.workflow

AGGLOMERATED = ["agglomerate", "prepare_relabel", "relabel", "evaluate", "metrics", "report"]
SEGMENTED = ["prepare_fragments", "fragments", "rag", "tune", *AGGLOMERATED]
PREDICTED = ["prepare_predict", "predict", *SEGMENTED]


@pytest.fixture
def checkout(finished: Checkout, tmp_path: Path) -> Checkout:
    return finished.copy(tmp_path / "tokenunify")


def rules(jobs: list[Job]) -> list[str]:
    return sorted(job.rule for job in jobs)


def of_model(jobs: list[Job]) -> None:
    """No job of the baseline, download or ingest, and a whole reason everywhere."""
    for job in jobs:
        assert "raw-watershed" not in job.wildcards, job
        assert job.rule not in ("download", "ingest", "baseline", "prepare_baseline"), job
        assert job.reason, job


def test_nothing_to_do(checkout: Checkout):
    assert checkout.planned() == []


def test_readme_touched(checkout: Checkout):
    (checkout.path / "README.md").write_text("Another text.\n")
    assert checkout.planned() == []


def test_waterz_threshold(checkout: Checkout):
    checkout.edit(lambda c: c["segmentations"]["waterz"].update(threshold=0.9))
    jobs = checkout.planned()
    assert rules(jobs) == sorted(AGGLOMERATED)
    of_model(jobs)
    assert all("segmentation=waterz" in j.wildcards for j in jobs if j.rule not in ("metrics", "report"))


def test_waterz_threshold_executed(checkout: Checkout):
    """What the dry run lists is what runs; the table changes, and then nothing is left to do."""
    table = checkout.path / TARGETS[0]
    before = pd.read_csv(table).set_index(["model", "segmentation"])
    checkout.edit(lambda c: c["segmentations"]["waterz"].update(threshold=0.9))
    expected = rules(checkout.planned())
    output = checkout.snakemake(*TARGETS).stderr
    assert (
        rules([Job(line.split()[-1].rstrip(":"), "", "") for line in output.splitlines() if _starts(line)]) == expected
    )
    after = pd.read_csv(table).set_index(["model", "segmentation"])
    assert after.loc[("small", "waterz"), "threshold"] == 0.9
    unchanged = [("small", "multicut"), ("raw-watershed", "raw-watershed-tiny")]
    pd.testing.assert_frame_equal(before.loc[unchanged], after.loc[unchanged])
    assert checkout.planned() == []


def test_a_model_started_from_published_weights(checkout: Checkout):
    """From the file of a model of this configuration; what is trained is finetune's business alone."""
    file = checkout.path / "net.safetensors"
    shutil.copy(checkout.path / "models/small/seed0/weights.safetensors", file)
    new = {"network": {"name": "superhuman", "filters": [2, 3]}, "dataset": "tiny", "weights": {"path": str(file)}}
    checkout.edit(lambda c: c["models"].update(started={**new, "train": "decoder"}))
    target = "models/started/seed0/weights.json"
    assert rules(checkout.planned(target)) == ["download_weights", "finetune"]
    checkout.snakemake(target)
    transfer = pd.read_csv(checkout.path / "models/started/seed0/transfer.csv")
    assert set(transfer.status) == {"loaded"}
    assert checkout.planned(target) == []
    checkout.edit(lambda c: c["models"]["started"].update(train="encoder"))
    assert rules(checkout.planned(target)) == ["finetune"]


def _starts(line: str) -> bool:
    return line.startswith(("rule ", "localrule ")) and line.endswith(":")


def test_waterz_candidates(checkout: Checkout):
    checkout.edit(lambda c: c["segmentations"]["waterz"].update(threshold={"tune": [0.2, 0.5, 0.7]}))
    jobs = checkout.planned()
    assert rules(jobs) == sorted(["tune", *AGGLOMERATED])
    of_model(jobs)
    assert all("segmentation=waterz" in j.wildcards for j in jobs if j.rule not in ("metrics", "report"))


def test_multicut_beta(checkout: Checkout):
    checkout.edit(lambda c: c["segmentations"]["multicut"].update(beta=0.6))
    jobs = checkout.planned()
    assert rules(jobs) == sorted(AGGLOMERATED)
    of_model(jobs)
    assert all("segmentation=multicut" in j.wildcards for j in jobs if j.rule not in ("metrics", "report"))


def test_predict_stride(checkout: Checkout):
    checkout.edit(lambda c: c["predict"].update(stride=[3, 12, 12]))
    jobs = checkout.planned()
    assert set(rules(jobs)) == set(PREDICTED)
    of_model(jobs)


def test_learning_rate(checkout: Checkout):
    checkout.edit(lambda c: c["finetune"].update(learning_rate=0.02))
    jobs = checkout.planned()
    assert set(rules(jobs)) == {"finetune", *PREDICTED}
    of_model(jobs)


def test_pretraining(checkout: Checkout):
    checkout.edit(lambda c: c["pretrainings"]["tiny"].update(mask_ratio=0.5))
    jobs = checkout.planned()
    assert set(rules(jobs)) == {"pretrain", "finetune", *PREDICTED}
    of_model(jobs)


def test_stage_version(checkout: Checkout):
    table = checkout.path / "tokenunify/stages/table.py"
    older = f'"fragments": Stage(\n        version={STAGES["fragments"].version},'
    assert older in table.read_text()
    table.write_text(table.read_text().replace(older, '"fragments": Stage(\n        version=0,'))
    jobs = checkout.planned()
    assert set(rules(jobs)) == set(SEGMENTED)
    assert {j.wildcards.split(",")[1].strip() for j in jobs if j.rule == "fragments"} == {
        "model=small",
        "model=raw-watershed",
    }


def test_new_volume_executed(checkout: Checkout):
    """A volume added to the configuration runs its own rules alone, and nothing of the others."""

    def add(config: dict) -> None:
        config["volumes"]["extra"] = {
            "sources": [{"phantom": {"seed": 4, "shape": [9, 40, 56]}}],
            "voxel_size_nm": [35, 8, 8],
        }
        config["datasets"]["tiny"]["test"].append("extra")

    checkout.edit(add)
    targets = ("results/tiny/metrics.csv", "results/extra/metrics.csv")
    jobs = checkout.planned(*targets)
    assert {"download", "ingest", "predict", "metrics"} <= set(rules(jobs))
    assert all("volume=extra" in job.wildcards for job in jobs)
    before = (checkout.path / targets[0]).read_bytes()
    checkout.snakemake(*targets)
    assert len(pd.read_csv(checkout.path / targets[1])) == 3
    assert (checkout.path / targets[0]).read_bytes() == before
    assert checkout.planned(*targets) == []


def test_parts_do_not_change_results(checkout: Checkout):
    """More jobs per volume find every block finished and change no store."""
    stores = sorted(p for p in checkout.path.glob("results/**/*.zarr"))
    checkout.edit(lambda c: c["resources"].update(predict={"parts": 3, "threads": 1}, relabel={"parts": 2}))
    checkout.snakemake(TARGETS[0])
    assert sorted(p for p in checkout.path.glob("results/**/*.zarr")) == stores
    logs = [*checkout.path.glob("logs/predict/*of3.log"), *checkout.path.glob("logs/relabel/*of2.log")]
    assert logs
    for log in logs:
        assert _todo(log.read_text()) == 0, log


def _todo(log: str) -> int:
    words = next(line for line in log.splitlines() if "already finished" in line).split("blocks, ")
    return int(words[0].split()[-1]) - int(words[1].split()[0])


def test_deleted_results_come_back(checkout: Checkout):
    """A folder that an error message told the user to delete is made again with the same bytes."""
    folder = checkout.path / "results/tiny/small/seed0/multicut/relabel"
    before = {p.relative_to(folder): p.read_bytes() for p in folder.rglob("c/*/*/*")}
    shutil.rmtree(folder)
    checkout.snakemake("results/tiny/small/seed0/multicut/relabel/part0of1.json")
    assert before
    assert {p.relative_to(folder): p.read_bytes() for p in folder.rglob("c/*/*/*")} == before
