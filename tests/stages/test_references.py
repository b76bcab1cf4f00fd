"""What an HDF5 source takes from other files: recorded by the download, noticed by ingest where it changed."""

import json
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import zarr

from tests.hdf5_files import SHAPE, external, external_link, numbered, virtual
from tests.stages.server import Server, running
from tokenunify.data import retry
from tokenunify.data.download import download
from tokenunify.data.ingest import ingest
from tokenunify.errors import InputError
from tokenunify.stages import sections
from tokenunify.store import manifest

SIZE = [40, 4, 5]
SECTION = {
    "version": 1,
    "voxel_size_nm": SIZE,
    "roi": None,
    "zero": "background",
    "chunk_shape": [2, 8, 16],
    "shard_shape": [4, 16, 32],
}
MAKERS = {"virtual": virtual, "numbered": numbered, "external": external, "link": external_link}


@pytest.fixture
def volume() -> np.ndarray:
    return np.random.default_rng(0).integers(1, 256, SHAPE).astype(np.uint8)


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "em").mkdir()
    return tmp_path / "em"


class Stages:
    """The two stages on one source of raw."""

    def __init__(self, folder: Path):
        self.folder, self.fetched, self.output = folder, folder / "sources.json", folder / "volumes" / "v.json"

    def download(self, box: dict | None = None, **source) -> dict:
        text = {"version": 1, "sources": [{"raw": {"format": "hdf5", **source}}], **(box or {})}
        section, plain = sections.from_json("download", json.dumps(text))
        download.run(section, plain, downloads=self.folder / "downloads", output=self.fetched)
        return manifest.content(self.fetched)["raw"]

    def ingest(self, **changes) -> zarr.Group:
        section, plain = sections.from_json("ingest", json.dumps(SECTION | changes))
        ingest.run(section, plain, source=self.fetched, output=self.output, threads=1)
        return zarr.open_group(str(self.output.with_suffix(".zarr")), mode="r")


@pytest.fixture
def run(tmp_path) -> Stages:
    return Stages(tmp_path)


@pytest.mark.parametrize("kind", MAKERS)
def test_other_files_are_recorded_and_a_change_of_one_is_noticed(run, folder, volume, kind):
    path, dataset = MAKERS[kind](folder, volume)
    recorded = run.download(path=str(path), dataset=dataset)
    names = sorted(file.name for file in folder.iterdir() if file != path)
    assert recorded["refers_to"] == {name: manifest.file_sha256(folder / name) for name in names}
    made = run.ingest()
    np.testing.assert_array_equal(made["raw/0"][:], volume)
    assert made.attrs["tokenunify"]["source"]["raw"]["refers_to"] == recorded["refers_to"]
    changed = folder / names[0]
    data = changed.read_bytes()
    changed.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(InputError, match=rf"v\.h5 takes voxels from \['{changed.name}'\], which changed .*--forcerun"):
        run.ingest(zero="unlabelled")
    assert run.download(path=str(path), dataset=dataset) != recorded


def test_a_file_that_refers_to_none_is_recorded_as_ever(run, folder, volume):
    with h5py.File(folder / "v.h5", "w") as file:
        file["raw"], file["other"] = volume, h5py.ExternalLink("gone.h5", "/")
    sha256 = manifest.file_sha256(folder / "v.h5")
    found = run.download(path=str(folder / "v.h5"), dataset="raw")
    assert found == {"sha256": sha256, "format": "hdf5", "dataset": "raw"}
    np.testing.assert_array_equal(run.ingest()["raw/0"][:], volume)


