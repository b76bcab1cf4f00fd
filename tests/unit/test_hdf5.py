"""What an HDF5 data set is made of, what it may be made of, and why one cannot be read."""

import gzip
import os
import resource
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from tests.hdf5_files import SHAPE, external, external_link, numbered, unlimited, virtual
from tokenunify.data.formats import hdf5_links, hdf5_references
from tokenunify.data.formats.readers import open_array
from tokenunify.data.read_errors import DAMAGED, FORBIDDEN, MACHINE, NO_CODEC, advice
from tokenunify.errors import InputError
from tokenunify.geometry import Roi

WHOLE = Roi((0, 0, 0), SHAPE)
MADE_OF_OTHERS = {
    "virtual": virtual,
    "virtual by absolute names": lambda folder, volume: virtual(
        folder, volume, name=lambda z: str(folder / f"s{z}.h5")
    ),
    "virtual by way of ..": lambda folder, volume: virtual(folder, volume, name=lambda z: f"../{folder.name}/s{z}.h5"),
    "files by number": numbered,
    "data sets by number": lambda folder, volume: numbered(folder, volume, files=False),
    "unlimited": unlimited,
    "external storage": external,
    "external storage by absolute names": lambda folder, volume: external(folder, volume, absolute=True),
    "external link": external_link,
    "group behind an external link": lambda folder, volume: external_link(folder, volume, "group/d"),
}


@pytest.fixture
def volume() -> np.ndarray:
    return np.random.default_rng(0).integers(1, 256, SHAPE).astype(np.uint8)


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "em").mkdir()
    return tmp_path / "em"


def others(path: Path, dataset="raw", **options) -> list[str]:
    return list(hdf5_references.referred(str(path), "hdf5", dataset, **options))


@pytest.mark.parametrize("kind", MADE_OF_OTHERS)
def test_what_lies_in_the_folder_is_read_and_named(folder, volume, kind):
    path, dataset = MADE_OF_OTHERS[kind](folder, volume)
    array = open_array(path, "hdf5", dataset)
    np.testing.assert_array_equal(array[:], volume)
    assert unwritten(array, WHOLE) == 0
    assert others(path, dataset) == sorted(f.name for f in folder.iterdir() if f != path)


@pytest.mark.parametrize("kind", MADE_OF_OTHERS)
def test_what_is_gone_is_named(folder, volume, kind):
    path, dataset = MADE_OF_OTHERS[kind](folder, volume)
    gone = min(f for f in folder.iterdir() if f != path)
    gone.unlink()
    for read in (others, lambda *args: open_array(args[0], "hdf5", args[1])):
        with pytest.raises(InputError, match=rf"v\.h5 takes voxels from .*{gone.name}.*not there"):
            read(path, dataset)


@pytest.mark.parametrize("kind", MADE_OF_OTHERS)
def test_what_lies_outside_is_refused(folder, volume, kind):
    path, dataset = MADE_OF_OTHERS[kind](folder, volume)
    moved = min(f for f in folder.iterdir() if f != path)
    shutil.move(moved, folder.parent / moved.name)
    moved.symlink_to(folder.parent / moved.name)
    for read in (others, lambda *args: open_array(args[0], "hdf5", args[1])):
        with pytest.raises(InputError, match=rf"{moved.name}\), outside of its folder {folder}"):
            read(path, dataset)


@pytest.mark.parametrize("kind", MADE_OF_OTHERS)
def test_a_file_that_came_alone_refers_to_nothing(folder, volume, kind):
    path, dataset = MADE_OF_OTHERS[kind](folder, volume)
    with pytest.raises(InputError, match=r"another file, .* did not come with it"):
        others(path, dataset, alone=True)
    with open(path, "rb") as file, gzip.open(f"{path}.gz", "wb") as packed:
        shutil.copyfileobj(file, packed)
    with pytest.raises(InputError, match=r"another file, .* did not come with it"):
        open_array(f"{path}.gz", "hdf5", dataset, folder / "scratch")


