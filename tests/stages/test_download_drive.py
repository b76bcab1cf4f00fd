"""A shared folder of Google Drive. gdown's addresses are fixed: its session is led to a server on this machine."""

import hashlib
import json
from pathlib import Path
from urllib.parse import parse_qs, urlparse

import gdown
import numpy as np
import pytest
import requests
from requests.adapters import HTTPAdapter

from tests.stages.server import Fault, Server, running
from tokenunify.data import retry
from tokenunify.data.download import download
from tokenunify.errors import InputError
from tokenunify.stages import sections
from tokenunify.store import manifest

DATA = np.random.default_rng(0).bytes(300_003)
SHA256 = hashlib.sha256(DATA).hexdigest()
FOLDER, INNER, RAW, OTHER = ("f" * 28, "i" * 28, "r" * 28, "o" * 28)
LINK = '<a href="https://drive.google.com/{kind}/{number}{view}"><div>{name}</div></a>'


def page(title: str, *links: str) -> bytes:
    return f"<html><head><title>{title}</title></head><body>{''.join(links)}</body></html>".encode()


def link(name: str, number: str, folder: bool = False) -> str:
    kind, view = ("drive/folders", "") if folder else ("file/d", "/view?usp=drive_web")
    return LINK.format(kind=kind, number=number, view=view, name=name)


class Drive(Server):
    """A folder with a file and an inner folder; large files come after a page that asks for a confirmation."""

    def __init__(self):
        super().__init__()
        self.folders = {
            FOLDER: page("EM", link("other.txt", OTHER), link("wafers", INNER, folder=True)),
            INNER: page("wafers", link("raw.bin", RAW)),
        }
        self.contents = {RAW: DATA, OTHER: b"other"}

    def read(self, path: str) -> bytes | None:
        query = query_of(path)
        if path.startswith("/embeddedfolderview"):
            return self.folders.get(query["id"])
        data = self.contents.get(query["id"])
        if data is None or "confirm" not in query:
            return page("Virus scan warning", confirmation(query["id"])) if data else None
        return data

    def headers(self, path: str) -> dict[str, str]:
        if "confirm" not in query_of(path):
            return {"Content-Type": "text/html; charset=utf-8"}
        attached = "attachment; filename=\"raw.bin\"; filename*=UTF-8''raw.bin"
        return {"Content-Type": "application/octet-stream", "Content-Disposition": attached}


def query_of(path: str) -> dict[str, str]:
    return {key: values[0] for key, values in parse_qs(urlparse(path).query).items()}


def confirmation(number: str) -> str:
    fields = {"id": number, "export": "download", "confirm": "t", "uuid": "1"}
    inputs = "".join(f'<input type="hidden" name="{name}" value="{value}">' for name, value in fields.items())
    form = '<form id="download-form" action="https://drive.usercontent.google.com/download" method="get">'
    return f"{form}{inputs}</form>"


class Detour(HTTPAdapter):
    """Sends what is meant for Google to the server."""

    def __init__(self, url: str):
        super().__init__()
        self.url = url

    def send(self, request, **options):
        parts = urlparse(request.url)
        request.url = f"{self.url}{parts.path}?{parts.query}"
        return super().send(request, **options)


@pytest.fixture
def server(monkeypatch):
    with running(Drive()) as started:
        make = requests.Session

        def session() -> requests.Session:
            made = make()
            made.mount("https://", Detour(started.url))
            return made

        monkeypatch.setattr(requests, "session", session)
        monkeypatch.setattr(gdown.download.__globals__["_wait_or_cancel"].__globals__["time"], "sleep", lambda _: None)
        yield started


@pytest.fixture
def run(tmp_path):
    """Run the stage on one source of raw; return the manifest."""

    def run_stage(file="wafers/raw.bin", sha256=None) -> dict:
        raw = {"format": "npy", "sha256": sha256, "drive": {"folder": FOLDER, "file": file}}
        section, plain = sections.from_json("download", json.dumps({"version": 1, "sources": [{"raw": raw}]}))
        download.run(section, plain, downloads=tmp_path / "downloads", output=tmp_path / "v.json")
        return manifest.read(tmp_path / "v.json")

    return run_stage


def test_one_file_of_the_folder(server, run, tmp_path):
    made = run(sha256=SHA256)
    assert Path(made["run"]["raw"]).read_bytes() == DATA
    assert not [path for path, *_ in server.requests if OTHER in path]
    kept = {path.name.partition("-")[2] for path in (tmp_path / "downloads").glob("[!.]*")}
    assert kept == {"raw.bin", "raw.bin.sha256"}


def test_a_second_run_does_not_ask(server, run):
    made = run()
    server.requests.clear()
    assert run()["content"] == made["content"]
    assert server.requests == []


def test_a_file_that_is_not_in_the_folder(server, run):
    with pytest.raises(InputError, match=r"drive f+:gone is not in the folder, which has .*'wafers/raw\.bin'"):
        run("gone")


def test_a_folder_that_is_not_shared(server, run):
    server.folders.clear()
    with pytest.raises(InputError, match=r"drive f+:wafers/raw\.bin cannot be fetched .*404.*shared with anyone"):
        run()


def test_interrupted_20_times_at_random_bytes(server, run, monkeypatch):
    monkeypatch.setattr(retry, "ATTEMPTS", 1)
    random = np.random.default_rng(1)
    server.choose_fault = lambda path: Fault(cut=int(random.integers(0, 30_000))) if "confirm=" in path else None
    for _ in range(20):
        with pytest.raises(InputError, match=r"(?s)cannot be fetched .*what has arrived is kept"):
            run(sha256=SHA256)
    server.choose_fault = lambda _: None
    assert run(sha256=SHA256)["content"]["raw"]["sha256"] == SHA256


@pytest.mark.parametrize("known", [True, False])
def test_a_later_run_continues_only_what_is_verified(server, run, monkeypatch, known):
    """To continue, gdown gives the server the mark of the version of now, not of the one that the part is of."""
    new = np.random.default_rng(1).bytes(1_500_000)
    sha256 = hashlib.sha256(new).hexdigest()
    server.contents[RAW] = new if known else bytes(len(new))
    with monkeypatch.context() as once, pytest.raises(InputError, match="what has arrived is kept"):
        once.setattr(retry, "ATTEMPTS", 1)
        server.choose_fault = lambda path: Fault(cut=700_000) if "confirm=" in path else None
        run(sha256=sha256 if known else None)
    server.contents[RAW], server.choose_fault = new, lambda _: None
    server.requests.clear()
    assert run(sha256=sha256 if known else None)["content"]["raw"]["sha256"] == sha256
    assert (206 in [status for *_, status in server.requests]) == known


def test_a_tampered_file_is_not_used(server, run, tmp_path):
    server.contents[RAW] = DATA[::-1]
    with pytest.raises(InputError, match=f"expected sha256 {SHA256}"):
        run(sha256=SHA256)
    assert not (tmp_path / "v.json").exists()


@pytest.mark.parametrize("status", [403, 429, 500])
def test_what_drive_refuses_is_explained(server, run, status):
    server.choose_fault = lambda path: Fault(status) if "confirm=" in path else None
    with pytest.raises(InputError, match=r"cannot be fetched .*download the file by hand"):
        run()
