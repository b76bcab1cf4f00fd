"""A corpus of regions sampled from a large volume: what is fetched of it, and that it is what lies there."""

import json
from pathlib import Path

import h5py
import numpy as np
import ome_zarr.writer
import pytest
import zarr

from tests.stages.server import Fault, Server, running
from tokenunify import config
from tokenunify.data import retry
from tokenunify.data.download import download, remote_box, sampled_region
from tokenunify.data.formats import tensorstore_access
from tokenunify.data.formats.precomputed import PACKED
from tokenunify.data.ingest import ingest
from tokenunify.errors import InputError
from tokenunify.geometry import Roi
from tokenunify.plan.plan import Plan
from tokenunify.stages import sections
from tokenunify.store import arrays, manifest

WHOLE, CHUNK, REGION = (64, 384, 320), (16, 32, 32), (16, 64, 64)
SIZE = [35, 8, 4]
NUMBER = 5
HOLE = {"offset": [10, 70, 200], "shape": [30, 50, 60]}
TISSUE = 150
"""First x of what is not blank."""


@pytest.fixture(scope="module")
def raw() -> np.ndarray:
    """Half of it blank; blank are also two sections, which are less than what is allowed."""
    values = np.random.default_rng(0).integers(0, 256, WHOLE, np.uint8)
    values[:, :, :TISSUE] = 7
    values[20:22] = 0
    return values


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setattr(retry, "BACKOFF_SECONDS", 0.001)
    tensorstore_access.context.cache_clear()
    (tmp_path / "served").mkdir()
    with running(Server(tmp_path / "served")) as started:
        yield started


# ------------------------------------------------------------------------------------------------ the stores


def write_precomputed(folder: Path, values: np.ndarray) -> dict:
    """By cloud-volume: three scales."""
    from cloudvolume import CloudVolume

    info = CloudVolume.create_new_info(
        num_channels=1,
        layer_type="image",
        data_type="uint8",
        encoding="raw",
        resolution=SIZE[::-1],
        voxel_offset=[0, 0, 0],
        chunk_size=CHUNK[::-1],
        volume_size=WHOLE[::-1],
    )
    volume = CloudVolume(f"file://{folder}", info=info, progress=False, compress=False)
    volume.add_scale((2, 2, 1))
    volume.add_scale((4, 4, 1))
    volume.commit_info()
    for mip, step in enumerate((1, 2, 4)):
        level = CloudVolume(f"file://{folder}", mip=mip, progress=False, compress=False)
        level[:, :, :] = np.asfortranarray(values[:, ::step, ::step].T[..., None])
    return {"format": "precomputed"}


def write_ome(folder: Path, values: np.ndarray) -> dict:
    group = zarr.open_group(str(folder / "em"), mode="w", zarr_format=2)
    axes = [{"name": axis, "type": "space", "unit": "nanometer"} for axis in "zyx"]
    scales = [[{"type": "scale", "scale": [SIZE[0], *(s * step for s in SIZE[1:])]}] for step in (1, 2, 4)]
    pyramid = [values[:, ::step, ::step] for step in (1, 2, 4)]
    options = {"storage_options": {"chunks": CHUNK}, "fmt": ome_zarr.format.FormatV04()}
    ome_zarr.writer.write_multiscale(pyramid, group, axes=axes, coordinate_transformations=scales, **options)
    return {"format": "zarr", "dataset": "em"}


def write_ome_level(folder: Path, values: np.ndarray) -> dict:
    return {**write_ome(folder, values), "dataset": "em/s0"}


def write_zarr(folder: Path, values: np.ndarray) -> dict:
    """Without coarser levels."""
    array = zarr.create_array(str(folder), shape=WHOLE, dtype=values.dtype, chunks=CHUNK, zarr_format=3)
    array[:] = values
    return {"format": "zarr"}


def write_hdf5(folder: Path, values: np.ndarray) -> dict:
    with h5py.File(folder, "w") as file:
        file.create_dataset("raw", data=values, chunks=CHUNK)
    return {"format": "hdf5", "dataset": "raw", "partial": True}


PYRAMIDS = [write_precomputed, write_ome, write_ome_level]
WRITERS = [*PYRAMIDS, write_zarr, write_hdf5]


def writers(writers: list):
    return pytest.mark.parametrize("write", writers, ids=lambda write: write.__name__.removeprefix("write_"))


