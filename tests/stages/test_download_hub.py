"""Data sets of the Hugging Face Hub, from a server on this machine that answers as the Hub does."""

import hashlib
import json
from pathlib import Path
from urllib.parse import quote

import huggingface_hub
import numpy as np
import pytest

from tests.stages.server import Fault, Server, running
from tokenunify.data import local_files, retry
from tokenunify.data.download import download, http
from tokenunify.errors import InputError
from tokenunify.stages import sections
from tokenunify.store import manifest

DATA = np.random.default_rng(0).bytes(300_003)
SHA256 = hashlib.sha256(DATA).hexdigest()
OLD, NEW = "a" * 40, "b" * 40


class Hub(Server):
    """Repositories of one file per name and commit; `newest` is where main points."""

    def __init__(self):
        super().__init__()
        self.newest, self.token = OLD, None
        self.repositories: dict[tuple[str, str], dict[str, bytes]] = {}

    def read(self, path: str) -> bytes | None:
        path = path.partition("?")[0]
        if path.startswith("/api/"):
            return self._listed(path)
        place, _, rest = path.partition("/resolve/")
        name = rest.partition("/")[2]
        return self.repositories.get((place, self.headers(path)["X-Repo-Commit"]), {}).get(name)

    def headers(self, path: str) -> dict[str, str]:
        revision = path.partition("/resolve/")[2].partition("/")[0]
        return {"X-Repo-Commit": self.newest if revision == "main" else revision}

    def _listed(self, path: str) -> bytes | None:
        place = path.removeprefix("/api").partition("/revision/")[0].partition("/tree/")[0]
        place = place if place.startswith("/datasets") else place.removeprefix("/models")
        commit = path.rpartition("/")[2] if "/revision/" in path or "/tree/" in path else self.newest
        files = self.repositories.get((place, commit))
        if files is None:
            return None
        if "/tree/" in path:
            return json.dumps(
                [{"type": "file", "path": n, "size": len(d), "oid": ""} for n, d in files.items()]
            ).encode()
        known = {"id": "em/wafer", "_id": "1", "sha": commit, "siblings": [{"rfilename": name} for name in files]}
        return json.dumps(known).encode()


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setattr(retry, "BACKOFF_SECONDS", 0.001)
    with running(Hub()) as started:
        constants = huggingface_hub.constants
        monkeypatch.setattr(constants, "ENDPOINT", started.url)
        template = f"{started.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        images = {f"s/{index}.png": bytes([index]) * 40 for index in (2, 10, 3)}
        started.repositories["/datasets/em/wafer", OLD] = {"w/raw.bin": DATA, **images}
        started.repositories["/datasets/em/wafer", NEW] = {"w/raw.bin": b"another", "s/2.png": b"another"}
        started.repositories["/em/wafer", OLD] = {"w/raw.bin": b"of the model"}
        yield started


@pytest.fixture
def run(tmp_path):
    """Run the stage on one source of raw; return the manifest."""

    def run_stage(file="w/raw.bin", format="npy", sha256=None, **keys) -> dict:
        raw = {"format": format, "sha256": sha256, "huggingface": {"repo": "em/wafer", "file": file, **keys}}
        section, plain = sections.from_json("download", json.dumps({"version": 1, "sources": [{"raw": raw}]}))
        download.run(section, plain, downloads=tmp_path / "downloads", output=tmp_path / "v.json")
        return manifest.read(tmp_path / "v.json")

    return run_stage


def asked(hub: Hub) -> set[str]:
    return {path.partition("/resolve/")[2].partition("/")[0] for path, *_ in hub.requests if "/resolve/" in path}


def test_the_newest_commit_is_recorded_and_holds(hub, run, tmp_path):
    made = run()
    path = Path(made["run"]["raw"])
    assert path.read_bytes() == DATA
    assert Path(f"{path}.revision").read_text() == f"{OLD}\n"
    hub.newest = NEW
    path.unlink()
    Path(f"{path}.sha256").unlink()
    hub.requests.clear()
    assert run()["content"] == made["content"]
    assert asked(hub) == {OLD}


def test_a_second_run_does_not_ask_the_hub(hub, run):
    made = run()
    hub.requests.clear()
    assert run()["content"] == made["content"]
    assert hub.requests == []


def test_a_revision_is_kept_to(hub, run):
    assert run(revision=NEW)["content"]["raw"]["sha256"] == hashlib.sha256(b"another").hexdigest()
    assert asked(hub) == {NEW}


