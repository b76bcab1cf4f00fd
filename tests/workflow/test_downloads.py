"""What downloads may do reaches their jobs, and is no reason to run them again."""

from pathlib import Path

import pytest

from tests.stages.server import Server, running
from tests.workflow.conftest import Checkout

pytestmark = pytest.mark.workflow

TARGET = "data/downloads/asking.json"
TERMS = {"name": "asking-nc", "text": "For research {only}; \"it's\" $HOME's."}


def test_terms_are_asked_for_once_and_by_the_job_alone(clone: Checkout, tmp_path: Path):
    checkout = clone.copy(tmp_path / "tokenunify")
    with running(Server()) as server:
        server.files["/raw.npy"] = b"\x93NUMPY"
        source = {"raw": {"url": f"{server.url}/raw.npy", "format": "npy"}}
        volume = {"sources": [source], "voxel_size_nm": [35, 8, 8], "terms": TERMS}
        checkout.edit(lambda c: c["volumes"].update(asking=volume))
        assert [job.rule for job in checkout.planned(TARGET)] == ["download"]
        checkout.snakemake(TARGET, check=False)
        assert server.requests == []
        assert "accept_licenses: [asking-nc]" in checkout.logs()
        checkout.edit(lambda c: c.update(accept_licenses=["asking-nc"], download={"max_mb_per_second": 50}))
        checkout.snakemake(TARGET)
        assert len(server.requests) == 1
    checkout.edit(lambda c: (c.pop("accept_licenses"), c.pop("download")))
    assert checkout.planned(TARGET) == []
