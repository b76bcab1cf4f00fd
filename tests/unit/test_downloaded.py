"""Which edits of a source, and which changes of its files, make a download again."""

import json
import os

import h5py
import numpy as np
import pytest

from tokenunify import config
from tokenunify.data.download import download
from tokenunify.plan import downloaded
from tokenunify.plan.plan import Plan
from tokenunify.stages import sections
from tokenunify.store import manifest

RAW = np.arange(3 * 8 * 10, dtype=np.uint8).reshape(3, 8, 10)


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("lab", "archive"):
        (tmp_path / folder).mkdir()
    np.save("lab/raw.npy", RAW)
    np.save("lab/labels.npy", RAW // 16)
    forget()


def forget():
    """As a new start of the workflow does."""
    downloaded.section.cache_clear()
    downloaded.states.cache_clear()


def place(folder="lab", **more):
    return {role: {"path": f"{folder}/{role}.npy", "format": "npy", **more} for role in ("raw", "labels")}


def asked(*sources, **volume):
    """The section of the download, as the workflow's start finds it."""
    forget()
    volumes = {"v": {"sources": list(sources), "voxel_size_nm": [40, 4, 8], **volume}}
    return Plan(config.from_dict({"volumes": volumes})).download("v")


def made(*sources, **volume):
    """The same, and the download is run with it."""
    text = asked(*sources, **volume)
    parsed, plain = sections.from_json("download", text)
    output = manifest.Path("data/downloads/v.json")
    download.run(parsed, plain, downloads=output.parent, output=output)
    return text


def sha256(name):
    return manifest.file_sha256(f"lab/{name}.npy")


def pinned(folder="lab"):
    return {role: {**file, "sha256": sha256(role)} for role, file in place(folder).items()}


TERMS = {"name": "lab", "text": "research only", "ask": False}


@pytest.mark.parametrize(
    "sources",
    [
        lambda: [place()],
        lambda: [place("archive"), place()],
        lambda: [place(), place("archive")],
        lambda: [pinned()],
        lambda: [pinned("archive")],
        lambda: [{role: {"url": f"https://example.org/{role}.npy", **file} for role, file in bare().items()}],
    ],
    ids=[
        "same",
        "mirror in front",
        "mirror behind",
        "checksum added",
        "other place, same bytes",
        "address, same bytes",
    ],
)
def test_what_holds_the_same_bytes_is_not_asked_for_again(sources):
    before = made(place())
    assert asked(*sources()) == before == asked(*sources(), citation="Someone 2026", license="MIT", terms=TERMS)


def bare():
    return {role: {key: value for key, value in file.items() if key != "path"} for role, file in pinned().items()}


@pytest.mark.parametrize(
    "source",
    [
        lambda: place("archive"),
        lambda: {"raw": place()["raw"]},
        lambda: {**place(), "mask": place()["labels"]},
        lambda: place(sha256="0" * 64),
        lambda: {**pinned("archive"), "raw": {**pinned("archive")["raw"], "sha256": "0" * 64}},
        lambda: {"phantom": {"seed": 1, "shape": [3, 8, 10]}},
    ],
    ids=["other place", "labels gone", "a mask", "other checksum", "other raw", "phantom"],
)
def test_another_source_is_asked_for(source):
    before = made(place())
    assert asked(source()) != before


def test_another_phantom_is_another_source():
    phantom = {"phantom": {"seed": 1, "shape": [3, 8, 10]}}
    before = made(phantom)
    assert asked(phantom) == asked(place("archive"), phantom) == before
    assert asked({"phantom": {"seed": 2, "shape": [3, 8, 10]}}) != before


def test_a_file_that_changed_is_told_and_asked_for_again_once(caplog):
    before = made(place())
    np.save("lab/labels.npy", RAW // 8)
    after = asked(place())
    assert after != before
    assert "lab/labels.npy (of data/downloads/v.json) has changed" in caplog.text
    assert made(place()) == after == asked(place())
    assert manifest.content("data/downloads/v.json")["labels"]["sha256"] == sha256("labels")


def test_a_file_of_equal_size_and_old_time_is_noticed():
    before = made(place())
    time = os.stat("lab/labels.npy").st_mtime_ns
    np.save("lab/labels.npy", 255 - RAW)
    os.utime("lab/labels.npy", ns=(time - 10**12, time - 10**12))
    assert asked(place()) != before


def test_a_variable_that_names_another_folder_is_noticed(monkeypatch):
    monkeypatch.setenv("EM", "lab")
    source = {role: {"path": f"${{EM}}/{role}.npy", "format": "npy"} for role in ("raw", "labels")}
    before = made(source)
    for role, values in (("raw", RAW), ("labels", RAW // 8)):
        np.save(f"archive/{role}.npy", values)
        time = os.stat(f"lab/{role}.npy").st_mtime_ns
        os.utime(f"archive/{role}.npy", ns=(time, time))
    monkeypatch.setenv("EM", "archive")
    assert asked(source) != before


@pytest.mark.parametrize("corrected", [True, False])
def test_files_in_front_count_where_they_hold_other_bytes(corrected):
    before = made(place())
    np.save("archive/raw.npy", RAW)
    np.save("archive/labels.npy", RAW // 8 if corrected else RAW // 16)
    assert (asked(place("archive"), place()) == before) is not corrected


def test_a_touched_file_is_compared_once(monkeypatch, caplog):
    before = made(place())
    os.utime("lab/raw.npy", ns=(1, 1))
    compared = []
    checksum = downloaded.local_files.checksum
    monkeypatch.setattr(downloaded.local_files, "checksum", lambda *a: compared.append(a) or checksum(*a))
    assert asked(place()) == asked(place()) == before
    assert [path for path, _ in compared] == ["lab/raw.npy"]
    assert "changed" not in caplog.text


def test_a_file_that_is_gone_is_told_and_no_reason_to_start_anew(caplog):
    before = made(place())
    os.unlink("lab/labels.npy")
    assert asked(place()) == before
    assert "lab/labels.npy (of data/downloads/v.json) is not there any more" in caplog.text


def test_a_folder_is_looked_at_as_a_whole():
    for z in range(3):
        manifest.Path(f"lab/{z}.png").write_bytes(RAW[z].tobytes())  # what is in the files does not matter here
    images = {"raw": {"path": "lab", "format": "images"}}
    before = made(images)
    os.rename("lab/1.png", "lab/7.png")
    assert asked(images) != before


def test_a_file_that_another_one_refers_to_is_looked_at_too(caplog):
    layout = h5py.VirtualLayout(RAW.shape, "u1")
    for z, values in enumerate(RAW):
        with h5py.File(f"lab/{z}.h5", "w") as file:
            file["d"] = values
        layout[z] = h5py.VirtualSource(f"{z}.h5", "d", values.shape)
    with h5py.File("lab/all.h5", "w") as file:
        file.create_virtual_dataset("raw", layout)
    source = {"raw": {"path": "lab/all.h5", "format": "hdf5", "dataset": "raw"}}
    before = made(source)
    assert asked(source) == before
    os.utime("lab/1.h5", ns=(1, 1))
    assert asked(source) == before and "changed" not in caplog.text
    with h5py.File("lab/1.h5", "r+") as file:
        file["d"][0, 0] = 99
    assert asked(source) != before and "lab/1.h5 (of data/downloads/v.json) has changed" in caplog.text
    assert made(source) == asked(source)


def test_a_manifest_of_an_earlier_version_or_a_damaged_one_is_made_again(caplog):
    before = made(place())
    content = manifest.content("data/downloads/v.json")
    manifest.write("data/downloads/v.json", content, {"raw": "lab/raw.npy", "labels": "lab/labels.npy"})
    assert asked(place()) == before  # the same text: Snakemake compares it with what it recorded
    manifest.Path("data/downloads/v.json").write_text("{")
    assert asked(place()) == before and "is not a manifest" in caplog.text


def test_what_a_volume_is_does_not_depend_on_the_mirror():
    made(place())
    one = manifest.content_hash("data/downloads/v.json")
    for role in ("raw", "labels"):
        os.rename(f"lab/{role}.npy", f"archive/{role}.npy")
    made(place("gone"), place("archive"))
    assert manifest.content_hash("data/downloads/v.json") == one
    assert manifest.read("data/downloads/v.json")["run"]["source"] == 1


def test_rights_travel_to_the_report_alone():
    volume = {"sources": [place()], "voxel_size_nm": [40, 4, 8]}
    plain, told = (
        Plan(config.from_dict({"volumes": {"v": {**volume, **rights}}}))
        for rights in ({}, {"license": "MIT", "citation": "Someone 2026", "terms": TERMS, "facts_from": "a wiki"})
    )
    assert plain.ingest("v") == told.ingest("v")


def test_the_report_is_told_the_rights_of_what_it_cites_once():
    base = {"sources": [{"phantom": {"seed": 1, "shape": [16, 160, 160]}}], "voxel_size_nm": [40, 4, 8]}
    lab = {**base, "license": "MIT", "terms": TERMS}
    volumes = {"a": lab, "b": {**base, "citation": "Someone 2026"}, "c": lab, "unused": {**lab, "license": "CC0"}}
    value = {
        "volumes": volumes,
        "datasets": {"d": {"train": ["a"], "validation": ["b"], "test": ["c"]}},
        "models": {"m": {"network": {"name": "superhuman"}, "dataset": "d"}},
        "segmentations": {"w": {"method": "waterz", "threshold": 0.5}},
        "evaluation": {"baseline": None},
    }
    rights = json.loads(Plan(config.from_dict(value)).report())["rights"]
    assert rights == [
        {"volumes": ["a", "c"], "license": "MIT", "terms": {**TERMS, "url": None}},
        {"volumes": ["b"], "citation": "Someone 2026"},
    ]