def test_what_links_and_folders_lead_to_inside_is_read(folder, volume):
    path, _ = virtual(folder, volume, name=lambda z: f"in/s{z}.h5")
    (folder / "real").mkdir()
    for z in range(len(volume)):
        (folder / f"s{z}.h5").rename(folder / "real" / f"s{z}.h5")
    (folder / "in").symlink_to("real")
    (folder.parent / "link.h5").symlink_to(path)
    np.testing.assert_array_equal(open_array(folder.parent / "link.h5", "hdf5", "raw")[:], volume)
    assert others(folder.parent / "link.h5") == [f"real/s{z}.h5" for z in range(len(volume))]


def test_a_folder_that_moved_as_a_whole(folder, volume):
    virtual(folder, volume, name=lambda z: str(folder / f"s{z}.h5"))
    moved = folder.rename(folder.with_name("moved"))
    np.testing.assert_array_equal(open_array(moved / "v.h5", "hdf5", "raw")[:], volume)


def test_two_lost_files_are_not_read_from_one(folder, volume):
    path, _ = virtual(folder, volume, name=lambda z: f"/lost/{z}/s0.h5")
    with pytest.raises(InputError, match=r"/lost/0/s0\.h5 and /lost/1/s0\.h5, .* both would be read from"):
        open_array(path, "hdf5", "raw")


def test_the_folder_that_this_process_runs_in_does_not_count(folder, volume, monkeypatch):
    path, dataset = external(folder, volume)
    (folder.parent / "cwd").mkdir()
    monkeypatch.chdir(folder.parent / "cwd")
    Path("v.raw").write_bytes(bytes(volume.nbytes))
    np.testing.assert_array_equal(open_array(path, "hdf5", dataset)[:], volume)


@pytest.mark.parametrize("variable", hdf5_links.ELSEWHERE)
def test_a_variable_that_leads_elsewhere_is_refused(folder, volume, monkeypatch, variable):
    monkeypatch.setenv(variable, "/tmp")
    with pytest.raises(InputError, match=f"{variable} would make HDF5 look"):
        open_array(virtual(folder, volume)[0], "hdf5", "raw")


@pytest.mark.parametrize("size", [0, 1, SHAPE[0] * SHAPE[1] * SHAPE[2] - 1])
def test_external_storage_that_is_short_is_named(folder, volume, size):
    path, dataset = external(folder, volume)
    (folder / "v.raw").write_bytes(volume.tobytes()[:size])
    with pytest.raises(InputError, match=rf"v\.raw, of which it needs {volume.nbytes} bytes and which has {size}"):
        open_array(path, "hdf5", dataset)


