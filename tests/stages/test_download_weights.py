"""Published weights: from a file, a URL, and a server on this machine that answers as the Hugging Face Hub does."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest

from tokenunify.data import retry
from tokenunify.data.download import download
from tokenunify.errors import InputError
from tokenunify.stages import sections
from tokenunify.store import manifest

DATA = np.random.default_rng(0).bytes(200_003)
SHA256 = hashlib.sha256(DATA).hexdigest()
COMMIT = "c" * 40
PLACE = "/em/tokenunify/resolve/main/nets/small.pt"


class Hub(ThreadingHTTPServer):
    """Serves `files`; the answers of `faults` come first, one per request. It may demand a token, or always cut."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files = {PLACE: DATA}
        self.faults: list[int] = []
        self.token: str | None = None
        self.cut = False
        self.requests: list[tuple[str, str]] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self):
        self._answer()

    def do_GET(self):
        if (data := self._answer()) is not None:
            self.wfile.write(data[: len(data) // 2] if self.server.cut else data)

    def _answer(self) -> bytes | None:
        server = self.server
        server.requests.append((self.command, self.path))
        data = server.files.get(self.path)
        if server.faults:
            return self._head(server.faults.pop(0))
        if server.token and self.headers["Authorization"] != f"Bearer {server.token}":
            return self._head(401, **{"X-Error-Code": "RepoNotFound"})
        if data is None:
            return self._head(404, **{"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        start = int((self.headers["Range"] or "bytes=0-")[6:].split("-")[0])
        body, tag = data[start:], hashlib.sha256(data).hexdigest()
        headers = {"ETag": f'"{tag}"', "X-Repo-Commit": COMMIT, "Content-Length": len(body)}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        self._head(206 if start else 200, **headers)
        return body

    def _head(self, status, **headers) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": 0} | headers).items():
            self.send_header(name, str(value))
        self.end_headers()

    def log_message(self, *_args):
        pass


def use_endpoint(monkeypatch, url):
    """As HF_ENDPOINT does, which the client reads when it is imported."""
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", url)
    template = f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(retry, "BACKOFF_SECONDS", 0.001)


@pytest.fixture
def hub(monkeypatch):
    with Hub() as running:
        use_endpoint(monkeypatch, running.url)
        thread = threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def section(**source) -> str:
    return json.dumps({"version": 1, "sources": [source]})


def on_hub(**keys) -> dict:
    return {"huggingface": {"repo": "em/tokenunify", "file": "nets/small.pt", **keys}}


@pytest.fixture
def run(tmp_path):
    """Run the stage on one source; return the manifest."""

    def run_stage(**source) -> dict:
        parsed, plain = sections.from_json("download", section(**source))
        output = tmp_path / "data" / "weights" / "m.json"
        download.run(parsed, plain, downloads=tmp_path / "downloads", output=output)
        return manifest.read(output)

    return run_stage


def test_a_file_of_the_hub_is_fetched_verified_and_recorded(hub, run, tmp_path):
    made = run(**on_hub(), sha256=SHA256)
    assert made["content"] == {"weights": {"sha256": SHA256}}
    assert Path(made["run"]["weights"]).read_bytes() == DATA
    assert made["run"]["weights"].endswith("-small.pt")
    found = {path.name.partition("-")[2] for path in (tmp_path / "downloads").glob("[!.]*")}
    assert found == {"small.pt", "small.pt.sha256"}
    assert ("GET", PLACE) in hub.requests


def test_a_second_run_does_not_ask_the_hub(hub, run):
    made = run(**on_hub())
    hub.requests.clear()
    assert run(**on_hub())["content"] == made["content"]
    assert hub.requests == []


def test_a_revision_is_asked_for_and_kept_apart(hub, run):
    hub.files["/em/tokenunify/resolve/v2/nets/small.pt"] = b"other"
    run(**on_hub())
    made = run(**on_hub(revision="v2"))
    assert made["content"]["weights"]["sha256"] == hashlib.sha256(b"other").hexdigest()


def test_the_first_checksum_found_holds(hub, run):
    path = Path(run(**on_hub())["run"]["weights"])
    path.unlink()
    hub.files[PLACE] = b"moved on"
    with pytest.raises(InputError, match=rf"huggingface em/tokenunify@main:nets/small\.pt .*expected sha256 {SHA256}"):
        run(**on_hub())


def test_a_wrong_checksum_is_refused(hub, run):
    with pytest.raises(InputError, match=f"expected sha256 {'0' * 64}, found {SHA256}"):
        run(**on_hub(), sha256="0" * 64)


def test_a_passing_fault_is_tried_again(hub, run):
    hub.faults = [503]
    assert run(**on_hub())["content"]["weights"]["sha256"] == SHA256


@pytest.mark.parametrize(
    ("keys", "token", "words"),
    [
        ({"file": "gone.pt"}, None, r"em/tokenunify@main:gone\.pt cannot be fetched .*404"),
        ({}, "secret", "cannot be fetched .*401.*HF_TOKEN may read it"),
    ],
)
def test_what_cannot_be_had_is_explained(hub, run, keys, token, words):
    hub.token = token
    with pytest.raises(InputError, match=rf"(?s){words}"):
        run(**on_hub(**keys))


def test_a_transfer_that_never_ends_is_explained_and_can_be_tried_again(hub, run):
    hub.cut = True
    with pytest.raises(InputError, match=r"small\.pt cannot be fetched"):
        run(**on_hub())
    hub.cut = False
    hub.requests.clear()
    assert run(**on_hub())["content"]["weights"]["sha256"] == SHA256


def test_an_unreachable_hub_is_explained(hub, run, monkeypatch):
    use_endpoint(monkeypatch, "http://127.0.0.1:9")
    with pytest.raises(InputError, match=r"small\.pt cannot be fetched .*Connection refused.*check .*network"):
        run(**on_hub())


def test_endpoint_and_token_come_from_the_environment(hub, tmp_path, root):
    hub.token = "secret"
    words = ["download", "--config-json", section(**on_hub()), "--downloads", "d", "--output", "m.json"]
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_TOKEN": "secret", "PYTHONPATH": str(root)}
    subprocess.run([sys.executable, "-m", "tokenunify", *words], cwd=tmp_path, env=environment, check=True)
    assert manifest.content(tmp_path / "m.json")["weights"]["sha256"] == SHA256


def test_a_local_file_and_a_url(hub, run, tmp_path):
    (tmp_path / "net.pt").write_bytes(DATA)
    assert run(path=str(tmp_path / "net.pt"), sha256=SHA256)["run"]["weights"] == str(tmp_path / "net.pt")
    assert run(url=f"{hub.url}{PLACE}")["content"] == {"weights": {"sha256": SHA256}}
    with pytest.raises(InputError, match=r"net\.pt is not the expected file"):
        run(path=str(tmp_path / "net.pt"), sha256="0" * 64)
