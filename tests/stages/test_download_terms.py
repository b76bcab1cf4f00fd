"""Terms that ask to be accepted: before anything is downloaded, and without making anything stale."""

import json

import numpy as np
import pytest

from tests.stages.server import Server, running
from tokenunify import config
from tokenunify.data.download import download
from tokenunify.data.ingest import ingest
from tokenunify.errors import InputError
from tokenunify.evaluation import report
from tokenunify.plan.plan import Plan
from tokenunify.stages import sections
from tokenunify.store import manifest

TERMS = {"name": "wafer-nc", "text": "For research only. Not to be passed on.", "url": "https://example.org/terms"}


@pytest.fixture
def server():
    with running(Server()) as started:
        started.files["/raw.npy"] = b"\x93NUMPY"
        yield started


def plan(source: dict, *, accept=(), **terms) -> Plan:
    volumes = {"v": {"sources": [{"raw": source}], "voxel_size_nm": [35, 8, 8], "citation": "Em et al."}}
    volumes["v"]["terms"] = {**TERMS, **terms}
    return Plan(config.from_dict({"volumes": volumes, "accept_licenses": accept, **NOTHING}))


NOTHING: dict = {"datasets": {}, "models": {}, "segmentations": {}}


def run(planned: Plan, folder) -> dict:
    permit = sections.permit(planned.download_permit)
    section, plain = sections.from_json("download", planned.download("v"))
    download.run(section, plain, downloads=folder / "downloads", output=folder / "v.json", permit=permit)
    return manifest.read(folder / "v.json")


def test_nothing_is_downloaded_before_the_terms_are_accepted(server, tmp_path):
    source = {"url": f"{server.url}/raw.npy", "format": "npy"}
    with pytest.raises(InputError) as caught:
        run(plan(source, accept=["another"]), tmp_path)
    for words in (TERMS["text"], TERMS["url"], "accept_licenses: [another, wafer-nc]"):
        assert words in str(caught.value)
    assert server.requests == []
    assert not (tmp_path / "downloads").exists()
    run(plan(source, accept=["wafer-nc"]), tmp_path)


@pytest.mark.parametrize(
    "source",
    [
        {"huggingface": {"repo": "em/v", "file": "raw.npy"}, "format": "npy"},
        {"drive": {"folder": "f" * 28, "file": "raw.npy"}, "format": "npy"},
        {"url": "https://nowhere.invalid/{index}.png", "indices": [0, 2], "format": "images"},
        {"url": "s3://nowhere/v", "format": "precomputed"},
        {"url": "https://nowhere.invalid/a.zip", "member": "raw.npy", "format": "npy"},
    ],
)
def test_every_remote_source_asks(source, tmp_path):
    with pytest.raises(InputError, match="accept_licenses"):
        run(plan(source), tmp_path)


def test_terms_that_do_not_ask_and_files_that_are_here(server, tmp_path):
    run(plan({"url": f"{server.url}/raw.npy", "format": "npy"}, ask=False), tmp_path)
    (tmp_path / "raw.npy").write_bytes(b"x")
    run(plan({"path": str(tmp_path / "raw.npy"), "format": "npy"}), tmp_path)


def test_accepting_makes_nothing_stale():
    source = {"path": "raw.npy", "format": "npy"}
    one, other = plan(source), plan(source, accept=["wafer-nc"])
    assert (one.download("v"), one.ingest("v")) == (other.download("v"), other.ingest("v"))
    assert one.download_permit != other.download_permit


def test_the_terms_go_along(tmp_path):
    raw = np.random.default_rng(0).integers(0, 256, (8, 20, 30), np.uint8)
    np.save(tmp_path / "raw.npy", raw)
    planned = plan({"path": str(tmp_path / "raw.npy"), "format": "npy"})
    run(planned, tmp_path)
    output = tmp_path / "data" / "volumes" / "v.json"
    section, plain = sections.from_json("ingest", planned.ingest("v"))
    ingest.run(section, plain, source=tmp_path / "v.json", output=output, threads=1)
    attributes = json.loads((output.with_suffix(".zarr") / "zarr.json").read_text())["attributes"]["tokenunify"]
    assert (attributes["terms"], attributes["citation"]) == ({**TERMS, "ask": True}, "Em et al.")
    told = sections.Rights(volumes=("v",), terms={**TERMS, "ask": True}, citation="Em et al.")
    (shown,) = report.volumes([report.locate(output)], [told])
    assert (shown["terms"].text, shown["citation"]) == (TERMS["text"], "Em et al.")


@pytest.mark.parametrize("text", ["{", "yes", "[" * 20_000, '{"max_mb_per_second": ' + "9" * 5000 + "}"])
def test_a_permit_that_is_no_json_is_explained(text: str):
    with pytest.raises(InputError, match="--permit must be JSON"):
        sections.permit(text)
