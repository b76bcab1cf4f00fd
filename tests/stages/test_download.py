"""The download stage against a server on this machine: resuming, retrying, checking, falling back."""

import errno
import hashlib
import json
import threading
from pathlib import Path

import numpy as np
import pytest

from tests.stages.server import Fault, Server, running
from tokenunify.data import retry
from tokenunify.data.download import download, http, throttle
from tokenunify.data.download.job import Job
from tokenunify.data.formats.image_files import image_files
from tokenunify.errors import InputError
from tokenunify.stages import sections
from tokenunify.store import manifest

DATA = np.random.default_rng(0).bytes(300_007)
SHA256 = hashlib.sha256(DATA).hexdigest()
WRONG = "0" * 64


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(retry, "BACKOFF_SECONDS", 0.001)
    with running(Server()) as started:
        started.files["/em/raw.bin"] = DATA
        yield started


@pytest.fixture
def run(tmp_path):
    """Run the stage on these sources; return the manifest."""

    def run_stage(*sources: dict) -> dict:
        text = json.dumps({"version": 1, "sources": sources})
        output = tmp_path / "data" / "sources" / "v.json"
        section, plain = sections.from_json("download", text)
        download.run(section, plain, downloads=tmp_path / "downloads", output=output)
        return manifest.read(output)

    return run_stage


def raw(**keys) -> dict:
    return {"raw": {"format": "npy", **keys}}


def downloads(folder) -> set[str]:
    return {path.name.partition("-")[2] or path.name for path in (folder / "downloads").glob("[!.]*")}


def test_a_url_is_fetched_and_verified(server, run, tmp_path):
    made = run(raw(url=f"{server.url}/em/raw.bin", sha256=SHA256))
    assert made["content"] == {"raw": {"sha256": SHA256, "format": "npy", "dataset": None}, "labels": None}
    assert Path(made["run"]["raw"]).read_bytes() == DATA
    assert downloads(tmp_path) == {"raw.bin", "raw.bin.sha256"}


def test_content_holds_no_path_or_address(server, run, tmp_path):
    (tmp_path / "labels.npy").write_bytes(b"ids")
    labels = {"labels": {"format": "npy", "path": str(tmp_path / "labels.npy")}}
    text = json.dumps(run(raw(url=f"{server.url}/em/raw.bin") | labels)["content"])
    assert "127.0.0.1" not in text
    assert str(tmp_path) not in text


def test_a_mask_is_obtained_with_the_others(server, run, tmp_path):
    (tmp_path / "mask.npy").write_bytes(b"01")
    mask = {"mask": {"format": "npy", "path": str(tmp_path / "mask.npy")}}
    made = run(raw(url=f"{server.url}/em/raw.bin") | mask)
    assert made["run"]["mask"] == str(tmp_path / "mask.npy")
    assert made["content"]["mask"]["sha256"] == hashlib.sha256(b"01").hexdigest()


def test_a_second_run_does_not_ask_the_server(server, run):
    first = run(raw(url=f"{server.url}/em/raw.bin", sha256=SHA256))
    server.requests.clear()
    assert run(raw(url=f"{server.url}/em/raw.bin", sha256=SHA256))["content"] == first["content"]
    assert server.requests == []


def test_a_cut_transfer_goes_on_where_it_ended(server, run):
    server.faults = [Fault(cut=100_000), Fault(cut=50_000)]
    made = run(raw(url=f"{server.url}/em/raw.bin", sha256=SHA256))
    assert Path(made["run"]["raw"]).read_bytes() == DATA
    assert [status for *_, status in server.requests] == [200, 206, 206]
    starts = [int(asked[6:-1]) for _, asked, _ in server.requests if asked]
    assert 0 < starts[0] <= 100_000 < starts[1] <= 150_000


def test_a_later_run_goes_on_with_what_an_earlier_one_got(server, run, monkeypatch):
    monkeypatch.setattr(retry, "ATTEMPTS", 1)
    server.faults = [Fault(cut=100_000)]
    with pytest.raises(InputError, match="what has arrived is kept"):
        run(raw(url=f"{server.url}/em/raw.bin"))
    made = run(raw(url=f"{server.url}/em/raw.bin"))
    assert Path(made["run"]["raw"]).read_bytes() == DATA
    assert server.requests[-1][2] == 206


def test_a_file_that_changed_on_the_server_is_fetched_anew(server, run, monkeypatch):
    monkeypatch.setattr(retry, "ATTEMPTS", 1)
    server.faults = [Fault(cut=100_000)]
    with pytest.raises(InputError):
        run(raw(url=f"{server.url}/em/raw.bin"))
    server.files["/em/raw.bin"] = DATA[::-1]
    made = run(raw(url=f"{server.url}/em/raw.bin"))
    assert Path(made["run"]["raw"]).read_bytes() == DATA[::-1]


