"""Servers at their worst: cut at random bytes, busy, slow, wrong; and the limit of the rate."""

import email.utils
import gzip
import hashlib
import json
import time
from pathlib import Path

import numpy as np
import pytest

from tests.stages.server import Fault, Server, running
from tokenunify.data import retry
from tokenunify.data.download import download, http, magic_bytes, throttle
from tokenunify.errors import InputError
from tokenunify.stages import sections
from tokenunify.store import manifest

DATA = magic_bytes.HDF5 + np.random.default_rng(0).bytes(400_009)
SHA256 = hashlib.sha256(DATA).hexdigest()
DATE, LATER = "Wed, 01 Jan 2020 00:00:00 GMT", "Thu, 02 Jan 2020 00:00:00 GMT"
PAGE = b"<!DOCTYPE html><title>Sign in</title>"


@pytest.fixture
def server():
    with running(Server()) as started:
        started.files["/em/raw.h5"] = DATA
        yield started


@pytest.fixture
def pauses(monkeypatch) -> list[float]:
    """Pauses between attempts, which are not waited for."""
    found: list[float] = []
    monkeypatch.setattr(throttle.time, "sleep", found.append)
    return found


@pytest.fixture
def run(tmp_path):
    """Run the stage on one source of raw; return the manifest."""

    def run_stage(url: str, permit=sections.DEFAULT_PERMIT, **source) -> dict:
        file = {"format": "hdf5", "dataset": "main", "url": url, **source}
        section, plain = sections.from_json("download", json.dumps({"version": 1, "sources": [{"raw": file}]}))
        output = tmp_path / "data" / "v.json"
        download.run(section, plain, downloads=tmp_path / "downloads", output=output, permit=permit)
        return manifest.read(output)

    return run_stage


@pytest.mark.parametrize("sha256", [SHA256, None])
def test_interrupted_20_times_at_random_bytes(server, run, monkeypatch, sha256):
    monkeypatch.setattr(retry, "ATTEMPTS", 1)
    random = np.random.default_rng(4)
    for _ in range(20):
        server.faults = [Fault(cut=int(random.integers(0, 40_000)))]
        with pytest.raises(InputError, match="what has arrived is kept"):
            run(f"{server.url}/em/raw.h5", sha256=sha256)
    made = run(f"{server.url}/em/raw.h5", sha256=sha256)
    assert made["content"]["raw"]["sha256"] == SHA256
    assert Path(made["run"]["raw"]).read_bytes() == DATA
    assert server.bytes_sent < len(DATA) + 20 * http.CHUNK_BYTES


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("date", [False, True])
def test_a_busy_server_is_asked_again_when_it_says(server, run, pauses, status, date):
    asked = email.utils.formatdate(time.time() + 40, usegmt=True) if date else "40"
    server.faults = [Fault(status, {"Retry-After": asked})]
    assert run(f"{server.url}/em/raw.h5")["content"]["raw"]["sha256"] == SHA256
    assert pauses == [pytest.approx(40, abs=2)]


def test_a_busy_server_is_not_waited_for_all_day(server, run, pauses):
    server.faults = [Fault(429, {"Retry-After": "86400"}), Fault(503, {"Retry-After": "tomorrow"})]
    run(f"{server.url}/em/raw.h5")
    assert pauses == [retry.LONGEST_PAUSE_SECONDS, 2 * retry.BACKOFF_SECONDS]


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (404, "after 1 attempts .*nothing at this address: correct it"),
        (403, "after 1 attempts .*login or an accepted licence"),
        (429, "after 5 attempts .*download.max_mb_per_second"),
        (500, "after 5 attempts .*run snakemake again later"),
        (503, "after 5 attempts .*busy: run snakemake again later"),
    ],
)
def test_what_a_server_refuses_is_explained(server, run, pauses, status, words):
    server.faults = [Fault(status)] * 9
    with pytest.raises(InputError, match=rf"em/raw\.h5 cannot be fetched {words}"):
        run(f"{server.url}/em/raw.h5")


