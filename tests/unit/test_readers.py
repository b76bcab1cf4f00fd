"""Every format gives the same array, whole and in boxes, and says what is wrong with a bad file."""

import errno
import gzip
import shutil
import struct
import zlib
from pathlib import Path

import h5py
import imageio.v3 as imageio
import numpy as np
import pytest
import tifffile
import zarr

from tokenunify.data.formats import compressed, images
from tokenunify.data.formats.readers import open_array
from tokenunify.data.formats.source_array import SourceArray
from tokenunify.errors import InputError

SHAPE = (5, 7, 11)
BOX = (slice(1, 4), slice(0, 5), slice(6, 11))


@pytest.fixture
def volume() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, SHAPE).astype(np.uint8)


def _hdf5(folder: Path, volume: np.ndarray) -> tuple[Path, str | None]:
    with h5py.File(folder / "v.h5", "w") as file:
        file["volumes/raw"] = volume
    return folder / "v.h5", "volumes/raw"


def _npy(folder, volume):
    np.save(folder / "v.npy", volume)
    return folder / "v.npy", None


def _tiff(folder, volume):
    tifffile.imwrite(folder / "v.tif", volume, photometric="minisblack")
    return folder / "v.tif", None


def _tiff_pages(folder, volume):
    tifffile.imwrite(folder / "v.tif", volume, photometric="minisblack", compression="zlib", metadata=None)
    return folder / "v.tif", None


def _images(folder, volume):
    for z, section in enumerate(volume):
        imageio.imwrite(folder / f"s{z + 8}.png", section)  # s8, s9, s10: natural order
    return folder, None


def _tiff_images(folder, volume):
    for z, section in enumerate(volume):
        tifffile.imwrite(folder / f"s{z + 8}.tif", section)
    return folder / "s*.tif", None


def _zarr(folder, volume):
    zarr.create_array(str(folder / "v.zarr"), data=volume, chunks=(2, 3, 4))
    return folder / "v.zarr", None


def _zarr_group(folder, volume):
    zarr.open_group(str(folder / "v.zarr")).create_array("em/raw", data=volume)
    return folder / "v.zarr", "em/raw"


def _ome_zarr(folder, volume):
    group = zarr.open_group(str(folder / "v.zarr"))
    group.create_array("s0", data=volume)
    group.create_array("s1", data=volume[:, ::2, ::2])
    group.attrs["ome"] = {"version": "0.5", "multiscales": [_multiscales("nanometer", [35, 8, 8])]}
    return folder / "v.zarr", None


def _zarr_2(folder, volume):
    zarr.create_array(str(folder / "v.zarr"), data=volume, chunks=(2, 3, 4), zarr_format=2)
    return folder / "v.zarr", None


def _ome_zarr_04(folder, volume):
    """OME-Zarr 0.4: zarr 2, nested chunks, metadata beside the other attributes."""
    group = zarr.open_group(str(folder / "v.zarr"), zarr_format=2)
    for name, data in (("s0", volume), ("s1", volume[:, ::2, ::2])):
        nested = {"name": "v2", "separator": "/"}
        group.create_array(name, data=data, chunks=(2, 3, 4), chunk_key_encoding=nested)
    group.attrs["multiscales"] = [_multiscales("nanometer", [35, 8, 8])]
    return folder / "v.zarr", None


def _bioformats2raw(folder, volume):
    """Image 0 of a collection, with axes of time and channel."""
    group = zarr.open_group(str(folder / "v.zarr"), zarr_format=2)
    group.attrs["bioformats2raw.layout"] = 3
    image = group.create_group("0")
    image.create_array("0", data=volume[None, None], chunks=(1, 1, 1, 7, 11))
    axes = [
        {"name": "t", "type": "time"},
        {"name": "c", "type": "channel"},
        *_multiscales("nanometer", [1] * 3)["axes"],
    ]
    scale = {"type": "scale", "scale": [1, 1, 35, 8, 8]}
    image.attrs["multiscales"] = [{"axes": axes, "datasets": [{"path": "0", "coordinateTransformations": [scale]}]}]
    return folder / "v.zarr", "0"


