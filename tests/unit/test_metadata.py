"""Metadata of chunked volumes that are damaged or absurd: an error that tells what is wrong, by path and address."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorstore as ts
import zarr

from tests.unit.test_tensorstore import n5, precomputed
from tokenunify.data.formats.readers import open_array
from tokenunify.data.formats.tensorstore import open_chunked
from tokenunify.errors import InputError

SHAPE = (5, 7, 11)


@pytest.fixture
def volume() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 60_000, SHAPE).astype(np.uint16)


def write(folder: Path, kind: str, volume: np.ndarray) -> tuple[Path, str, str | None]:
    """A volume, the file of its metadata, and the dataset."""
    if kind == "n5":
        return n5(folder, volume) / "em" / "s0" / "attributes.json", "n5", "em/s0"
    if kind == "precomputed":
        return precomputed(folder, volume) / "info", "precomputed", None
    zarr.create_array(str(folder), data=volume, chunks=(2, 3, 4), zarr_format=int(kind[-1]))
    return folder / ("zarr.json" if kind == "zarr 3" else ".zarray"), "zarr", None


KINDS = ["n5", "precomputed", "zarr 2", "zarr 3"]
SHAPES = {"n5": "dimensions", "precomputed": "size", "zarr 2": "shape", "zarr 3": "shape"}
GRIDS = {"n5": "blockSize", "precomputed": "chunk_sizes", "zarr 2": "chunks", "zarr 3": "chunk_shape"}


def refused(folder: Path, format: str, dataset: str | None, message: str) -> None:
    for read in (lambda: open_array(folder, format, dataset), lambda: open_chunked(folder.as_uri(), format, dataset)):
        with pytest.raises(InputError, match=message):
            read()


def change(value, key: str, new) -> None:
    """Replace what stands under the key, at any depth."""
    for name, inner in list(value.items() if isinstance(value, dict) else enumerate(value)):
        if name == key:
            value[name] = new
        elif isinstance(inner, (dict, list)):
            change(inner, key, new)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", [b"{", b"\xff\xfe", b"[]", b"3", b'"a"', b"null", b"[" * 100_000, b"9" * 5000])
def test_what_is_no_json_object_is_named(tmp_path, volume, kind, text):
    file, format, dataset = write(tmp_path / "v", kind, volume)
    file.write_bytes(text)
    refused(
        tmp_path / "v", format, dataset, rf"/v: its metadata cannot be used: .*{file.name} (is no JSON|must be a JSON)"
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [[5, -7, 11], [5, 7.5, 11], "5", None, 5, [5, 10**30, 11], [True, 7, 11], [], {}])
def test_shapes_that_are_none(tmp_path, volume, kind, value):
    file, format, dataset = write(tmp_path / "v", kind, volume)
    described = json.loads(file.read_text())
    change(described, SHAPES[kind], value)
    file.write_text(json.dumps(described))
    refused(tmp_path / "v", format, dataset, f"its metadata cannot be used: {SHAPES[kind]} must be whole numbers")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [[2, 0, 4], [2, -3, 4], [2, 3], "a", None])
def test_chunks_that_are_none(tmp_path, volume, kind, value):
    file, format, dataset = write(tmp_path / "v", kind, volume)
    described = json.loads(file.read_text())
    change(described, GRIDS[kind], [value] if kind == "precomputed" else value)
    file.write_text(json.dumps(described))
    refused(tmp_path / "v", format, dataset, "its metadata cannot be used: ")


@pytest.mark.parametrize("kind", KINDS)
def test_chunks_that_no_memory_holds(tmp_path, volume, kind):
    file, format, dataset = write(tmp_path / "v", kind, volume)
    described = json.loads(file.read_text())
    change(described, GRIDS[kind], [[10**4] * 3] if kind == "precomputed" else [10**4] * 3)
    file.write_text(json.dumps(described))
    refused(tmp_path / "v", format, dataset, r"declares chunks of shape \[10000, .* more than the|blockSize")


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [
        ("n5", "dataType", "uint7"),
        ("n5", "compression", {"type": "magic"}),
        ("n5", "compression", None),
        ("precomputed", "data_type", "uint7"),
        ("precomputed", "encoding", "magic"),
        ("precomputed", "resolution", "fine"),
        ("precomputed", "scales", []),
        ("precomputed", "key", 4),
        ("precomputed", "sharding", 3),
        ("zarr 2", "dtype", "<u7"),
        ("zarr 2", "dtype", 4),
        ("zarr 2", "compressor", {"id": "magic"}),
        ("zarr 2", "order", 3),
        ("zarr 3", "data_type", "uint7"),
        ("zarr 3", "codecs", [{"name": "magic"}]),
        ("zarr 3", "codecs", []),
        ("zarr 3", "codecs", 3),
        ("zarr 3", "chunk_grid", "regular"),
        ("zarr 3", "chunk_key_encoding", None),
        ("zarr 3", "attributes", 3),
    ],
)
def test_the_reason_is_told(tmp_path, volume, kind, key, value):
    file, format, dataset = write(tmp_path / "v", kind, volume)
    described = json.loads(file.read_text())
    if key == "sharding":
        described["scales"][0]["sharding"] = value
    change(described, key, value)
    file.write_text(json.dumps(described))
    refused(tmp_path / "v", format, dataset, r"/v: its metadata cannot be used: ")


@pytest.mark.parametrize("driver", ["zarr", "zarr3"])
@pytest.mark.parametrize("group", [None, 2, 3])
def test_an_array_needs_no_group_of_its_version(tmp_path, volume, driver, group):
    if group:
        zarr.open_group(str(tmp_path / "v"), zarr_format=group)
    spec = {"driver": driver, "kvstore": {"driver": "file", "path": f"{tmp_path}/v/em/raw/"}}
    ts.open(spec, create=True, dtype=ts.uint16, shape=SHAPE).result().write(volume).result()
    np.testing.assert_array_equal(open_array(tmp_path / "v", "zarr", "em/raw")[:], volume)
    np.testing.assert_array_equal(open_chunked((tmp_path / "v").as_uri(), "zarr", "em/raw")[:], volume)


@pytest.mark.parametrize("version", [2, 3])
def test_an_array_that_consolidated_metadata_do_not_list(tmp_path, volume, version):
    group = zarr.open_group(str(tmp_path / "v"), zarr_format=version)
    group.create_array("first", data=volume[:1])
    zarr.consolidate_metadata(str(tmp_path / "v"))
    zarr.create_array(str(tmp_path / "v" / "raw"), data=volume, zarr_format=version)
    np.testing.assert_array_equal(open_array(tmp_path / "v", "zarr", "raw")[:], volume)


def test_a_group_whose_metadata_are_gone_still_has_its_image(tmp_path, volume):
    group = zarr.open_group(str(tmp_path / "v"), zarr_format=2)
    group.create_array("a/s0", data=volume)
    axes = [{"name": axis, "unit": "nanometer"} for axis in "zyx"]
    scale = {"type": "scale", "scale": [40, 8, 4]}
    group["a"].attrs["multiscales"] = [
        {"axes": axes, "datasets": [{"path": "s0", "coordinateTransformations": [scale]}]}
    ]
    (tmp_path / "v" / "a" / ".zgroup").unlink()
    (tmp_path / "v" / ".zgroup").unlink()
    for dataset in ("a", "a/s0"):
        array = open_array(tmp_path / "v", "zarr", dataset)
        np.testing.assert_array_equal(array[:], volume)
        assert array.voxel_size_nm == (40, 8, 4)
    shutil.rmtree(tmp_path / "v" / "a" / "s0")
    with pytest.raises(InputError, match=r"/v has no zarr array 'a/s0'; it has \[\]"):
        open_array(tmp_path / "v", "zarr", "a")