# ------------------------------------------------------------------------------------------------ running


def plan(source: dict, *, roi=WHOLE, first=(0, 0, 0), **sample) -> Plan:
    member = {"volume": "v", "sample": {"number": NUMBER, "shape": REGION, "seed": 1, **sample}}
    volume = {"sources": [{"raw": source}], "voxel_size_nm": SIZE, "roi": {"offset": first, "shape": roi}}
    value = {
        "volumes": {"v": {**volume, "license": "CC0"}},
        "corpora": {"c": {"datasets": [member], "exclude": [{"volume": "v", **HOLE}]}},
        "pretrainings": {"p": {"network": {"name": "superhuman"}, "corpus": "c", "crop": [8, 32, 32]}},
        "storage": {"chunk_shape": CHUNK, "shard_shape": CHUNK, "block_shape": CHUNK},
        **{key: {} for key in ("datasets", "models", "segmentations")},
    }
    return Plan(config.from_dict(value))


def fetch(planned: Plan, name: str, folder: Path) -> dict:
    section, plain = sections.from_json("download", planned.download(name))
    download.run(section, plain, downloads=folder / "downloads", output=folder / "downloads" / f"{name}.json")
    return manifest.read(folder / "downloads" / f"{name}.json")


def ingested(planned: Plan, name: str, folder: Path) -> Path:
    section, plain = sections.from_json("ingest", planned.ingest(name))
    output = folder / "volumes" / f"{name}.json"
    ingest.run(section, plain, source=folder / "downloads" / f"{name}.json", output=output, threads=1)
    return output


def cut(raw: np.ndarray, offset) -> np.ndarray:
    return raw[Roi(tuple(offset), REGION).slices]


def blank(values: np.ndarray) -> float:
    return max((values == value).mean() for value in range(256))


def expected(planned: Plan, name: str, raw: np.ndarray) -> list[int]:
    """The first place that is not blank, by the voxels themselves."""
    offsets = json.loads(planned.download(name))["sample"]["places"]
    return next(offset for offset in offsets if blank(cut(raw, offset)) <= 0.2)


@writers(WRITERS)
def test_a_corpus_of_regions(server, tmp_path, raw, write):
    planned = plan({"url": f"{server.url}/v", **write(tmp_path / "served" / "v", raw)})
    names = planned.corpus_volumes("p")
    assert names == [f"v-region{index}" for index in range(NUMBER)]
    hole = Roi(tuple(HOLE["offset"]), tuple(HOLE["shape"]))
    for name in names:
        found, place = fetch(planned, name, tmp_path), expected(planned, name, raw)
        assert found["content"]["raw"]["box"] == {"offset": place, "shape": list(REGION), "whole": list(WHOLE)}
        assert not Roi(tuple(place), REGION).overlap(hole)
        output = ingested(planned, name, tmp_path)
        np.testing.assert_array_equal(arrays.open_volume(output).raw[:], cut(raw, place))
        content = manifest.content(output)
        assert content["offset_nm"] == [o * s for o, s in zip(place, SIZE, strict=True)]
        assert planned.volume(name).voxel_size_nm == tuple(map(float, SIZE))


@writers(PYRAMIDS)
def test_only_what_is_needed_is_fetched(server, tmp_path, raw, write):
    """Chunks of the taken places, and a preview of those that are not."""
    planned = plan({"url": f"{server.url}/v", **write(tmp_path / "served" / "v", raw)})
    whole = sum(path.stat().st_size for path in (tmp_path / "served").rglob("*") if path.is_file())
    boxes = [fetch(planned, name, tmp_path)["content"]["raw"]["box"]["offset"] for name in planned.corpus_volumes("p")]
    first = [json.loads(planned.download(name))["sample"]["places"][0] for name in planned.corpus_volumes("p")]
    assert boxes != first  # some of them were blank
    fine = {path for path, _, status in server.requests if status in (200, 206) and is_fine(path)}
    chunks = np.prod(REGION) // np.prod(CHUNK)
    assert len(fine) == NUMBER * chunks
    assert server.bytes_sent < 0.1 * whole
    server.requests.clear()
    again = [fetch(planned, name, tmp_path)["content"]["raw"]["box"]["offset"] for name in planned.corpus_volumes("p")]
    assert (again, server.requests) == (boxes, [])