@pytest.mark.parametrize("change", ["short", "no data set", "another rank"])
@pytest.mark.parametrize("part", [False, True])
def test_a_source_without_all_that_is_taken_of_it_is_named(folder, volume, change, part):
    path, _ = virtual(folder, volume, part=part)
    with h5py.File(folder / "s1.h5", "w") as file:
        if change != "no data set":
            file["d"] = volume[1, : SHAPE[1] // 2] if change == "short" else volume[1, 0]
    with pytest.raises(InputError, match=r"d in .*s1\.h5"):
        open_array(path, "hdf5", "raw")


@pytest.mark.parametrize("whole", [False, True])
def test_a_source_that_grew(folder, volume, whole):
    path, _ = virtual(folder, volume)
    if whole:
        layout = h5py.VirtualLayout(SHAPE, "u1")
        layout[:] = h5py.VirtualSource("s1.h5", "d", SHAPE)
        with h5py.File(path, "w") as file:
            file.create_virtual_dataset("raw", layout)
    expected = volume if whole else volume[1]
    for pad, grew in ((3, 0), (0, 3)):
        with h5py.File(folder / "s1.h5", "w") as file:
            file["d"] = np.pad(expected, [(0, pad), *[(0, 0)] * (expected.ndim - 2), (0, grew)])
        if grew:
            with pytest.raises(InputError, match=r"d in .*s1\.h5 has shape .*not that of which its voxels are taken"):
                open_array(path, "hdf5", "raw")
        else:
            np.testing.assert_array_equal(open_array(path, "hdf5", "raw")[:], volume)


def test_a_gap_in_numbered_sources_is_named(folder, volume):
    path, _ = numbered(folder, volume)
    (folder / "s2.h5").unlink()
    with pytest.raises(InputError, match=r"d in s2\.h5, which is not there"):
        open_array(path, "hdf5", "raw")
    path, _ = numbered(folder, volume, files=False)
    with h5py.File(folder / "s.h5", "a") as file:
        del file["d3"]
    with pytest.raises(InputError, match=r"d3 in s\.h5, which is not there"):
        open_array(path, "hdf5", "raw")


def test_unlimited_sources_of_different_length_are_refused(folder, volume):
    path, _ = unlimited(folder, volume, lengths=(SHAPE[0], SHAPE[0] - 2))
    with pytest.raises(InputError, match="the sources of /raw differ in length"):
        open_array(path, "hdf5", "raw")


def test_sources_of_sources(folder, volume):
    external_link(folder, volume)
    for name, source, dataset in (("m", "v", "raw"), ("w", "m", "d")):
        layout = h5py.VirtualLayout(SHAPE, "u1")
        layout[:] = h5py.VirtualSource(f"{source}.h5", dataset, SHAPE)
        with h5py.File(folder / f"{name}.h5", "w") as file:
            file.create_virtual_dataset("d", layout)
    np.testing.assert_array_equal(open_array(folder / "w.h5", "hdf5", "d")[:], volume)
    assert others(folder / "w.h5", "d") == ["m.h5", "other.h5", "v.h5"]
    (folder / "other.h5").unlink()
    with pytest.raises(InputError, match=r"w\.h5 takes voxels from other\.h5, which is not there"):
        open_array(folder / "w.h5", "hdf5", "d")


def test_links_and_virtual_sources_within_a_file(tmp_path, volume):
    layout = h5py.VirtualLayout(SHAPE, "u1")
    layout[:] = h5py.VirtualSource(".", "soft", SHAPE)
    with h5py.File(tmp_path / "v.h5", "w") as file:
        file["a/d"], file["soft"], file["round"] = volume, h5py.SoftLink("/a/d"), h5py.SoftLink("round")
        file.create_virtual_dataset("raw", layout)
        layout = h5py.VirtualLayout(SHAPE, "u1")
        layout[:] = h5py.VirtualSource(".", "itself", SHAPE)
        file.create_virtual_dataset("itself", layout)
    for name in ("soft", "raw"):
        np.testing.assert_array_equal(open_array(tmp_path / "v.h5", "hdf5", name)[:], volume)
        assert others(tmp_path / "v.h5", name, alone=True) == []
    for name, told in (("round", "go round in a circle"), ("itself", "made of itself")):
        with pytest.raises(InputError, match=told):
            open_array(tmp_path / "v.h5", "hdf5", name)


def test_neuroproof_of_two_files(folder, volume):
    path, _ = external_link(folder, volume, name="stack")
    with h5py.File(path, "a") as file:
        file["transforms"] = np.stack([np.arange(256), np.arange(256) + 7], axis=1).astype(np.uint64)
    np.testing.assert_array_equal(open_array(path, "neuroproof")[:], volume.astype(np.uint64) + 7)
    assert list(hdf5_references.referred(str(path), "neuroproof", None)) == ["other.h5"]
    (folder / "other.h5").rename(folder.parent / "other.h5")
    with pytest.raises(InputError, match=r"other\.h5, which is not there"):
        open_array(path, "neuroproof")


# ------------------------------------------------------------------------------------------------ open files


def test_more_sources_than_may_be_open(folder, volume, monkeypatch):
    path, _ = virtual(folder, volume)
    used = len(os.listdir("/dev/fd"))
    monkeypatch.setattr(resource, "getrlimit", lambda _: (used + hdf5_links.SPARE_FILES, used + hdf5_links.SPARE_FILES))
    with pytest.raises(InputError, match=rf"from {len(volume)} files, .*ulimit -Hn"):
        open_array(path, "hdf5", "raw")
    raised = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (used, resource.RLIM_INFINITY))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: raised.append(limits[0]))
    np.testing.assert_array_equal(open_array(path, "hdf5", "raw")[:], volume)
    assert raised[0] > used + len(volume) + hdf5_links.SPARE_FILES