def test_a_server_that_does_not_answer_in_time(server, run, monkeypatch):
    monkeypatch.setattr(retry, "TIMEOUT_SECONDS", 0.2)
    monkeypatch.setattr(retry, "BACKOFF_SECONDS", 0.001)
    server.faults = [Fault(pause=0.6)]
    assert run(f"{server.url}/em/raw.h5")["content"]["raw"]["sha256"] == SHA256
    server.faults, server.files["/slow.h5"] = [Fault(pause=0.6)] * 5, DATA
    with pytest.raises(InputError, match=r"slow\.h5 cannot be fetched after 5 attempts .*timed out"):
        run(f"{server.url}/slow.h5")


def test_more_bytes_announced_than_sent(server, run, pauses):
    server.faults = [Fault(longer=1000)] * 5
    with pytest.raises(InputError, match=r"cannot be fetched after 5 attempts"):
        run(f"{server.url}/em/raw.h5")
    assert run(f"{server.url}/em/raw.h5")["content"]["raw"]["sha256"] == SHA256


@pytest.mark.parametrize("format", ["hdf5", "tiff", "npy"])
def test_a_web_page_in_place_of_the_file(server, run, tmp_path, format):
    server.faults = [Fault(body=PAGE)]
    dataset = "main" if format == "hdf5" else None
    with pytest.raises(
        InputError, match=rf"gave a web page, not a file of format {format}: it begins with b'<!DOCTYPE"
    ):
        run(f"{server.url}/em/raw.h5", format=format, dataset=dataset)
    assert not [path for path in (tmp_path / "downloads").glob("[!.]*") if path.suffix != ".validator"]
    if format != "tiff":
        assert run(f"{server.url}/em/raw.h5", format=format, dataset=dataset)["content"]["raw"]["sha256"] == SHA256


@pytest.mark.parametrize("format", ["hdf5", "npy"])
def test_an_empty_file_is_not_kept(server, run, tmp_path, format):
    server.faults = [Fault(body=b"")]
    dataset = "main" if format == "hdf5" else None
    with pytest.raises(InputError, match=r"em/raw\.h5 gave an empty file"):
        run(f"{server.url}/em/raw.h5", format=format, dataset=dataset)
    assert not list((tmp_path / "downloads").glob("[!.]*"))
    assert run(f"{server.url}/em/raw.h5", format=format, dataset=dataset)["content"]["raw"]["sha256"] == SHA256


def test_a_file_of_another_format(server, run):
    server.files["/em/raw.h5"] = b"\x93NUMPY" + bytes(100)
    with pytest.raises(InputError, match=r"not of format hdf5: it begins with b'\\x93NUMPY"):
        run(f"{server.url}/em/raw.h5")


def test_a_tampered_file_is_never_used(server, run, tmp_path):
    server.files["/em/raw.h5"] = DATA[:-1] + b"!"
    with pytest.raises(InputError, match=f"expected sha256 {SHA256}"):
        run(f"{server.url}/em/raw.h5", sha256=SHA256)
    assert not (tmp_path / "data" / "v.json").exists()
    assert not list((tmp_path / "downloads").glob("*.h5"))


def test_a_server_that_continues_elsewhere_is_not_believed(server, run, pauses):
    server.faults = [Fault(cut=100_000), Fault(shift=7)]
    assert run(f"{server.url}/em/raw.h5", sha256=SHA256)["content"]["raw"]["sha256"] == SHA256


@pytest.mark.parametrize("told", ["bytes 7-9/400017", "bytes"])
def test_a_range_that_is_not_the_one_asked_for_is_not_appended(server, run, pauses, told):
    server.faults = [Fault(cut=100_000), Fault(headers={"Content-Range": told})]
    assert run(f"{server.url}/em/raw.h5")["content"]["raw"]["sha256"] == SHA256
    assert [status for *_, status in server.requests] == [200, 206, 200]


def test_a_server_that_sends_less_than_asked_for_is_asked_for_the_rest(server, run, pauses):
    server.faults = [Fault(cut=100_000), Fault(most=50_000), Fault(most=50_000)]
    assert run(f"{server.url}/em/raw.h5")["content"]["raw"]["sha256"] == SHA256
    assert [status for *_, status in server.requests] == [200, 206, 206, 206]


