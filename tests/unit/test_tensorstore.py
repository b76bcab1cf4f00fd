"""Precomputed, n5 and zarr through tensorstore, against files written by hand as specified, or by zarr."""

import gzip
import json
import struct
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import zarr

from tokenunify.data.formats.tensorstore import open_chunked
from tokenunify.errors import InputError

SHAPE = (5, 7, 11)
CHUNK = (2, 3, 4)
BOX = (slice(1, 4), slice(0, 5), slice(6, 11))


@pytest.fixture
def volume() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 60_000, SHAPE).astype(np.uint16)


def boxes(shape):
    for position in product(*(range(0, n, c) for n, c in zip(shape, CHUNK, strict=True))):
        yield position, tuple(slice(p, min(p + c, n)) for p, c, n in zip(position, CHUNK, shape, strict=True))


def precomputed(folder: Path, *scales: np.ndarray) -> Path:
    """Raw chunks, named by their boxes (x, y, z, from the offset 100, 20, 3 on), x fastest within."""
    described, offset = [], (3, 20, 100)
    for number, array in enumerate(scales):
        factor = 2**number
        key = f"{4 * factor}_{8 * factor}_40"
        described.append(
            {
                "key": key,
                "size": list(array.shape[::-1]),
                "resolution": [4 * factor, 8 * factor, 40],
                "chunk_sizes": [list(CHUNK[::-1])],
                "encoding": "raw",
                "voxel_offset": list(offset[::-1]),
            }
        )
        (folder / key).mkdir(parents=True)
        for _, box in boxes(array.shape):
            names = [f"{o + b.start}-{o + b.stop}" for o, b in zip(offset, box, strict=True)]
            (folder / key / "_".join(names[::-1])).write_bytes(array[box].tobytes())
    info = {"type": "image", "data_type": "uint16", "num_channels": 1, "scales": described}
    (folder / "info").write_text(json.dumps(info))
    return folder


def n5(folder: Path, array: np.ndarray, **attributes) -> Path:
    """Big-endian blocks packed with gzip, each with its size; dimensions x, y, z."""
    dataset = folder / "em" / "s0"
    dataset.mkdir(parents=True)
    (folder / "attributes.json").write_text(json.dumps({"n5": "2.0.0"}))
    described = {"dimensions": array.shape[::-1], "blockSize": CHUNK[::-1], "dataType": "uint16"}
    described |= {"compression": {"type": "gzip"}, **attributes}
    (dataset / "attributes.json").write_text(json.dumps(described))
    for position, box in boxes(array.shape):
        place = dataset.joinpath(*(str(p // c) for p, c in zip(position[::-1], CHUNK[::-1], strict=True)))
        place.parent.mkdir(parents=True, exist_ok=True)
        header = struct.pack(">HH3I", 0, 3, *array[box].shape[::-1])
        place.write_bytes(header + gzip.compress(array[box].astype(">u2").tobytes()))
    return folder


def check(array, volume, voxel_size):
    assert (array.shape, array.dtype, array.voxel_size_nm) == (volume.shape, volume.dtype, voxel_size)
    np.testing.assert_array_equal(array[:], volume)
    np.testing.assert_array_equal(array[BOX], volume[BOX])
    np.testing.assert_array_equal(array[2], volume[2])


def test_precomputed(tmp_path, volume):
    half = np.ascontiguousarray(volume[:, ::2, ::2])
    path = precomputed(tmp_path / "v", volume, half)
    check(open_chunked(path, "precomputed"), volume, (40, 8, 4))
    coarse = open_chunked(path, "precomputed", "8_16_40")
    assert (coarse.shape, coarse.voxel_size_nm) == (half.shape, (40, 16, 8))
    np.testing.assert_array_equal(coarse[:], half)


def test_precomputed_at_an_address(tmp_path, volume):
    check(open_chunked(precomputed(tmp_path / "v", volume).as_uri(), "precomputed"), volume, (40, 8, 4))


def test_a_precomputed_scale_that_is_not_there(tmp_path, volume):
    path = precomputed(tmp_path / "v", volume)
    with pytest.raises(InputError, match=r"no scale '8'; it has \['4_8_40'\]"):
        open_chunked(path, "precomputed", "8")
    with pytest.raises(InputError, match="no `info`"):
        open_chunked(tmp_path, "precomputed")


@pytest.mark.parametrize(
    "attributes",
    [
        {"resolution": [4, 8, 40], "units": ["nm", "nm", "nm"]},
        {"resolution": [0.004, 0.008, 0.04], "units": ["um", "um", "um"]},
        {"pixelResolution": {"unit": "um", "dimensions": [0.004, 0.008, 0.04]}},
    ],
)
def test_n5(tmp_path, volume, attributes):
    array = open_chunked(n5(tmp_path / "v.n5", volume, **attributes), "n5", "em/s0")
    assert array.voxel_size_nm == pytest.approx((40, 8, 4))
    check(array, volume, array.voxel_size_nm)


def test_n5_with_axes_in_another_order(tmp_path, volume):
    turned = np.ascontiguousarray(volume.transpose(2, 0, 1))  # x, z, y; the file's axes are y, z, x
    path = n5(tmp_path / "v.n5", turned, axes=["y", "z", "x"], resolution=[8, 40, 4])
    check(open_chunked(path, "n5", "em/s0"), volume, (40, 8, 4))


def test_an_n5_array_that_is_not_there(tmp_path, volume):
    path = n5(tmp_path / "v.n5", volume)
    assert open_chunked(path, "n5", "em/s0").voxel_size_nm is None
    with pytest.raises(InputError, match="no n5 array 'em'; give the array's path"):
        open_chunked(path, "n5", "em")


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("dataset", [None, "s0"])
def test_ome_zarr(tmp_path, volume, version, dataset):
    group = zarr.open_group(str(tmp_path / "v.zarr"), zarr_format=version)
    group.create_array("s0", data=volume[None], chunks=(1, *CHUNK))
    axes = [{"name": "c"}, *({"name": name, "unit": "micrometer"} for name in "zyx")]
    scale = {"type": "scale", "scale": [1, 0.04, 0.008, 0.004]}
    image = {"axes": axes, "datasets": [{"path": "s0", "coordinateTransformations": [scale]}]}
    group.attrs.update({"multiscales": [image]} if version == 2 else {"ome": {"multiscales": [image]}})
    array = open_chunked(tmp_path / "v.zarr", "zarr", dataset)
    assert array.voxel_size_nm == pytest.approx((40, 8, 4))
    check(array, volume, array.voxel_size_nm)


@pytest.mark.parametrize("version", [2, 3])
def test_a_plain_zarr_array(tmp_path, volume, version):
    group = zarr.open_group(str(tmp_path / "v.zarr"), zarr_format=version)
    group.create_array("em/raw", data=volume, chunks=CHUNK, attributes={"resolution": [40, 8, 4]})
    check(open_chunked(tmp_path / "v.zarr", "zarr", "em/raw"), volume, (40, 8, 4))
    with pytest.raises(InputError, match="no zarr array 'em'"):
        open_chunked(tmp_path / "v.zarr", "zarr", "em")


def test_a_damaged_chunk_is_named(tmp_path, volume):
    path = precomputed(tmp_path / "v", volume)
    chunk = next((path / "4_8_40").iterdir())
    chunk.write_bytes(chunk.read_bytes()[:5])
    with pytest.raises(InputError, match=r"/v cannot be read"):
        open_chunked(path, "precomputed")[:]