def test_no_file_stays_open(folder, volume):
    path, _ = virtual(folder, volume)
    used = len(os.listdir("/dev/fd"))
    others(path)
    assert len(os.listdir("/dev/fd")) == used


def test_a_source_that_vanishes_while_it_is_read(folder, volume):
    path, _ = virtual(folder, volume)
    array = open_array(path, "hdf5", "raw")
    (folder / "s1.h5").unlink()
    with pytest.raises(InputError, match=r"s1\.h5, of which .*v\.h5 takes voxels, vanished while it was read"):
        array[:]


# ------------------------------------------------------------------------------------------------ never written


def unwritten(array, box):
    count = array.absence.absent(box)
    assert (count.total, count.unit) == (box.num_voxels, "voxels")
    return count.absent


def test_chunks_that_were_never_written_are_counted(tmp_path, volume):
    with h5py.File(tmp_path / "v.h5", "w") as file:
        file.create_dataset("raw", SHAPE, "u1", chunks=(2, 5, 8))[2:, :10] = volume[2:, :10]
        file.create_dataset("whole", SHAPE, "u1", chunks=(2, 5, 8))[:] = volume
        file.create_dataset("none", SHAPE, "u1")
    written = np.zeros(SHAPE, bool)
    written[2:, :10] = True
    array = open_array(tmp_path / "v.h5", "hdf5", "raw")
    for box in (WHOLE, Roi((1, 7, 3), (4, 6, 9)), Roi((3, 0, 0), (1, 5, 5))):
        assert unwritten(array, box) == np.count_nonzero(~written[box.slices])
    assert unwritten(open_array(tmp_path / "v.h5", "hdf5", "whole"), WHOLE) == 0
    assert unwritten(open_array(tmp_path / "v.h5", "hdf5", "none"), WHOLE) == volume.size


def test_unwritten_voxels_of_turned_axes(tmp_path, volume):
    with h5py.File(tmp_path / "v.h5", "w") as file:
        item = file.create_dataset("raw", (*SHAPE[::-1], 1), "u1", chunks=(*SHAPE[:0:-1], 1, 1))
        item[..., 1:, 0] = volume.T[..., 1:]
        for dimension, name in zip(item.dims, "xyzc", strict=True):
            dimension.label = name
    array = open_array(tmp_path / "v.h5", "hdf5", "raw")
    assert unwritten(array, WHOLE) == SHAPE[1] * SHAPE[2]
    assert unwritten(array, Roi((0, 3, 4), (2, 5, 6))) == 5 * 6


def test_what_no_source_covers_or_a_source_lacks_is_counted(folder, volume):
    path, _ = virtual(folder, volume, skip=(3,))
    array = open_array(path, "hdf5", "raw")
    section = SHAPE[1] * SHAPE[2]
    assert unwritten(array, WHOLE) == section
    assert unwritten(array, Roi((2, 1, 2), (3, 4, 5))) == 4 * 5
    assert unwritten(array, Roi((0, 0, 0), (2, *SHAPE[1:]))) == 0
    del array
    with h5py.File(folder / "s1.h5", "w") as file:
        file.create_dataset("d", SHAPE[1:], "u1")
    assert unwritten(open_array(path, "hdf5", "raw"), WHOLE) == 2 * section


# ------------------------------------------------------------------------------------------------ what cannot be read


def low_level(name: str, kind) -> None:
    def write(file: h5py.File) -> None:
        h5py.h5d.create(file.id, name.encode(), kind, h5py.h5s.create_simple(SHAPE))

    return write