def test_a_server_without_ranges_sends_it_all_again(server, run):
    server.ranges, server.faults = False, [Fault(cut=100_000)]
    made = run(raw(url=f"{server.url}/em/raw.bin", sha256=SHA256))
    assert Path(made["run"]["raw"]).read_bytes() == DATA


def test_redirects_are_followed_while_resuming(server, run):
    server.faults = [Fault(), Fault(cut=100_000)]
    made = run(raw(url=f"{server.url}/moved", sha256=SHA256))
    assert Path(made["run"]["raw"]).read_bytes() == DATA
    assert [status for *_, status in server.requests] == [302, 200, 302, 206]


@pytest.mark.parametrize("status", [500, 503, 429, 416])
def test_passing_faults_are_tried_again(server, run, status):
    server.faults = [Fault(status), Fault(status)]
    assert run(raw(url=f"{server.url}/em/raw.bin"))["content"]["raw"]["sha256"] == SHA256
    assert len(server.requests) == 3


def test_a_missing_file_is_not_tried_again(server, run):
    with pytest.raises(InputError, match=r"em/gone.bin cannot be fetched after 1 attempts \(404"):
        run(raw(url=f"{server.url}/em/gone.bin"))
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", [401, 403])
def test_a_file_behind_a_login_is_to_be_fetched_by_hand(server, run, status):
    server.faults = [Fault(status)]
    with pytest.raises(InputError, match=rf"raw\.bin .*{status}.*login or an accepted licence.*give it as `path`"):
        run(raw(url=f"{server.url}/em/raw.bin"))


def test_it_gives_up_after_some_attempts(server, run, tmp_path):
    server.faults = [Fault(500)] * 100
    with pytest.raises(InputError, match="after 5 attempts"):
        run(raw(url=f"{server.url}/em/raw.bin"))
    assert not (tmp_path / "data" / "sources" / "v.json").exists()


def test_a_file_with_a_wrong_checksum_is_kept_aside(server, run, tmp_path):
    with pytest.raises(InputError, match=f"expected sha256 {WRONG}, found {SHA256}.*wrong-sha256"):
        run(raw(url=f"{server.url}/em/raw.bin", sha256=WRONG))
    assert downloads(tmp_path) == {"raw.bin.wrong-sha256"}
    assert not (tmp_path / "data" / "sources" / "v.json").exists()


def test_a_file_kept_aside_is_used_once_its_checksum_is_given(server, run):
    with pytest.raises(InputError):
        run(raw(url=f"{server.url}/em/raw.bin", sha256=WRONG))
    server.requests.clear()
    assert run(raw(url=f"{server.url}/em/raw.bin", sha256=SHA256))["content"]["raw"]["sha256"] == SHA256
    assert server.requests == []


def test_the_first_checksum_found_holds_from_then_on(server, run, tmp_path):
    made = run(raw(url=f"{server.url}/em/raw.bin"))
    assert made["content"]["raw"]["sha256"] == SHA256
    Path(made["run"]["raw"]).write_bytes(b"damage")
    with pytest.raises(InputError, match=f"expected sha256 {SHA256}"):
        run(raw(url=f"{server.url}/em/raw.bin"))
    assert run(raw(url=f"{server.url}/em/raw.bin"))["content"] == made["content"]


def test_a_wrong_first_download_can_be_replaced(server, run):
    server.files["/em/raw.bin"] = b"busy"
    path = Path(run(raw(url=f"{server.url}/em/raw.bin"))["run"]["raw"])
    server.files["/em/raw.bin"] = DATA
    path.unlink()
    record = f"{path}.sha256"
    with pytest.raises(InputError, match=f"the first download had the expected one.*delete {record} and run") as caught:
        run(raw(url=f"{server.url}/em/raw.bin"))
    assert "correct the address or sha256" not in str(caught.value)
    Path(record).unlink()
    assert run(raw(url=f"{server.url}/em/raw.bin"))["content"]["raw"]["sha256"] == SHA256


def test_equal_names_of_different_addresses_do_not_mix(server, run):
    server.files["/other/raw.bin"] = b"other"
    one, other = (run(raw(url=f"{server.url}/{folder}/raw.bin"))["content"] for folder in ("em", "other"))
    assert one != other