def test_the_next_source_is_taken_where_a_part_is_gone(run, folder, volume):
    path, _ = virtual(folder, volume)
    (folder / "s4.h5").unlink()
    np.save(folder / "v.npy", volume)
    sources = [{"raw": {"format": "hdf5", "dataset": "raw", "path": str(path)}}]
    sources.append({"raw": {"format": "npy", "path": str(folder / "v.npy")}})
    section, plain = sections.from_json("download", json.dumps({"version": 1, "sources": sources}))
    download.run(section, plain, downloads=folder / "downloads", output=run.fetched)
    assert manifest.read(run.fetched)["run"]["source"] == 1


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(retry, "BACKOFF_SECONDS", 0.001)
    with running(Server()) as started:
        yield started


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("way", ["url", "partial", "member"])
def test_files_that_were_fetched_refer_to_nothing(run, folder, volume, server, kind, way):
    path, dataset = MAKERS[kind](folder, volume)
    for file in folder.iterdir():  # beside the download, where HDF5 would find them
        (run.folder / "downloads").mkdir(exist_ok=True)
        (run.folder / "downloads" / file.name).write_bytes(file.read_bytes())
    server.files["/v.h5"] = path.read_bytes()
    if way == "member":
        with zipfile.ZipFile(folder / "v.zip", "w") as archive:
            archive.write(path, "em/v.h5")
        source, box = {"path": str(folder / "v.zip"), "member": "em/v.h5"}, None
    else:
        roi = {"offset": [0, 0, 0], "shape": [2, 8, 8]}
        source = {"url": f"{server.url}/v.h5", **({"partial": True} if way == "partial" else {})}
        box = {"roi": roi, "voxel_size_nm": SIZE} if way == "partial" else None
    with pytest.raises(InputError, match=r"takes voxels from another file, .*did not come with it"):
        run.download(box, dataset=dataset, **source)


# ------------------------------------------------------------------------------------------------ stated voxel size


def write_hdf5(folder, volume):
    with h5py.File(folder / "v.h5", "w") as file:
        file.create_dataset("raw", data=volume).attrs["resolution"] = [5, 4, 40]
    return {"path": str(folder / "v.h5"), "dataset": "raw"}, [5, 4, 40]


def write_zarr(folder, volume):
    zarr.create_array(str(folder / "v.zarr"), data=volume).attrs["voxel_size_nm"] = [40, 4, 6]
    return {"path": str(folder / "v.zarr"), "format": "zarr"}, [40, 4, 6]


def write_n5(folder, volume):
    described = {"dimensions": SHAPE[::-1], "blockSize": SHAPE[::-1], "dataType": "uint8"}
    (folder / "v" / "a" / "0" / "0").mkdir(parents=True)
    text = json.dumps(described | {"compression": {"type": "raw"}, "resolution": [1, 2, 3]})
    (folder / "v" / "a" / "attributes.json").write_text(text)
    header = b"\0\0\0\3" + b"".join(n.to_bytes(4, "big") for n in SHAPE[::-1])
    (folder / "v" / "a" / "0" / "0" / "0").write_bytes(header + volume.tobytes())
    return {"path": str(folder / "v"), "format": "n5", "dataset": "a"}, [3, 2, 1]


@pytest.mark.parametrize("write", [write_hdf5, write_zarr, write_n5])
def test_a_voxel_size_that_the_file_states_wrongly(run, folder, volume, caplog, write):
    source, stated = write(folder, volume)
    run.download(**source)
    with pytest.raises(InputError, match="set stated_voxel_size of the volume to ignore"):
        run.ingest()
    made = run.ingest(stated_voxel_size="ignore")
    np.testing.assert_array_equal(made["raw/0"][:], volume)
    assert made["raw/0"].attrs["voxel_size_nm"] == SIZE
    assert made.attrs["tokenunify"]["overruled_voxel_size_nm"] == {"raw": stated}
    assert manifest.content(run.output)["config"]["stated_voxel_size"] == "ignore"
    assert "states" in caplog.text


def test_a_voxel_size_that_agrees_overrules_nothing(run, folder, volume, caplog):
    np.save(folder / "v.npy", volume)
    run.download(path=str(folder / "v.npy"), format="npy")
    made = run.ingest(stated_voxel_size="ignore")
    assert "overruled_voxel_size_nm" not in made.attrs["tokenunify"]
    assert "states" not in caplog.text


def test_the_default_is_not_told_to_the_stage():
    section, _ = sections.from_json("ingest", json.dumps(SECTION))
    assert "stated_voxel_size" not in sections.to_json("ingest", section)