def _multiscales(unit: str, scale: list[float], names: str = "zyx") -> dict:
    axes = [{"name": axis, "type": "space", "unit": unit} for axis in names]
    datasets = [
        {
            "path": f"s{i}",
            "coordinateTransformations": [{"type": "scale", "scale": [scale[0], scale[1] * f, scale[2] * f]}],
        }
        for i, f in enumerate((1, 2))
    ]
    return {"axes": axes, "datasets": datasets}


def _packed(write):
    def pack(folder, volume):
        path, dataset = write(folder, volume)
        with open(path, "rb") as file, gzip.open(f"{path}.gz", "wb") as packed:
            shutil.copyfileobj(file, packed)
        path.unlink()
        return f"{path}.gz", dataset

    return pack


WRITERS = {
    "hdf5": ("hdf5", _hdf5),
    "hdf5.gz": ("hdf5", _packed(_hdf5)),
    "npy": ("npy", _npy),
    "npy.gz": ("npy", _packed(_npy)),
    "tiff": ("tiff", _tiff),
    "tiff.gz": ("tiff", _packed(_tiff)),
    "tiff compressed pages": ("tiff", _tiff_pages),
    "images": ("images", _images),
    "tiff images": ("images", _tiff_images),
    "zarr": ("zarr", _zarr),
    "zarr group": ("zarr", _zarr_group),
    "ome-zarr": ("zarr", _ome_zarr),
    "zarr 2": ("zarr", _zarr_2),
    "ome-zarr 0.4": ("zarr", _ome_zarr_04),
    "bioformats2raw": ("zarr", _bioformats2raw),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_reads_the_same(tmp_path, volume, name):
    format, write = WRITERS[name]
    (tmp_path / "in").mkdir()
    path, dataset = write(tmp_path / "in", volume)
    array = open_array(path, format, dataset, tmp_path / "scratch")
    assert (array.shape, array.dtype) == (SHAPE, np.uint8)
    np.testing.assert_array_equal(array[BOX], volume[BOX])
    np.testing.assert_array_equal(array[:], volume)
    np.testing.assert_array_equal(array[2], volume[2])


@pytest.mark.parametrize("name", ["hdf5.gz", "npy.gz", "tiff.gz"])
def test_packed_files_are_known_by_their_content(tmp_path, volume, name):
    format, write = WRITERS[name]
    path, dataset = write(tmp_path, volume)
    unnamed = shutil.move(path, tmp_path / "0123abcd-content")
    np.testing.assert_array_equal(open_array(unnamed, format, dataset, tmp_path / "scratch")[:], volume)


def test_sections_are_kept_as_long_as_asked(tmp_path, volume, monkeypatch):
    path, _ = _images(tmp_path, volume)
    array = open_array(path, "images")
    decode, decoded = images.read_image, []

    def count(file: Path, is_grey: bool) -> np.ndarray:
        decoded.append(file.stem)
        return decode(file, is_grey)

    monkeypatch.setattr(images, "read_image", count)
    with array.keeping(3, tmp_path):
        for _ in range(2):
            np.testing.assert_array_equal(array[1:4, :, 3:5], volume[1:4, :, 3:5])
    assert sorted(decoded) == ["s10", "s11", "s9"]
    array[1:4]
    assert sorted(decoded) == ["s10", "s10", "s11", "s11", "s9", "s9"]


def test_neuroproof_passes_the_stack_through_its_table(tmp_path):
    stack = np.random.default_rng(1).choice([0, 3, 5, 900], SHAPE).astype(np.int32)
    bodies = {900: 7, 0: 0, 5: 7, 3: 2**40}
    with h5py.File(tmp_path / "gt.h5", "w") as file:
        file["stack"], file["transforms"] = stack, np.array(list(bodies.items()))
    expected = np.vectorize(bodies.get)(stack)
    np.testing.assert_array_equal(open_array(tmp_path / "gt.h5", "neuroproof")[BOX], expected[BOX])


def test_neuroproof_refuses_an_id_without_a_body(tmp_path):
    with h5py.File(tmp_path / "gt.h5", "w") as file:
        file["stack"], file["transforms"] = np.full(SHAPE, 4), np.array([[3, 1], [5, 2]])
    with pytest.raises(InputError, match=r"gt\.h5: supervoxel 4 is not in `transforms`"):
        open_array(tmp_path / "gt.h5", "neuroproof")[:]


def test_neuroproof_on_fib25(tmp_path, real_data):
    folder = real_data / "fib25"
    truth = open_array(folder / "groundtruth.h5.gz", "neuroproof", None, tmp_path)
    labels = open_array(folder / "training_sample2.h5", "hdf5", "labels")
    assert truth.shape == labels.shape == (250, 250, 250)
    np.testing.assert_array_equal(truth[:], labels[:])


def test_dtypes_are_kept(tmp_path):
    ids = np.array([0, 1, 2**64 - 1], np.uint64).reshape(1, 1, 3).repeat(4, axis=1)
    np.save(tmp_path / "ids.npy", ids)
    np.testing.assert_array_equal(open_array(tmp_path / "ids.npy", "npy")[:], ids)


@pytest.mark.parametrize("attribute", ["resolution", "voxel_size_nm", "voxel_size_nm_zyx"])
def test_hdf5_states_its_voxel_size(tmp_path, volume, attribute):
    path, dataset = _hdf5(tmp_path, volume)
    assert open_array(path, "hdf5", dataset).voxel_size_nm is None
    with h5py.File(path, "r+") as file:
        file[dataset].attrs[attribute] = (40, 4, 4)
    assert open_array(path, "hdf5", dataset).voxel_size_nm == (40, 4, 4)


def test_the_voxel_size_of_a_dataset_counts_more_than_that_of_its_file(tmp_path, volume):
    path, dataset = _hdf5(tmp_path, volume)
    with h5py.File(path, "r+") as file:
        file.attrs["resolution"] = (40, 4, 4)
    assert open_array(path, "hdf5", dataset).voxel_size_nm == (40, 4, 4)
    with h5py.File(path, "r+") as file:
        file[dataset].attrs["resolution"] = (40, 8, 8)
    assert open_array(path, "hdf5", dataset).voxel_size_nm == (40, 8, 8)


@pytest.mark.parametrize("value", [(0, 4, 4), (40, -4, 4), (np.nan, 4, 4), (np.inf, 4, 4), ("a", "b", "c"), "4nm", 8])
def test_a_voxel_size_that_cannot_be_one_is_not_stated(tmp_path, volume, value):
    path, dataset = _hdf5(tmp_path, volume)
    with h5py.File(path, "r+") as file:
        file[dataset].attrs["resolution"] = value
    assert open_array(path, "hdf5", dataset).voxel_size_nm is None


def test_ome_zarr_states_its_voxel_size_in_any_unit(tmp_path, volume):
    path, _ = _ome_zarr(tmp_path, volume)
    assert open_array(path, "zarr").voxel_size_nm == (35, 8, 8)
    zarr.open_group(str(path)).attrs["ome"] = {"multiscales": [_multiscales("micrometer", [0.04, 0.004, 0.004])]}
    assert open_array(path, "zarr").voxel_size_nm == pytest.approx((40, 4, 4))
    zarr.open_group(str(path)).attrs["ome"] = {"multiscales": [_multiscales("millimeter", [4e-5, 4e-6, 4e-6])]}
    assert open_array(path, "zarr").voxel_size_nm == pytest.approx((40, 4, 4))
    zarr.open_group(str(path)).attrs["ome"] = {"multiscales": [_multiscales("nanometer", [40, 0, 4])]}
    assert open_array(path, "zarr").voxel_size_nm is None


@pytest.mark.parametrize("write", [_ome_zarr_04, _bioformats2raw])
def test_older_ome_zarr_states_its_voxel_size(tmp_path, volume, write):
    path, dataset = write(tmp_path, volume)
    assert open_array(path, "zarr", dataset).voxel_size_nm == (35, 8, 8)


def test_a_scale_of_all_levels_is_multiplied_in(tmp_path, volume):
    path, _ = _ome_zarr(tmp_path, volume)
    common = {"coordinateTransformations": [{"type": "scale", "scale": [0.5, 2, 3]}]}
    image = _multiscales("nanometer", [35, 8, 8]) | common
    zarr.open_group(str(path)).attrs["ome"] = {"multiscales": [image]}
    assert open_array(path, "zarr").voxel_size_nm == (17.5, 16, 24)


def test_a_level_given_as_dataset_states_its_own_voxel_size(tmp_path, volume):
    path, _ = _ome_zarr(tmp_path, volume)
    level = open_array(path, "zarr", "s1")
    assert (level.shape, level.voxel_size_nm) == ((5, 4, 6), (35, 16, 16))
    shutil.rmtree(path)
    path, _ = _bioformats2raw(tmp_path, volume)
    level = open_array(path, "zarr", "0/0")
    assert (level.shape, level.voxel_size_nm) == (SHAPE, (35, 8, 8))


def test_axes_in_another_order_are_read_as_zyx(tmp_path, volume):
    group = zarr.open_group(str(tmp_path / "v.zarr"))
    group.create_array("s0", data=volume.transpose(1, 2, 0))
    axes = _multiscales("nanometer", [1] * 3, "yxz")["axes"]
    scale = {"type": "scale", "scale": [8, 4, 35]}
    level = {"path": "s0", "coordinateTransformations": [scale]}
    group.attrs["ome"] = {"multiscales": [{"axes": axes, "datasets": [level]}]}
    for dataset in (None, "s0"):
        array = open_array(tmp_path / "v.zarr", "zarr", dataset)
        assert (array.shape, array.voxel_size_nm) == (SHAPE, (35, 8, 4))
        np.testing.assert_array_equal(array[BOX], volume[BOX])
        np.testing.assert_array_equal(array[2, 1:4], volume[2, 1:4])
        np.testing.assert_array_equal(array[1:3, 4], volume[1:3, 4])


def test_several_channels_are_refused(tmp_path, volume):
    path, dataset = _bioformats2raw(tmp_path, volume)
    zarr.open_group(str(path)).create_array("0/0", data=volume[None, None].repeat(2, 1), overwrite=True)
    with pytest.raises(InputError, match=r"shape \[1, 2, 5, 7, 11\]: expected .* at most t and c of size 1"):
        open_array(path, "zarr", dataset)


def test_time_and_channel_are_dropped_without_reading_the_array(tmp_path, volume):
    path, dataset = _bioformats2raw(tmp_path, volume)
    (path / "0" / "0" / "0.0.0.0.0").write_bytes(b"damaged")
    array = open_array(path, "zarr", dataset)
    np.testing.assert_array_equal(array[1:], volume[1:])
    with pytest.raises(InputError, match="cannot be read"):
        array[0]


def _imagej(path: Path, volume: np.ndarray, unit: str, pixel: float = 0.004) -> Path:
    metadata = {"axes": "ZYX", "spacing": 0.05, "unit": unit}
    tifffile.imwrite(path, volume, imagej=True, resolution=(1 / pixel, 1 / pixel), metadata=metadata)
    return path


@pytest.mark.parametrize("unit", ["um", "micron", r"\u00B5m"])
def test_imagej_states_its_voxel_size(tmp_path, volume, unit):
    path = _imagej(tmp_path / "v.tif", volume, unit)
    assert open_array(path, "tiff").voxel_size_nm == pytest.approx((50, 4, 4), rel=1e-3)


def test_imagej_without_a_pixel_size_states_none(tmp_path, volume):
    path = _imagej(tmp_path / "v.tif", volume, "um", pixel=np.inf)
    assert open_array(path, "tiff").voxel_size_nm is None


def test_a_missing_dataset_lists_those_that_are_there(tmp_path, volume):
    path, _ = _hdf5(tmp_path, volume)
    for wrong in ("main", "volumes"):
        with pytest.raises(InputError, match=rf"v.h5 has no dataset '{wrong}'; it has \['volumes/raw'\]"):
            open_array(path, "hdf5", wrong)


def test_a_missing_zarr_node_lists_those_that_are_there(tmp_path, volume):
    path, _ = _zarr_group(tmp_path, volume)
    with pytest.raises(InputError, match=r"v.zarr has no zarr array 'raw'; it has \['em/raw'\]"):
        open_array(path, "zarr", "raw")
    with pytest.raises(InputError, match="group without multiscales"):
        open_array(path, "zarr")


@pytest.mark.parametrize("shape", [(7, 11), (2, 5, 7, 11)])
def test_other_than_three_axes_are_refused(tmp_path, shape):
    np.save(tmp_path / "v.npy", np.zeros(shape, np.uint8))
    with pytest.raises(InputError, match=f"v.npy: expected an array of 3 axes z, y, x, found {len(shape)} axes"):
        open_array(tmp_path / "v.npy", "npy")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_archive_of_numpy_is_refused(tmp_path, volume, save):
    save(tmp_path / "v.npz", em=volume, other=volume)
    with pytest.raises(InputError, match=r"v\.npz is an archive of the arrays \['em', 'other'\]; save one"):
        open_array(tmp_path / "v.npz", "npy")


@pytest.mark.parametrize("shape", [(0, 7, 11), (5, 7, 0)])
def test_an_axis_without_voxels_is_refused(shape):
    with pytest.raises(InputError, match=rf"v\.npy: expected voxels in every axis, found shape \[{shape[0]}, 7"):
        SourceArray("v.npy", np.zeros(shape, np.uint8))


def _png(*chunks: tuple[bytes, bytes]) -> bytes:
    packed = [struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def _header(width: int, height: int) -> tuple[bytes, bytes]:
    return b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)


def test_large_sections_are_read(tmp_path):
    width, height = 20_000, 9_000
    rows = zlib.compress(bytes((width + 1) * height), 1)
    (tmp_path / "1.png").write_bytes(_png(_header(width, height), (b"IDAT", rows), (b"IEND", b"")))
    assert open_array(tmp_path, "images").shape == (1, height, width)


@pytest.mark.parametrize("damage", ["truncated", "a bit"])
def test_a_broken_png_is_named(tmp_path, damage):
    whole = _png(_header(6, 9), (b"IDAT", zlib.compress(bytes(63))), (b"IEND", b""))
    (tmp_path / "1.png").write_bytes(whole[:3] if damage == "truncated" else whole[:30] + b"?" + whole[31:])
    with pytest.raises(InputError, match=r"1\.png cannot be read"):
        open_array(tmp_path, "images")


def test_colour_images_are_refused(tmp_path):
    imageio.imwrite(tmp_path / "1.png", np.arange(162, dtype=np.uint8).reshape(6, 9, 3))
    with pytest.raises(InputError, match=r"1\.png: expected a grey image, found colours; save it as grey"):
        open_array(tmp_path, "images")


def test_sections_of_different_size_are_refused(tmp_path):
    imageio.imwrite(tmp_path / "1.png", np.zeros((6, 9), np.uint8))
    imageio.imwrite(tmp_path / "2.png", np.zeros((6, 8), np.uint8))
    with pytest.raises(InputError, match=r"sections differ.*\[6, 9\].*\[6, 8\]"):
        open_array(tmp_path, "images")[:]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_not_blamed_on_the_file(tmp_path, volume, monkeypatch, number):
    path, dataset = _packed(_hdf5)(tmp_path, volume)

    def full(*_):
        raise OSError(number, "No space left on device")

    monkeypatch.setattr(compressed.os, "replace", full)
    with pytest.raises(OSError, match="No space left") as caught:
        open_array(path, "hdf5", dataset, tmp_path / "scratch")
    assert not isinstance(caught.value, InputError)


@pytest.mark.parametrize("name", ["hdf5", "npy", "tiff", "hdf5.gz", "zarr"])
def test_a_file_that_is_something_else_is_named(tmp_path, name):
    format, suffix = WRITERS[name][0], ".gz" if name.endswith(".gz") else ""
    bad = tmp_path / f"bad{suffix}"
    bad.write_bytes(b"<html>not found</html>")
    with pytest.raises(InputError, match=f"{bad.name} cannot be read"):
        open_array(bad, format, "main" if format == "hdf5" else None, tmp_path / "scratch")


@pytest.mark.parametrize("name", ["hdf5", "npy", "tiff compressed pages", "hdf5.gz"])
def test_a_truncated_file_is_named(tmp_path, name):
    volume = np.random.default_rng(0).integers(0, 256, (9, 60, 70)).astype(np.uint8)
    path, dataset = WRITERS[name][1](tmp_path, volume)
    data = Path(path).read_bytes()
    Path(path).write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=f"{Path(path).name}.* cannot be read"):
        open_array(path, WRITERS[name][0], dataset, tmp_path / "scratch")[:]