def is_fine(path: str) -> bool:
    """Whether an address is that of a chunk of the finest level; packed ones are looked for, and are not there."""
    described = path.endswith((".zarray", ".zattrs", "zarr.json", *PACKED))
    return ("/4_8_35/" in path or "/em/s0/" in path) and not described


@writers([write_zarr])
def test_blank_boxes_are_not_kept_where_there_is_no_preview(server, tmp_path, raw, write):
    planned = plan({"url": f"{server.url}/v", **write(tmp_path / "served" / "v", raw)})
    for name in planned.corpus_volumes("p"):
        fetch(planned, name, tmp_path)
    assert len(list((tmp_path / "downloads").glob("*.zarr"))) == NUMBER
    server.requests.clear()
    for name in planned.corpus_volumes("p"):
        fetch(planned, name, tmp_path)
    assert server.requests == []


def test_a_killed_search_goes_on_where_it_was(server, tmp_path, raw, monkeypatch):
    planned = plan({"url": f"{server.url}/v", **write_zarr(tmp_path / "served" / "v", raw)})
    name = next(
        name
        for name in planned.corpus_volumes("p")
        if expected(planned, name, raw) != json.loads(planned.download(name))["sample"]["places"][0]
    )
    fetched, copy = [], remote_box.copy

    def die(source, box, target, allow_missing):
        fetched.append(list(box.offset))
        if len(fetched) == 2:
            raise KeyboardInterrupt
        copy(source, box, target, allow_missing)

    monkeypatch.setattr(remote_box, "copy", die)
    with pytest.raises(KeyboardInterrupt):
        fetch(planned, name, tmp_path)
    assert fetch(planned, name, tmp_path)["content"]["raw"]["box"]["offset"] == expected(planned, name, raw)
    assert fetched[1] == fetched[2]
    del fetched[1]
    assert fetched == json.loads(planned.download(name))["sample"]["places"][: len(fetched)]


def test_all_places_blank(server, tmp_path, raw):
    planned = plan(
        {"url": f"{server.url}/v", **write_precomputed(tmp_path / "served" / "v", raw)},
        roi=(64, 384, 128),
        max_blank=0.5,
    )
    with pytest.raises(
        InputError, match=r"source 0: all 10 places of this region are blank: of the best, .* allows 50 %; give"
    ):
        fetch(planned, "v-region0", tmp_path)
    fine = [path for path, *_ in server.requests if is_fine(path)]
    assert fine == []


def test_places_count_from_the_first_voxel_of_the_source(server, tmp_path, raw):
    first = (7, 30, 160)
    source = {"url": f"{server.url}/v", **write_precomputed(tmp_path / "served" / "v", raw)}
    planned = plan(source, roi=(32, 256, 160), first=first)
    for name in planned.corpus_volumes("p"):
        offset = fetch(planned, name, tmp_path)["content"]["raw"]["box"]["offset"]
        assert all(o >= f and (o - f) % n == 0 for o, f, n in zip(offset, first, REGION, strict=True))
        output = ingested(planned, name, tmp_path)
        np.testing.assert_array_equal(arrays.open_volume(output).raw[:], cut(raw, offset))


def test_passing_faults_change_nothing(server, tmp_path, raw):
    planned = plan({"url": f"{server.url}/v", **write_precomputed(tmp_path / "served" / "v", raw)})
    random, faults = np.random.default_rng(6), [Fault(500), Fault(503), Fault(cut=100), *[None] * 6]
    server.choose_fault = lambda _: faults[random.integers(len(faults))]
    for name in planned.corpus_volumes("p"):
        assert fetch(planned, name, tmp_path)["content"]["raw"]["box"]["offset"] == expected(planned, name, raw)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_share_of_the_commonest_value(dtype):
    values = np.random.default_rng(3).integers(0, 40, (9, 11, 13)).astype(dtype)
    values[2:5] = 5
    found = sampled_region.commonest([values[:4], values[4:]])
    assert found == max(np.count_nonzero(values == value) for value in range(40)) / values.size


def test_the_preview_shows_the_place():
    level = sampled_region.Remote("", np.zeros((5, 32, 11)), (5, 32, 11), np.dtype("uint8"), None, "")
    preview = sampled_region.Preview(level, (10, 64, 21))
    assert preview.scaled(Roi((3, 10, 8), (4, 7, 13))) == Roi((1, 5, 4), (3, 4, 7))
