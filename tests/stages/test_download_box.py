"""Only the volume's box of remote volumes: by other libraries' stores, through files and a server, with faults."""

import contextlib
import gzip
import hashlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import h5py
import numpy as np
import ome_zarr.writer
import pytest
import zarr

from tests.stages.server import Fault, Server, running
from tokenunify import config
from tokenunify.data import retry
from tokenunify.data.download import download, remote_box, throttle
from tokenunify.data.formats import tensorstore_access
from tokenunify.data.ingest import ingest
from tokenunify.errors import InputError
from tokenunify.plan.plan import Plan
from tokenunify.stages import sections
from tokenunify.store import arrays, manifest

SHAPE = (40, 130, 90)
SIZE = [35, 8, 4]
ROI = {"offset": [5, 20, 11], "shape": [30, 70, 60]}
CUT = tuple(slice(o, o + n) for o, n in zip(ROI["offset"], ROI["shape"], strict=True))
GRID = {"chunk_shape": [8, 32, 32], "shard_shape": [8, 32, 64], "block_shape": [8, 32, 64]}


@pytest.fixture(scope="module")
def raw() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, SHAPE, np.uint8)


@pytest.fixture(scope="module")
def labels() -> np.ndarray:
    """Few ids, beyond 2^32."""
    z, y, x = np.indices(SHAPE)
    return ((z // 7) * 5 + (y // 30) * 3 + x // 20 + 2**40).astype(np.uint64)


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setattr(retry, "BACKOFF_SECONDS", 0.001)
    tensorstore_access.context.cache_clear()
    monkeypatch.setattr(remote_box, "CHUNK_SHAPE", (4, 16, 16))
    monkeypatch.setattr(remote_box, "SHARD_SHAPE", (16, 64, 32))
    (tmp_path / "served").mkdir()
    with running(Server(tmp_path / "served")) as started:
        yield started


# ------------------------------------------------------------------------------------------------ the stores


def write_precomputed(folder: Path, values: np.ndarray, *, sharded=False, labels=False, compress=False) -> dict:
    """By cloud-volume, from a voxel that is not the first, with a coarser scale beside the one that is wanted."""
    from cloudvolume import CloudVolume

    info = CloudVolume.create_new_info(
        num_channels=1,
        layer_type="segmentation" if labels else "image",
        data_type=str(values.dtype),
        encoding="compressed_segmentation" if labels else "raw",
        resolution=SIZE[::-1],
        voxel_offset=[100, 0, 7],
        chunk_size=[32, 32, 16],
        volume_size=values.shape[::-1],
    )
    address = f"file://{folder}"
    volume = CloudVolume(address, info=info, progress=False, compress=compress)
    volume.add_scale((2, 2, 1))
    volume.commit_info()
    if sharded:
        write_sharded(folder, volume, values)
    else:
        volume[:, :, :] = np.asfortranarray(values.T[..., None])
        coarse = CloudVolume(address, mip=1, progress=False, compress=False)
        coarse[:, :, :] = np.zeros(coarse.shape, values.dtype, order="F")
    return {"format": "precomputed"}


def write_sharded(folder: Path, volume, values: np.ndarray) -> None:
    """Chunks put into shards by cloud-volume, which writes none by itself."""
    from cloudvolume.datasource.precomputed.sharding import ShardingSpecification

    spec = ShardingSpecification("neuroglancer_uint64_sharded_v1", 1, "identity", 2, 2, "gzip", "gzip")
    volume.info["scales"][0]["sharding"] = spec.to_dict()
    volume.commit_info()
    grid = [-(-n // c) for n, c in zip(volume.shape[:3], [32, 32, 16], strict=True)]
    chunks = {}
    for index in np.ndindex(*grid):
        cut = tuple(slice(i * c, (i + 1) * c) for i, c in zip(index, [32, 32, 16], strict=True))
        encoded = np.asfortranarray(values.T[cut]).tobytes("F")
        chunks[np.uint64(morton(index, grid))] = encoded
    for name, data in spec.synthesize_shards(chunks).items():
        path = folder / volume.info["scales"][0]["key"] / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def morton(index, grid) -> int:
    """The compressed Morton code of a chunk, as the format's description defines it."""
    code, place = 0, 0
    for bit in range(max(int(n - 1).bit_length() for n in grid)):
        for axis in range(3):
            if 2**bit < grid[axis]:
                code |= ((index[axis] >> bit) & 1) << place
                place += 1
    return code


def write_ome(folder: Path, values: np.ndarray, **_) -> dict:
    group = zarr.open_group(str(folder), mode="w", zarr_format=2)
    axes = [{"name": axis, "type": "space", "unit": "nanometer"} for axis in "zyx"]
    scales = [[{"type": "scale", "scale": [SIZE[0], *(s * 2**level for s in SIZE[1:])]}] for level in range(2)]
    pyramid = [values, values[:, ::2, ::2]]
    options = {"storage_options": {"chunks": (16, 32, 32)}, "fmt": ome_zarr.format.FormatV04()}
    ome_zarr.writer.write_multiscale(pyramid, group, axes=axes, coordinate_transformations=scales, **options)
    return {"format": "zarr"}


def write_zarr3(folder: Path, values: np.ndarray, **_) -> dict:
    options = {"chunks": (8, 32, 32), "shards": (16, 64, 64), "zarr_format": 3}
    array = zarr.create_array(str(folder / "em"), shape=SHAPE, dtype=values.dtype, **options)
    array[:] = values
    array.attrs["voxel_size_nm"] = SIZE
    return {"format": "zarr", "dataset": "em"}


def write_n5(folder: Path, values: np.ndarray, **_) -> dict:
    """Block by block as the description of n5 says: a head of big-endian numbers, then the values, x fastest."""
    block = [20, 50, 16]
    (folder / "em" / "s0").mkdir(parents=True)
    text = {"dimensions": SHAPE[::-1], "blockSize": block, "dataType": str(values.dtype)}
    text |= {"compression": {"type": "raw"}, "pixelResolution": {"dimensions": SIZE[::-1], "unit": "nm"}}
    (folder / "em" / "s0" / "attributes.json").write_text(json.dumps(text))
    for index in np.ndindex(*(-(-n // b) for n, b in zip(SHAPE[::-1], block, strict=True))):
        cut = tuple(slice(i * b, (i + 1) * b) for i, b in zip(index, block, strict=True))
        part = values.T[cut]
        head = np.array([0, 3], ">u2").tobytes() + np.array(part.shape, ">u4").tobytes()
        path = folder / "em" / "s0" / "/".join(map(str, index))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(head + part.astype(part.dtype.newbyteorder(">")).tobytes("F"))
    return {"format": "n5", "dataset": "em/s0"}


def write_sharded_precomputed(folder: Path, values: np.ndarray, **options) -> dict:
    return write_precomputed(folder, values, sharded=True, **options)


WRITERS = [write_precomputed, write_sharded_precomputed, write_ome, write_zarr3, write_n5]
writers = pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__.removeprefix("write_"))


# ------------------------------------------------------------------------------------------------ running


def volume(raw: dict, **more) -> config.Volume:
    sources = [{"raw": raw, **({"labels": more.pop("labels")} if "labels" in more else {})}]
    return config.Volume(sources=sources, voxel_size_nm=SIZE, **{"roi": ROI, **more})


@pytest.fixture
def run(tmp_path):
    """Download a volume as the workflow would; return the manifest."""

    def run_stage(described: config.Volume) -> dict:
        section, plain = sections.from_json("download", sections_of(described)[0])
        download.run(section, plain, downloads=tmp_path / "downloads", output=tmp_path / "data" / "v.json")
        return manifest.read(tmp_path / "data" / "v.json")

    return run_stage


def sections_of(described: config.Volume) -> tuple[str, str]:
    plain = {"volumes": {"v": described}, "datasets": {}, "models": {}, "segmentations": {}, "storage": GRID}
    plan = Plan(config.Config.model_construct(**{**plain, "storage": config.Storage(**GRID)}))
    return plan.download("v"), plan.ingest("v")


def ingested(described: config.Volume, tmp_path: Path) -> arrays.Volume:
    section, plain = sections.from_json("ingest", sections_of(described)[1])
    output = tmp_path / "volumes" / "v.json"
    ingest.run(section, plain, source=tmp_path / "data" / "v.json", output=output, threads=1)
    return arrays.open_volume(output)


@writers
@pytest.mark.parametrize("scheme", ["http", "file"])
def test_the_box_of_a_volume(server, run, tmp_path, raw, write, scheme):
    keys = write(tmp_path / "served" / "v", raw)
    url = f"{server.url}/v" if scheme == "http" else (tmp_path / "served" / "v").as_uri()
    described = volume({"url": url, **keys})
    made = run(described)
    assert made["content"]["raw"]["box"] == {**ROI, "whole": list(SHAPE)}
    np.testing.assert_array_equal(zarr.open_array(made["run"]["raw"], mode="r")[:], raw[CUT])
    found = ingested(described, tmp_path)
    np.testing.assert_array_equal(found.raw[:], raw[CUT])
    assert manifest.content(tmp_path / "volumes" / "v.json")["offset_nm"] == [5 * 35, 20 * 8, 11 * 4]


@writers
def test_labels_of_64_bits_beside_raw_of_a_file(server, run, tmp_path, raw, labels, write):
    keys = write(tmp_path / "served" / "v", labels, **({"labels": True} if write is write_precomputed else {}))
    np.save(tmp_path / "raw.npy", raw)
    described = volume({"path": str(tmp_path / "raw.npy"), "format": "npy"}, labels={"url": f"{server.url}/v", **keys})
    run(described)
    found = ingested(described, tmp_path)
    np.testing.assert_array_equal(found.raw[:], raw[CUT])
    np.testing.assert_array_equal(found.labels[:], labels[CUT])


def without_a_chunk(write, folder: Path, values: np.ndarray) -> dict:
    """The volume without the file of one of its chunks, which the box has."""
    keys = write(folder, values)
    names = {write_precomputed: "*/132-164_32-64_7-23*", write_n5: "**/1/1/0", write_zarr3: "**/c/0/1/1"}
    (chunk,) = folder.glob(names[write])
    chunk.unlink()
    return keys


@pytest.mark.parametrize("write", [write_precomputed, write_n5, write_zarr3])
def test_chunks_that_are_absent(server, run, tmp_path, raw, caplog, write):
    source = {"url": f"{server.url}/v", **without_a_chunk(write, tmp_path / "served" / "v", raw)}
    with pytest.raises(
        InputError,
        match=r"/v, as far as it was read: [12] of the \d+ chunks in the volume's box are absent .* allow_missing",
    ):
        run(volume(source))
    described = volume({**source, "allow_missing": 0.5})
    box_made = run(described)["content"]["raw"]["box"]
    number, total, unit = box_made["absent"]
    assert (number, total > 4) == (2 if write is write_zarr3 else 1, True)  # a shard has several
    assert f"/v: {number} of the {total} chunks" in caplog.text
    caplog.clear()
    ingested(described, tmp_path)
    made = manifest.content(tmp_path / "volumes" / "v.json")
    assert made["absent"] == {"raw": {"absent": number, "total": total, "unit": unit}}
    assert f"{number} of the {total} chunks" in caplog.text
    with pytest.raises(InputError, match="more than the 1 %"):
        run(volume(source))


def test_a_link_out_of_a_folder_at_an_address(run, tmp_path, raw):
    keys = write_n5(tmp_path / "v", raw)
    (tmp_path / "private").write_bytes(b"secret")
    (tmp_path / "v" / "s0.link").symlink_to(tmp_path / "private")
    with pytest.raises(InputError, match=r"v/s0\.link is a link to .*/private, outside"):
        run(volume({"url": (tmp_path / "v").as_uri(), **keys}))


def test_all_of_a_volume_without_a_roi(server, run, tmp_path, raw):
    described = volume({"url": f"{server.url}/v", **write_n5(tmp_path / "served" / "v", raw)}, roi=None)
    run(described)
    np.testing.assert_array_equal(ingested(described, tmp_path).raw[:], raw)


def test_only_the_chunks_of_the_box_are_fetched(server, run, tmp_path, raw):
    small = {"offset": [0, 0, 0], "shape": [8, 32, 32]}
    run(volume({"url": f"{server.url}/v", **write_precomputed(tmp_path / "served" / "v", raw)}, roi=small))
    chunks = {path for path, _, status in server.requests if status == 200 and not path.endswith("info")}
    assert len(chunks) == 1


def test_a_second_run_does_not_ask_the_server(server, run, tmp_path, raw):
    described = volume({"url": f"{server.url}/v", **write_n5(tmp_path / "served" / "v", raw)})
    first = run(described)
    server.requests.clear()
    assert run(described)["content"] == first["content"]
    assert server.requests == []


def test_a_scale_by_its_key(server, run, tmp_path, raw):
    write_precomputed(tmp_path / "served" / "v", raw)
    keys = json.loads((tmp_path / "served" / "v" / "info").read_text())["scales"]
    small = {"offset": [0, 0, 0], "shape": [8, 20, 20]}
    source = {"url": f"{server.url}/v", "format": "precomputed", "dataset": keys[1]["key"]}
    described = volume(source, roi=small)
    assert zarr.open_array(run(described)["run"]["raw"], mode="r").attrs["voxel_size_nm"] == [35, 16, 8]
    with pytest.raises(InputError, match=r"voxel_size_nm is \[35.0, 8.0, 4.0\].*states \[35.0, 16.0, 8.0\]"):
        ingested(described, tmp_path)
    with pytest.raises(InputError, match=r"has no scale 'gone'; it has \['4_8_35', '8_16_35'\]"):
        run(volume({**source, "dataset": "gone"}))


def test_a_voxel_size_that_no_scale_has(server, run, tmp_path, raw):
    keys = write_precomputed(tmp_path / "served" / "v", raw)
    described = volume({"url": f"{server.url}/v", **keys}).model_copy(update={"voxel_size_nm": (30, 8, 8)})
    with pytest.raises(InputError, match=r"no scale of voxel_size_nm \[30.*4_8_35: \[35.0, 8.0, 4.0\]"):
        run(described)


def test_a_roi_outside(server, run, tmp_path, raw):
    keys = write_n5(tmp_path / "served" / "v", raw)
    with pytest.raises(InputError, match=r"ends at \[41, 8, 8\], outside .* of shape \[40, 130, 90\]; correct roi"):
        run(volume({"url": f"{server.url}/v", **keys}, roi={"offset": [1, 0, 0], "shape": [40, 8, 8]}))


NOTHING_THERE = [
    ("precomputed", None, "no `info`"),
    ("n5", "em", "no n5 array 'em'"),
    ("zarr", None, "no zarr array"),
]


def test_nothing_there(server, run):
    for format, dataset, words in NOTHING_THERE:
        with pytest.raises(InputError, match=words):
            run(volume({"url": f"{server.url}/gone", "format": format, "dataset": dataset}))


@pytest.mark.parametrize(("compress", "ending"), [(None, ".gz"), ("gzip", ".gz"), ("br", ".br"), ("zstd", ".zstd")])
@pytest.mark.parametrize("scheme", ["http", "file"])
def test_chunks_packed_as_files_are_refused(server, run, tmp_path, raw, compress, ending, scheme):
    """cloud-volume's default: tensorstore would take each for missing, that is for zeros."""
    keys = write_precomputed(tmp_path / "served" / "v", raw, compress=compress)
    url = f"{server.url}/v" if scheme == "http" else (tmp_path / "served" / "v").as_uri()
    with pytest.raises(InputError, match=rf"v/4_8_35/ has packed chunks, such as .*{ending}, .*gunzip -r 4_8_35"):
        run(volume({"url": url, **keys}))


def test_packed_chunks_that_were_unpacked_or_are_served_unpacked(server, run, tmp_path, raw):
    keys = write_precomputed(tmp_path / "served" / "v", raw, compress="gzip")
    for path in (tmp_path / "served" / "v" / "4_8_35").iterdir():
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
    made = run(volume({"url": f"{server.url}/v", **keys}))
    np.testing.assert_array_equal(zarr.open_array(made["run"]["raw"], mode="r")[:], raw[CUT])


@writers
def test_a_server_that_forbids_what_is_missing(server, run, tmp_path, raw, write):
    """As S3 does to those who may not list the bucket."""
    keys = write(tmp_path / "served" / "v", raw)
    server.choose_fault = lambda path: None if server.read(path) is not None else Fault(403)
    made = run(volume({"url": f"{server.url}/v", **keys}))
    np.testing.assert_array_equal(zarr.open_array(made["run"]["raw"], mode="r")[:], raw[CUT])


@pytest.mark.parametrize(("status", "words"), [(401, "answers 401"), (403, "answers 403: no such volume, or no acc")])
def test_a_server_that_forbids_everything(server, run, status, words):
    server.choose_fault = lambda _: Fault(status)
    for format, dataset, _ in NOTHING_THERE:
        with pytest.raises(InputError, match=words):
            run(volume({"url": f"{server.url}/v", "format": format, "dataset": dataset}))


def test_no_page_of_a_server_is_in_a_message(server, run):
    server.choose_fault = lambda _: Fault(500, body=b"<html>it's 'down'</html>")
    with pytest.raises(InputError, match=r"cannot be read .*HTTP code 500\]\); ") as caught:
        run(volume({"url": f"{server.url}/v", "format": "zarr"}))
    assert "html" not in str(caught.value)


@contextlib.contextmanager
def redirecting(place):
    """A server that answers for a path with a redirect to its place."""
    with running(Server()) as other:
        other.choose_fault = lambda path: Fault(302, {"Location": place(path)})
        yield other


@writers
def test_a_folder_that_is_elsewhere(server, run, tmp_path, raw, write):
    keys = write(tmp_path / "served" / "v", raw)
    with redirecting(lambda path: server.url + path) as other:
        made = run(volume({"url": f"{other.url}/v/", **keys}))
    np.testing.assert_array_equal(zarr.open_array(made["run"]["raw"], mode="r")[:], raw[CUT])


def test_a_folder_that_is_elsewhere_with_a_blank_in_its_dataset(server, run, tmp_path, raw):
    write_zarr3(tmp_path / "served" / "the volume", raw)
    (tmp_path / "served" / "the volume" / "em").rename(tmp_path / "served" / "the volume" / "the em")
    for place in (server.url, None):
        with redirecting(lambda path: server.url + path) as other:
            source = {"url": f"{place or other.url}/the%20volume", "format": "zarr", "dataset": "the em"}
            made = run(volume(source))
        np.testing.assert_array_equal(zarr.open_array(made["run"]["raw"], mode="r")[:], raw[CUT])


def test_redirects_to_no_folder_are_explained(server, run):
    server.files["/login"] = b"who are you?"
    with redirecting(lambda path: f"{server.url}/login?from={path}") as other:
        for format, dataset, _ in NOTHING_THERE:
            with pytest.raises(InputError, match=rf"/v redirects to {server.url}/login, where .*without redirects"):
                run(volume({"url": f"{other.url}/v", "format": format, "dataset": dataset}))


@pytest.mark.parametrize("format", ["zarr", "n5", "precomputed"])
def test_an_address_with_a_query_is_refused(format):
    with pytest.raises(ValueError, match="takes no query"):
        config.FileSource(url="https://a.org/v?signature=1", format=format, dataset="em")


class Buckets(Server):
    """As Amazon's and Google's stores answer for objects: the key in the path, or in an escaped part of it."""

    def read(self, path: str) -> bytes | None:
        key = unquote(path.partition("?")[0]).replace("/storage/v1/b/em-data/o/", "/em-data/")
        return super().read(key)


@pytest.mark.parametrize(("scheme", "variable"), [("s3", "AWS_ENDPOINT_URL"), ("gs", "TENSORSTORE_GCS_HTTP_URL")])
@pytest.mark.parametrize("missing", [404, 403, 401])
def test_buckets(tmp_path, raw, scheme, variable, missing):
    """In a process of its own, as tensorstore reads its environment once."""
    keys = write_precomputed(tmp_path / "served" / "em-data" / "v", raw)
    words = ["download", "--config-json", sections_of(volume({"url": f"{scheme}://em-data/v", **keys}))[0]]
    words += ["--downloads", "downloads", "--output", "v.json"]
    with running(Buckets(tmp_path / "served")) as server:
        server.choose_fault = lambda path: None if server.read(path) is not None else Fault(missing)
        environment = {**os.environ, variable: server.url, "PYTHONPATH": os.getcwd(), "AWS_EC2_METADATA_DISABLED": "1"}
        subprocess.run([sys.executable, "-m", "tokenunify", *words], cwd=tmp_path, env=environment, check=True)
    made = manifest.read(tmp_path / "v.json")["run"]["raw"]
    np.testing.assert_array_equal(zarr.open_array(tmp_path / made, mode="r")[:], raw[CUT])


def test_the_rate_is_that_of_the_configuration(server, run, tmp_path, raw, monkeypatch):
    keys, spent = write_n5(tmp_path / "served" / "v", raw), []
    monkeypatch.setattr(throttle.Throttle, "spend", lambda _, num_bytes: spent.append(num_bytes))
    run(volume({"url": f"{server.url}/v", **keys}))
    assert np.prod(ROI["shape"]) <= sum(spent) <= server.bytes_sent


# ------------------------------------------------------------------------------------------------ faults


@pytest.mark.parametrize("write", [write_precomputed])
def test_the_process_killed_20_times(server, tmp_path, raw, labels, monkeypatch, write):
    """At random requests, for a volume whose raw is a box and whose labels are a file."""
    keys, stream = write(tmp_path / "served" / "v", raw), io.BytesIO()
    np.save(stream, labels)
    server.files["/labels.npy"] = stream.getvalue()
    file = {"url": f"{server.url}/labels.npy", "format": "npy", "sha256": hashlib.sha256(stream.getvalue()).hexdigest()}
    section = sections_of(volume({"url": f"{server.url}/v", **keys}, labels=file))[0]
    command = [sys.executable, "-c", SMALL_BLOCKS, section]
    environment, random = {**os.environ, "PYTHONPATH": os.getcwd()}, np.random.default_rng(11)
    for _ in range(20):
        with subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL) as process:
            left = [int(random.integers(2, 11))]

            def kill(_path, left=left, process=process):
                left[0] -= 1
                if left[0] == 0:
                    process.kill()

            server.choose_fault = kill
        assert process.returncode == -9
    server.choose_fault = lambda _: None
    subprocess.run(command, cwd=tmp_path, env=environment, check=True)
    made = manifest.read(tmp_path / "v.json")
    np.testing.assert_array_equal(zarr.open_array(tmp_path / made["run"]["raw"], mode="r")[:], raw[CUT])
    assert made["content"]["labels"]["sha256"] == file["sha256"]


SMALL_BLOCKS = """
import sys
from pathlib import Path
from tokenunify.data.download import download, remote_box
from tokenunify.stages import sections
remote_box.CHUNK_SHAPE, remote_box.SHARD_SHAPE = (4, 16, 16), (8, 32, 32)
section, plain = sections.from_json("download", sys.argv[1])
download.run(section, plain, downloads=Path("downloads"), output=Path("v.json"))
"""


class Killed(BaseException):
    pass


def chance(monkeypatch, random: np.random.Generator) -> None:
    """Die in the middle of about every fourth block, when its values are there, or after it was written."""
    read = remote_box.read_box

    def die(source, roi):
        fate = random.random()
        if fate < 0.12:
            raise Killed
        values = read(source, roi)
        if fate < 0.25:
            raise Killed
        return values

    monkeypatch.setattr(remote_box, "read_box", die)


@pytest.mark.parametrize("write", [write_precomputed, write_n5])
def test_killed_20_times(server, run, tmp_path, raw, monkeypatch, write):
    described = volume({"url": f"{server.url}/v", **write(tmp_path / "served" / "v", raw)})
    kills, random = 0, np.random.default_rng(5)
    with monkeypatch.context() as patch:
        chance(patch, random)
        patch.setattr(remote_box, "SHARD_SHAPE", (4, 16, 16))
        while kills < 20:
            try:
                run(described)
            except Killed:
                kills += 1
            else:
                pytest.fail("it ended before it was killed 20 times")
        first = run_to_end(run, described, patch)
    np.testing.assert_array_equal(first, raw[CUT])


def run_to_end(run, described, patch) -> np.ndarray:
    while True:
        with contextlib.suppress(Killed):
            return zarr.open_array(run(described)["run"]["raw"], mode="r")[:]


@writers
def test_passing_faults_do_not_change_a_voxel(server, run, tmp_path, raw, write):
    keys, random = write(tmp_path / "served" / "v", raw), np.random.default_rng(6)
    faults = [Fault(500), Fault(503), Fault(429), Fault(cut=100), None, None, None, None, None, None]
    server.choose_fault = lambda _: faults[random.integers(len(faults))]
    made = run(volume({"url": f"{server.url}/v", **keys}))
    np.testing.assert_array_equal(zarr.open_array(made["run"]["raw"], mode="r")[:], raw[CUT])
    assert {200, 500} < {status for *_, status in server.requests} | {206}


@pytest.mark.parametrize("fault", [Fault(403), Fault(500), Fault(body=b"<html>busy</html>")])
def test_lasting_faults_are_explained(server, run, tmp_path, raw, fault):
    keys = write_precomputed(tmp_path / "served" / "v", raw)
    server.choose_fault = lambda path: None if path.endswith("info") else fault
    with pytest.raises(InputError, match=rf"{server.url}/v.* cannot be read .*run snakemake again"):
        run(volume({"url": f"{server.url}/v", **keys}))
    server.choose_fault = lambda _: None
    made = run(volume({"url": f"{server.url}/v", **keys}))
    np.testing.assert_array_equal(zarr.open_array(made["run"]["raw"], mode="r")[:], raw[CUT])


def test_a_source_that_changes_meanwhile(server, run, tmp_path, raw, monkeypatch):
    described = volume({"url": f"{server.url}/v", **write_n5(tmp_path / "served" / "v", raw)})
    with monkeypatch.context() as patch:
        chance(patch, np.random.default_rng(7))
        patch.setattr(remote_box, "SHARD_SHAPE", (4, 16, 16))
        with pytest.raises(Killed):
            run(described)
    path = tmp_path / "served" / "v" / "em" / "s0" / "attributes.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": 2}))
    with pytest.raises(InputError, match=r"changed since its download began; delete .*partial and .*to begin anew"):
        run(described)


def test_a_copy_that_was_changed_is_not_used(server, run, tmp_path, raw):
    described = volume({"url": f"{server.url}/v", **write_n5(tmp_path / "served" / "v", raw)})
    shard = Path(run(described)["run"]["raw"]) / "c" / "0" / "0" / "0"
    shard.write_bytes(shard.read_bytes()[:-1] + b"!!")
    with pytest.raises(InputError, match="is not the expected file"):
        run(described)
    made = run(described)
    np.testing.assert_array_equal(zarr.open_array(made["run"]["raw"], mode="r")[:], raw[CUT])


# ------------------------------------------------------------------------------------------------ HDF5 by ranges


@pytest.fixture
def hdf5(server, raw, tmp_path) -> dict:
    """A file much larger than the box."""
    with h5py.File(tmp_path / "served" / "v.h5", "w") as file:
        file.create_dataset("other", data=np.random.default_rng(8).integers(0, 256, 30_000_000, np.uint8))
        file.create_dataset("raw", data=raw, chunks=(4, 32, 32), compression="gzip").attrs["resolution"] = SIZE
    return {"url": f"{server.url}/v.h5", "format": "hdf5", "dataset": "raw", "partial": True}


def test_the_box_of_an_hdf5_file(server, run, hdf5, tmp_path, raw):
    described = volume(hdf5)
    run(described)
    assert server.bytes_sent < 5_000_000
    np.testing.assert_array_equal(ingested(described, tmp_path).raw[:], raw[CUT])


def test_faults_while_reading_ranges(server, run, hdf5, raw):
    random = np.random.default_rng(9)
    faults = [Fault(500), Fault(503), Fault(cut=1000), None, None, None]
    server.choose_fault = lambda _: faults[random.integers(len(faults))]
    made = run(volume(hdf5))
    np.testing.assert_array_equal(zarr.open_array(made["run"]["raw"], mode="r")[:], raw[CUT])


def test_voxels_of_a_ranged_file_that_nobody_has_written(server, run, hdf5, tmp_path, raw, caplog):
    with h5py.File(tmp_path / "served" / "v.h5", "a") as file:
        del file["raw"]
        file.create_dataset("raw", SHAPE, "u1", chunks=(4, 32, 32))[:, :64] = raw[:, :64]
    offset, shape = ROI["offset"], ROI["shape"]
    lost, whole = shape[0] * (offset[1] + shape[1] - 64) * shape[2], 30 * 70 * 60
    with pytest.raises(InputError, match=r"v\.h5, as far as it was read: \d+ of the \d+ voxels .* allow_missing"):
        run(volume(hdf5))
    told = run(volume(hdf5 | {"allow_missing": 0.5}))["content"]["raw"]["box"]["absent"]
    assert told == [lost, whole, "voxels"]
    assert f"v.h5: {lost} of the {whole} voxels" in caplog.text


def test_a_server_without_ranges(server, run, hdf5):
    server.ranges = False
    with pytest.raises(InputError, match="does not answer for ranges of bytes; remove partial"):
        run(volume(hdf5))


def test_an_hdf5_file_that_is_not_there_or_forbidden(server, run, hdf5):
    with pytest.raises(InputError, match=r"gone\.h5 cannot be read after 1 attempts .*nothing at this address"):
        run(volume({**hdf5, "url": f"{server.url}/gone.h5"}))
    server.choose_fault = lambda _: Fault(403)
    with pytest.raises(InputError, match="login or an accepted licence"):
        run(volume(hdf5))


def test_an_hdf5_file_without_the_dataset(server, run, hdf5):
    with pytest.raises(InputError, match=r"has no dataset 'gone'; it has \['other', 'raw'\]"):
        run(volume({**hdf5, "dataset": "gone"}))


def test_an_hdf5_file_killed_20_times(server, run, hdf5, raw, monkeypatch):
    kills = 0
    with monkeypatch.context() as patch:
        chance(patch, np.random.default_rng(10))
        patch.setattr(remote_box, "SHARD_SHAPE", (4, 16, 16))
        while kills < 20:
            with pytest.raises(Killed):
                run(volume(hdf5))
            kills += 1
        values = run_to_end(run, volume(hdf5), patch)
    np.testing.assert_array_equal(values, raw[CUT])


def test_the_hash_of_volumes_without_boxes_stays():
    plain = json.loads(sections_of(volume({"path": "a.npy", "format": "npy"}))[0])
    file = {"path": "a.npy", "url": None, "indices": None, "sha256": None, "format": "npy", "dataset": None}
    assert plain == {"version": 1, "sources": [{"raw": file, "labels": None, "phantom": None}]}