def test_a_repository_of_models(hub, run):
    assert Path(run(repo_type="model")["run"]["raw"]).read_bytes() == b"of the model"


def test_a_glob_of_images_and_its_commit(hub, run):
    made = run("s/*.png", "images")
    assert [p.read_bytes()[0] for p in local_files.image_files(made["run"]["raw"])] == [2, 3, 10]
    hub.newest = NEW
    hub.requests.clear()
    assert run("s/*.png", "images")["content"] == made["content"]
    assert hub.requests == []
    with pytest.raises(InputError, match=r"em/wafer@newest:t/\*\.png matches none of the 2 files"):
        run("t/*.png", "images")


def test_brackets_in_the_name_of_a_file(hub, run):
    files = {"w/cell [2].bin": DATA, "w/2[a].png": b"1", "w/2a.png": b"2"}
    quoted = {quote(name): data for name, data in files.items()}  # as they are asked for
    hub.repositories["/datasets/em/wafer", OLD] = {**files, **quoted}
    assert Path(run("w/cell [2].bin")["run"]["raw"]).read_bytes() == DATA
    images = local_files.image_files(run("w/2[a].png", "images")["run"]["raw"])
    assert [path.read_bytes() for path in images] == [b"1"]


@pytest.mark.parametrize("pattern", ["s/*.png", "s/**/*.png", "**/*.png"])
def test_images_in_several_folders_are_in_the_order_of_their_paths(hub, run, pattern):
    files = {"s/z10/i.png": b"4", "s/z9/i.png": b"3", "s/a/2.png": b"1", "s/a/10.png": b"2", "s/7.png": b"5"}
    hub.repositories["/datasets/em/wafer", OLD] = files
    made = run(pattern, "images")
    assert [path.read_bytes() for path in local_files.image_files(made["run"]["raw"])] == [b"1", b"2", b"3", b"4", b"5"]
    assert run(pattern, "images")["content"] == made["content"]


def test_a_path_out_of_the_folder_is_refused(hub, run):
    hub.repositories["/datasets/em/wafer", OLD] = {"s/1.png": b"1", "s/../../../2.png": b"2"}
    with pytest.raises(InputError, match=r"2\.png', which lies outside the folder"):
        run("s/*.png", "images")


def test_interrupted_20_times_at_random_bytes(hub, run, monkeypatch):
    monkeypatch.setattr(retry, "ATTEMPTS", 1)
    random = np.random.default_rng(1)
    hub.choose_fault = lambda path: Fault(cut=int(random.integers(0, 30_000))) if "/resolve/" + OLD in path else None
    for _ in range(20):
        with pytest.raises(InputError, match="what has arrived is kept"):
            run(sha256=SHA256)
    hub.choose_fault = lambda _: None
    assert run(sha256=SHA256)["content"]["raw"]["sha256"] == SHA256
    assert hub.bytes_sent < len(DATA) + 20 * http.CHUNK_BYTES


@pytest.mark.parametrize("status", [429, 500, 503])
def test_passing_faults(hub, run, status):
    hub.choose_fault = once_per_path(Fault(status, {"Retry-After": "0"}))
    assert run(revision=OLD)["content"]["raw"]["sha256"] == SHA256


def once_per_path(fault: Fault):
    seen: set[str] = set()

    def choose(path: str) -> Fault | None:
        return None if path in seen else (seen.add(path), fault)[1]

    return choose


@pytest.mark.parametrize("status", [401, 403, 404])
def test_lasting_faults_are_explained(hub, run, status):
    hub.choose_fault = lambda _: Fault(status)
    for revision in (OLD, None):
        with pytest.raises(InputError, match=rf"(?s)em/wafer@\w+:w/raw\.bin cannot be fetched .*{status}.*HF_TOKEN"):
            run(revision=revision)


def test_a_tampered_file_is_not_used(hub, run, tmp_path):
    hub.repositories["/datasets/em/wafer", OLD]["w/raw.bin"] = DATA[::-1]
    with pytest.raises(InputError, match=f"expected sha256 {SHA256}"):
        run(sha256=SHA256)
    assert not (tmp_path / "v.json").exists()


def test_a_login_page_in_place_of_the_file(hub, run):
    hub.choose_fault = lambda path: Fault(body=b"<!doctype html>") if OLD in path else None
    with pytest.raises(InputError, match="gave a web page"):
        run()
