"""The parts of Snakemake that the rules rely on and its documentation does not promise."""

import inspect

import pytest
from snakemake import api, jobs
from snakemake.scheduling import job_scheduler

from tests.workflow.conftest import Checkout

pytestmark = pytest.mark.workflow

PRINTS_ITS_GPUS = 'onstart: print("gpus:", workflow.global_resources["gpu"].value)\n'


def test_a_job_has_the_property_that_is_replaced():
    """workflow/rules/common.smk replaces it by one that knows bad input."""
    assert isinstance(inspect.getattr_static(jobs.Job, "restart_times"), property)
    assert inspect.getsource(job_scheduler.JobScheduler._handle_error).count(".restart_times") == 1


def test_a_resource_can_be_registered():
    assert list(inspect.signature(api.Workflow.register_resource).parameters) == ["self", "name", "value"]


@pytest.mark.parametrize(("words", "expected"), [((), 0), (("--resources", "gpu=3"), 3)], ids=["counted", "given"])
def test_jobs_share_the_visible_gpus(clone: Checkout, tmp_path, words, expected, monkeypatch):
    """CUDA_VISIBLE_DEVICES is empty: none is counted, whatever the machine has."""
    checkout = clone.copy(tmp_path / "tokenunify")
    with open(checkout.path / "Snakefile", "a") as file:
        file.write(f"\n\n{PRINTS_ITS_GPUS}")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    done = checkout.snakemake("data/downloads/tiny.json", *words)
    assert f"gpus: {expected}\n" in done.stdout + done.stderr