def odd_size():
    kind = h5py.h5t.STD_I32LE.copy()
    kind.set_size(3)
    return kind


def store(name: str, value):
    return lambda file: file.__setitem__(name, value)


ODD = {
    "compound": (store("d", np.zeros(SHAPE, [("id", "i4"), ("score", "f4")])), r"a compound of \['id', 'score'\]"),
    "complex": (store("d", np.zeros(SHAPE, "c8")), "complex64"),
    "bytes": (store("d", np.zeros(SHAPE, "S3")), r"\|S3"),
    "text": (lambda file: file.create_dataset("d", SHAPE, h5py.string_dtype()), "text or references"),
    "references": (lambda file: file.create_dataset("d", SHAPE, h5py.ref_dtype), "text or references"),
    "arrays": (low_level("d", h5py.h5t.array_create(h5py.h5t.STD_U8LE, (3,))), r"\('u1', \(3,\)\)"),
    "opaque": (low_level("d", h5py.h5t.create(h5py.h5t.OPAQUE, 3)), "V3"),
    "times": (low_level("d", h5py.h5t.UNIX_D32LE.copy()), "TypeTimeID"),
    "24 bits": (low_level("d", odd_size()), "i3"),
    "empty": (store("d", h5py.Empty("f4")), "without voxels"),
    "one axis": (store("d", np.zeros(5)), r"found 1 axes, shape \[5\]"),
    "five axes": (store("d", np.zeros((1, 1, *SHAPE))), "found 5 axes"),
    "a scalar": (store("d", 3), "found 0 axes"),
    "a group": (lambda file: file.create_group("d"), "has no dataset 'd'"),
    "a type": (store("d", np.dtype("i4")), "has no dataset 'd'"),
}


@pytest.mark.parametrize("kind", ODD)
def test_what_is_no_array_of_numbers_is_told_as_what_it_is(tmp_path, kind):
    write, told = ODD[kind]
    with h5py.File(tmp_path / "v.h5", "w") as file:
        write(file)
    with pytest.raises(InputError, match=told) as caught:
        open_array(tmp_path / "v.h5", "hdf5", "d")
    assert "may be incomplete" not in str(caught.value)


@pytest.mark.parametrize("dtype", [np.bool_, h5py.enum_dtype({"A": 0, "B": 200}, "i2"), np.float16, ">u4"])
def test_enumerations_and_booleans_are_numbers(tmp_path, volume, dtype):
    with h5py.File(tmp_path / "v.h5", "w") as file:
        file.create_dataset("d", data=(volume > 90).astype(np.uint8) * 200 if dtype is not np.bool_ else volume > 90)
        file.create_dataset("raw", SHAPE, dtype)[:] = file["d"][:]
        expected = file["d"][:]
    np.testing.assert_array_equal(open_array(tmp_path / "v.h5", "hdf5", "raw")[:], expected)


def opaque():
    kind = h5py.h5t.create(h5py.h5t.OPAQUE, 3)
    kind.set_tag(b"x")
    return kind


@pytest.mark.parametrize("name", ["odd", "resolution", "axistags", "voxel_size_nm_zyx"])
@pytest.mark.parametrize("kind", [opaque(), h5py.h5t.UNIX_D32LE.copy()])
def test_attributes_that_cannot_be_read_do_not_matter_unless_they_name_axes(tmp_path, volume, name, kind):
    with h5py.File(tmp_path / "v.h5", "w") as file:
        file["raw"] = volume
        for item in (file, file["raw"]):
            h5py.h5a.create(item.id, name.encode(), kind, h5py.h5s.create(h5py.h5s.SCALAR))
    if name == "axistags":
        with pytest.raises(InputError, match="expected vigra's description of axes in the attribute axistags"):
            open_array(tmp_path / "v.h5", "hdf5", "raw")
        return
    array = open_array(tmp_path / "v.h5", "hdf5", "raw")
    np.testing.assert_array_equal(array[:], volume)
    assert array.voxel_size_nm is None


