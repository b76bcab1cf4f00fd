"""Headers that say more than a file holds or than is allowed, and packed files that unpack to more."""

import gzip
import zlib
from pathlib import Path

import mrcfile
import nibabel
import nrrd
import numpy as np
import pytest

from tokenunify.data.formats.readers import open_array
from tokenunify.errors import InputError

SHAPE = (5, 7, 11)


@pytest.fixture
def volume() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, SHAPE).astype(np.uint8)


def left(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def npy(path: Path, volume: np.ndarray) -> None:
    with open(path, "wb") as file:
        np.save(file, volume)


def mrc(path: Path, volume: np.ndarray) -> None:
    with mrcfile.new(path) as file:
        file.set_data(volume.astype(np.int16))


def nifti(path: Path, volume: np.ndarray) -> None:
    nibabel.save(nibabel.Nifti1Image(volume.T, np.eye(4)), path)


WRITERS = {"npy": (npy, "v.npy"), "mrc": (mrc, "v.mrc"), "nifti": (nifti, "v.nii")}


@pytest.mark.parametrize("format", WRITERS)
def test_a_packed_file_is_unpacked_up_to_the_limit(tmp_path, volume, format):
    write, name = WRITERS[format]
    write(tmp_path / name, volume)
    size = (tmp_path / name).stat().st_size
    path = tmp_path / f"{name}.gz"
    path.write_bytes(gzip.compress((tmp_path / name).read_bytes()))
    scratch = tmp_path / "scratch"
    with pytest.raises(InputError, match=rf"{name}\.gz: unpacked it exceeds .* GB; .*raise download\.max_unpacked_gb"):
        open_array(path, format, None, scratch, max_bytes=size - 1)
    assert left(scratch) == []
    assert open_array(path, format, None, scratch, max_bytes=size).shape == SHAPE


def test_a_bomb_is_unpacked_no_further_than_the_limit(tmp_path):
    (tmp_path / "v.npy").write_bytes(gzip.compress(bytes(50_000_000)))
    with pytest.raises(InputError, match=r"v\.npy: unpacked it exceeds 0\.001 GB"):
        open_array(tmp_path / "v.npy", "npy", None, tmp_path / "scratch", max_bytes=1e6)
    assert left(tmp_path / "scratch") == []


def nrrd_file(path: Path, sizes: str, voxels: bytes, *more: str) -> Path:
    lines = ["NRRD0004", "type: uint8", "dimension: 3", f"sizes: {sizes}", *more]
    path.write_bytes("\n".join(lines).encode() + b"\n\n" + voxels)
    return path


def test_a_packed_nrrd_is_unpacked_up_to_the_limit(tmp_path, volume):
    path = nrrd_file(tmp_path / "v.nrrd", "11 7 5", zlib.compress(volume.tobytes()), "encoding: gzip")
    with pytest.raises(InputError, match=r"v\.nrrd: unpacked it exceeds .*raise download\.max_unpacked_gb"):
        open_array(path, "nrrd", None, tmp_path / "scratch", max_bytes=384)
    assert left(tmp_path / "scratch") == []
    np.testing.assert_array_equal(open_array(path, "nrrd", None, tmp_path / "scratch", max_bytes=385)[:], volume)


def test_of_a_packed_nrrd_no_more_is_unpacked_than_its_voxels(tmp_path, volume):
    stream = zlib.compress(volume.tobytes() + bytes(50_000_000))
    path = nrrd_file(tmp_path / "v.nrrd", "11 7 5", stream, "encoding: gzip")
    np.testing.assert_array_equal(open_array(path, "nrrd", None, tmp_path / "scratch")[:], volume)
    assert [file.stat().st_size for file in left(tmp_path / "scratch")] == [385]


@pytest.mark.parametrize("encoding", ["raw", "gzip"])
@pytest.mark.parametrize("line", ["line skip: 1000000000000", "line skip: -3", "byte skip: -7", "lineskip: 9999999999"])
def test_a_nrrd_that_skips_what_is_not_there(tmp_path, volume, encoding, line):
    voxels = volume.tobytes() if encoding == "raw" else zlib.compress(volume.tobytes())
    path = nrrd_file(tmp_path / "v.nrrd", "11 7 5", voxels, f"encoding: {encoding}", line)
    with pytest.raises(InputError, match=r"v\.nrrd cannot be read .*its header tells to skip"):
        open_array(path, "nrrd", None, tmp_path / "scratch")


def test_the_order_of_bytes_must_be_told(tmp_path):
    path = tmp_path / "v.nrrd"
    nrrd.write(str(path), np.ones(SHAPE, np.uint16), {"encoding": "raw"})
    path.write_bytes(path.read_bytes().replace(b"endian: little\n", b""))
    with pytest.raises(InputError, match=r"v\.nrrd"):
        open_array(path, "nrrd", None, tmp_path / "scratch")


@pytest.mark.parametrize("size", [6, 10**6, 2**31 - 1])
def test_headers_that_tell_of_more_than_there_is(tmp_path, volume, size):
    nrrd_file(tmp_path / "v.nrrd", f"{size} 7 {size}", volume.tobytes(), "encoding: raw")
    mrc(tmp_path / "v.mrc", volume)
    head = bytearray((tmp_path / "v.mrc").read_bytes())
    head[:12] = np.array([11, 7, size], "<i4").tobytes()
    (tmp_path / "v.mrc").write_bytes(head)
    nifti(tmp_path / "v.nii", volume)
    head = bytearray((tmp_path / "v.nii").read_bytes())
    head[40:48] = np.array([3, 11, 7, min(size, 2**15 - 1)], "<i2").tobytes()
    (tmp_path / "v.nii").write_bytes(head)
    header = {"descr": "|u1", "fortran_order": False, "shape": (size, 7, size)}
    with open(tmp_path / "v.npy", "wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        file.write(volume.tobytes()[:200])
    for name, format in (("v.nrrd", "nrrd"), ("v.mrc", "mrc"), ("v.nii", "nifti"), ("v.npy", "npy")):
        if name == "v.nrrd" and size == 6:
            continue
        with pytest.raises(InputError, match=rf"{name} cannot be read"):
            open_array(tmp_path / name, format, None, tmp_path / "scratch")


@pytest.mark.parametrize("place", [(92, "<i4", -900), (40, "<i2", -3), (108, "<f4", -50)])
def test_headers_that_tell_of_less_than_nothing(tmp_path, volume, place):
    offset, dtype, value = place
    format = "mrc" if offset == 92 else "nifti"
    write, name = WRITERS[format]
    write(tmp_path / name, volume)
    data = bytearray((tmp_path / name).read_bytes())
    number = np.array([value], dtype).tobytes()
    data[offset : offset + len(number)] = number
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=name):
        open_array(tmp_path / name, format, None, tmp_path / "scratch")