def test_two_volumes_that_want_one_file_fetch_it_once(server, tmp_path):
    source, results = raw(url=f"{server.url}/em/raw.bin", sha256=SHA256), []
    section, _ = sections.from_json("download", json.dumps({"version": 1, "sources": [source]}))
    job = Job(tmp_path, section, sections.DEFAULT_PERMIT, throttle.Throttle())

    def want():
        results.append(http.fetch(section.sources[0].raw, job).sha256)

    threads = [threading.Thread(target=want) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [SHA256] * 4
    assert len(server.requests) == 1


def test_an_image_sequence_comes_into_one_folder(server, run):
    server.files |= {f"/s/{index}.png": bytes([index]) * 9 for index in range(8, 13)}
    source = {"raw": {"format": "images", "url": f"{server.url}/s/{{index}}.png", "indices": [8, 12]}}
    made = run(source)
    assert [(name.name, name.read_bytes()[0]) for name in image_files(made["run"]["raw"])] == [
        (f"{index:06d}.png", index) for index in range(8, 12)
    ]
    assert run(source)["content"] == made["content"]
    del server.files["/s/9.png"]
    with pytest.raises(InputError, match=r"s/9\.png"):
        run({"raw": source["raw"] | {"indices": [9, 12]}})


def test_indices_may_have_leading_zeros(server, run):
    server.files |= {f"/s/{index:04d}.png": bytes([index]) for index in (9, 10)}
    made = run({"raw": {"format": "images", "url": f"{server.url}/s/{{index:04d}}.png", "indices": [9, 11]}})
    assert [path.read_bytes() for path in image_files(made["run"]["raw"])] == [b"\x09", b"\x0a"]


def test_a_local_file_is_verified_and_left_alone(run, tmp_path, monkeypatch):
    (tmp_path / "raw.npy").write_bytes(DATA)
    monkeypatch.setenv("EM_DATA", str(tmp_path))
    made = run(raw(path="${EM_DATA}/raw.npy", sha256=SHA256))
    assert made["content"]["raw"]["sha256"] == SHA256
    assert made["run"]["raw"] == str(tmp_path / "raw.npy")
    with pytest.raises(InputError, match=f"raw.npy.*not used: expected sha256 {WRONG}, found {SHA256}"):
        run(raw(path="${EM_DATA}/raw.npy", sha256=WRONG))
    assert (tmp_path / "raw.npy").read_bytes() == DATA


def test_the_first_source_that_works_wins(server, run, tmp_path):
    (tmp_path / "raw.npy").write_bytes(DATA)
    made = run(
        raw(path="${NOT_SET_ANYWHERE}/raw.npy"),
        raw(path=str(tmp_path / "raw.npy"), sha256=WRONG),
        raw(path=str(tmp_path / "raw.npy")),
        raw(url=f"{server.url}/em/raw.bin"),
    )
    assert made["run"]["source"] == 2
    assert server.requests == []


def _unreadable(monkeypatch, name: str, number: int) -> None:
    """Reading the file of this name fails; the right to read it cannot be taken from root."""
    read = manifest.file_sha256

    def fail(path):
        if Path(path).name == name:
            raise OSError(number, "refused", str(path))
        return read(path)

    monkeypatch.setattr(manifest, "file_sha256", fail)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO])
def test_an_unreadable_local_file_gives_way_to_the_next_source(run, tmp_path, monkeypatch, caplog, number):
    for name in ("locked.npy", "raw.npy"):
        (tmp_path / name).write_bytes(DATA)
    _unreadable(monkeypatch, "locked.npy", number)
    made = run(raw(path=str(tmp_path / "locked.npy")), raw(path=str(tmp_path / "raw.npy")))
    assert made["run"]["source"] == 1
    assert "locked.npy cannot be read" in caplog.text


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_not_blamed_on_the_source(run, tmp_path, monkeypatch, number):
    (tmp_path / "raw.npy").write_bytes(DATA)
    _unreadable(monkeypatch, "raw.npy", number)
    with pytest.raises(OSError, match="refused") as caught:
        run(raw(path=str(tmp_path / "raw.npy")))
    assert caught.value.errno == number


def test_a_source_counts_only_with_its_labels(run, tmp_path):
    (tmp_path / "raw.npy").write_bytes(DATA)
    labels = {"labels": {"format": "npy", "path": str(tmp_path / "gone.npy")}}
    with pytest.raises(InputError, match=r"source 0: .*gone\.npy does not exist"):
        run(raw(path=str(tmp_path / "raw.npy")) | labels)


def test_every_reason_is_listed_when_none_works(server, run):
    with pytest.raises(InputError) as caught:
        run(raw(path="${NOT_SET_ANYWHERE}/a"), raw(path="/nowhere/b"), raw(url=f"{server.url}/c"))
    lines = str(caught.value).splitlines()
    assert "none of the sources works" in lines[0]
    for line, words in zip(lines[1:], ("NOT_SET_ANYWHERE is not set", "/nowhere/b does not exist", "404"), strict=True):
        assert words in line


def test_a_phantom_needs_no_file(run):
    phantom = {"seed": 3, "shape": [4, 20, 30], "density": 1.5}
    assert run({"phantom": phantom})["content"] == {"phantom": phantom, "labels": None}