@pytest.mark.parametrize("value", ["zyx", "[1]", '{"axes": [{"name": "z"}]}', np.arange(3), "{"])
def test_axistags_that_are_no_vigra_s_are_refused(tmp_path, volume, value):
    with h5py.File(tmp_path / "v.h5", "w") as file:
        file.create_dataset("raw", data=volume).attrs["axistags"] = value
    with pytest.raises(InputError, match=r"axistags of /raw, found .*; correct or remove the attribute"):
        open_array(tmp_path / "v.h5", "hdf5", "raw")


def test_empty_attributes_say_nothing(tmp_path, volume):
    with h5py.File(tmp_path / "v.h5", "w") as file:
        file.create_dataset("raw", data=volume).attrs.update(
            dict.fromkeys(("axistags", "resolution"), h5py.Empty("S1"))
        )
    np.testing.assert_array_equal(open_array(tmp_path / "v.h5", "hdf5", "raw")[:], volume)


@pytest.mark.parametrize(
    ("code", "told"), [(32008, r"32008 \(bitshuffle\).*hdf5plugin"), (40000, r"40000 \(not named\)")]
)
@pytest.mark.parametrize("by_source", [False, True])
def test_a_filter_that_is_not_installed_is_named(folder, volume, code, told, by_source):
    with h5py.File(folder / "packed.h5", "w") as file:
        layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        layout.set_chunk(SHAPE)
        layout.set_filter(code, h5py.h5z.FLAG_OPTIONAL, (0, 2))
        data = h5py.h5d.create(file.id, b"raw", h5py.h5t.STD_U8LE, h5py.h5s.create_simple(SHAPE), layout)
        data.write_direct_chunk((0, 0, 0), volume.tobytes(), 0)
    with h5py.File(folder / "v.h5", "w") as file:
        virtual_layout = h5py.VirtualLayout(SHAPE, "u1")
        virtual_layout[:] = h5py.VirtualSource("packed.h5", "raw", SHAPE)
        file.create_virtual_dataset("raw", virtual_layout)
    with pytest.raises(InputError, match=rf"filter {told}.*HDF5_PLUGIN_PATH.*h5repack") as caught:
        open_array(folder / ("v.h5" if by_source else "packed.h5"), "hdf5", "raw")[:]
    assert "may be incomplete" not in str(caught.value)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (PermissionError(13, "Permission denied"), FORBIDDEN),
        (ValueError("PERMISSION_DENIED: Error opening local file"), FORBIDDEN),
        (OSError(5, "Input/output error"), MACHINE),
        (OSError(116, "Stale file handle"), MACHINE),
        (ValueError("<COMPRESSION.JPEG_2000: 33003> requires the 'imagecodecs' package"), NO_CODEC),
        (ValueError("codec not available: 'foo'"), NO_CODEC),
        (OSError("Unable to synchronously open file (file signature not found)"), DAMAGED),
        (ValueError("mmap length is greater than file size"), DAMAGED),
        (EOFError("Compressed file ended before the end-of-stream marker was reached"), DAMAGED),
    ],
)
def test_a_file_is_called_damaged_where_nothing_else_is_the_reason(error, expected):
    assert advice(error) == expected


@pytest.mark.parametrize("format", ["hdf5", "npy", "tiff", "nrrd", "mrc", "nifti"])
def test_a_folder_in_place_of_a_file(tmp_path, format):
    with pytest.raises(InputError, match="a folder where the format has a file"):
        open_array(tmp_path, format, "raw" if format == "hdf5" else None)


@pytest.mark.parametrize("dtype", [object, "c8", "S3", "M8[s]", [("id", "i4")]])
def test_values_that_are_no_numbers(tmp_path, dtype):
    np.save(tmp_path / "v.npy", np.zeros(SHAPE, dtype))
    with pytest.raises(InputError, match=r"v\.npy.*(no numbers|expected voxels that are integers)") as caught:
        open_array(tmp_path / "v.npy", "npy")
    assert "may be incomplete" not in str(caught.value)