@pytest.mark.parametrize("dates", [(None, None), (DATE, LATER)])
@pytest.mark.parametrize("sha256", [SHA256, None])
def test_two_versions_are_not_mixed_where_a_server_ignores_if_range(server, run, monkeypatch, pauses, dates, sha256):
    server.heeds_if_range, server.date, server.files["/em/raw.h5"] = False, dates[0], magic_bytes.HDF5 + DATA[::-1]
    server.faults = [Fault(cut=100_000)]
    with monkeypatch.context() as once, pytest.raises(InputError, match="after 1 attempts"):
        once.setattr(retry, "ATTEMPTS", 1)
        run(f"{server.url}/em/raw.h5", sha256=sha256)
    server.files["/em/raw.h5"], server.date = DATA, dates[1]
    assert run(f"{server.url}/em/raw.h5", sha256=sha256)["content"]["raw"]["sha256"] == SHA256
    assert [status for *_, status in server.requests] == [200, 206, 200]


@pytest.mark.parametrize("weak", [{}, {"ETag": 'W/"1"'}])
def test_a_date_is_a_mark_where_there_is_no_strong_etag(server, run, pauses, weak):
    server.date, server.faults = DATE, [Fault(cut=100_000, headers=weak), Fault(headers=weak)]
    assert run(f"{server.url}/em/raw.h5")["content"]["raw"]["sha256"] == SHA256
    assert [status for *_, status in server.requests] == [200, 206]


def test_attempts_are_counted_anew_when_more_has_arrived(server, run, pauses):
    server.faults = [Fault(cut=30_000)] * 9
    assert run(f"{server.url}/em/raw.h5")["content"]["raw"]["sha256"] == SHA256
    assert pauses == [retry.BACKOFF_SECONDS] * 9


def test_attempts_that_bring_no_more_come_to_an_end(server, run, pauses):
    server.ranges, server.faults = False, [Fault(cut=30_000)] * 9
    with pytest.raises(InputError, match="after 5 attempts"):
        run(f"{server.url}/em/raw.h5")
    assert len(server.requests) == 5


@pytest.mark.parametrize("encoding", ["gzip", "x-gzip"])
@pytest.mark.parametrize(
    "data", [DATA, magic_bytes.HDF5 + np.random.default_rng(0).integers(9, size=400_009).tobytes()]
)
def test_a_file_is_kept_as_it_is_sent(server, run, pauses, encoding, data):
    packed, headers = gzip.compress(data), {"Content-Encoding": encoding}
    server.files["/em/raw.h5"], server.faults = packed, [Fault(cut=100_000, headers=headers), Fault(headers=headers)]
    made = run(f"{server.url}/em/raw.h5", sha256=hashlib.sha256(packed).hexdigest())
    assert Path(made["run"]["raw"]).read_bytes() == packed
    assert [status for *_, status in server.requests] == [200, 206]


def test_the_key_in_a_redirect_is_not_told(server, run, pauses, caplog):
    server.faults = [Fault(302, {"Location": f"{server.url}/cdn/raw.h5?Signature=secret"}), Fault(500)] * 5
    with pytest.raises(InputError, match=r"after 5 attempts .*/cdn/raw\.h5\)") as caught:
        run(f"{server.url}/em/raw.h5")
    assert "attempt 4 failed" in caplog.text
    assert "secret" not in str(caught.value) + caplog.text


def test_the_rate_is_that_of_the_configuration(server, run, monkeypatch):
    spent: list[float] = []
    monkeypatch.setattr(throttle.time, "sleep", spent.append)
    monkeypatch.setattr(throttle.time, "monotonic", lambda: 100.0 + sum(spent[-1:]))
    run(f"{server.url}/em/raw.h5", sections.Permit(max_mb_per_second=0.1))
    assert sum(spent) >= len(DATA) / 1e5 * 0.9


def test_threads_share_the_rate(monkeypatch):
    spent: list[float] = []
    monkeypatch.setattr(throttle.time, "sleep", spent.append)
    monkeypatch.setattr(throttle.time, "monotonic", lambda: 0.0)
    shared = throttle.Throttle(2.0)
    for _ in range(4):
        shared.spend(1_000_000)
    assert spent == [0.5, 1.0, 1.5, 2.0]
