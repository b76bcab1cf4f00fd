"""NRRD, MRC, NIfTI, TIFF, wkw and HDF5 with named axes, written by other libraries: voxels, axes and voxel size."""

import gzip
import json

import h5py
import mrcfile
import nibabel
import nrrd
import numpy as np
import pytest
import tifffile
import wkw

from tokenunify.data.formats.readers import open_array
from tokenunify.data.formats.source_array import Sections
from tokenunify.errors import InputError

SHAPE = (5, 7, 11)
BOX = (slice(1, 4), slice(0, 5), slice(6, 11))
SIZE = (40, 8, 4)


@pytest.fixture
def volume() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, SHAPE).astype(np.uint8)


def check(array, volume, voxel_size=SIZE):
    assert (array.shape, array.dtype) == (volume.shape, volume.dtype)
    assert array.voxel_size_nm == (None if voxel_size is None else pytest.approx(voxel_size, rel=1e-3))
    np.testing.assert_array_equal(array[:], volume)
    np.testing.assert_array_equal(array[BOX], volume[BOX])
    np.testing.assert_array_equal(array[2, 1:4], volume[2, 1:4])


# ------------------------------------------------------------------------------------------------ NRRD


@pytest.mark.parametrize("encoding", ["raw", "gzip"])
@pytest.mark.parametrize("dtype", ["u1", "<u2", ">u2", "<i4", "<u8", "<f4"])
def test_nrrd(tmp_path, volume, encoding, dtype):
    volume, path = volume.astype(dtype), str(tmp_path / "v.nrrd")
    header = {"encoding": encoding, "spacings": [4, 8, 40], "units": ["nm", "nm", "nm"]}
    nrrd.write(path, volume, header, index_order="C")
    check(open_array(path, "nrrd", None, tmp_path / "scratch"), volume)
    check(open_array(path, "nrrd", None, tmp_path / "scratch"), volume)  # unpacked before


def test_nrrd_with_space_directions(tmp_path, volume):
    directions = np.diag([0.004, 0.008, 0.04])
    header = {"space dimension": 3, "space directions": directions, "space units": ["um", "um", "um"]}
    nrrd.write(str(tmp_path / "v.nrrd"), volume, header, index_order="C")
    check(open_array(tmp_path / "v.nrrd", "nrrd", None, tmp_path), volume)


def test_nrrd_with_axes_in_another_order(tmp_path, volume):
    header = {"labels": ["z", "x", "y"], "spacings": [40, 4, 8], "units": ["nm", "nm", "nm"]}
    nrrd.write(str(tmp_path / "v.nrrd"), volume.transpose(0, 2, 1), header, index_order="F")
    check(open_array(tmp_path / "v.nrrd", "nrrd", None, tmp_path), volume)


@pytest.mark.parametrize("order", ["xyz", "zyx", "yzx", "zxy"])
@pytest.mark.parametrize("tilt", [0, 0.001])
def test_nrrd_with_space_directions_in_another_order(tmp_path, volume, order, tilt):
    steps = {"x": [-0.004, tilt, 0], "y": [0, 0.008, tilt], "z": [0, tilt, 0.04]}
    header = {"space dimension": 3, "space directions": np.array([steps[axis] for axis in order])}
    header |= {"space units": ["um", "um", "um"]}
    turned = volume.transpose(["zyx".index(axis) for axis in order])
    nrrd.write(str(tmp_path / "v.nrrd"), turned, header, index_order="F")
    size = [np.hypot(1000 * length, 1000 * tilt) for length in (0.04, 0.008, 0.004)]
    check(open_array(tmp_path / "v.nrrd", "nrrd", None, tmp_path), volume, size)


def test_nrrd_of_one_channel_with_space_directions(tmp_path, volume):
    rows = np.array([[np.nan] * 3, [0, 0, 40], [0, 8, 0], [4, 0, 0]])
    header = {"space dimension": 3, "space directions": rows, "space units": ["nm", "nm", "nm"]}
    nrrd.write(str(tmp_path / "v.nrrd"), volume[None], header, index_order="F")
    check(open_array(tmp_path / "v.nrrd", "nrrd", None, tmp_path), volume)


def test_nrrd_labels_count_more_than_space_directions(tmp_path, volume):
    header = {"labels": ["z", "y", "x"], "space dimension": 3, "space directions": np.diag([40, 8, 4])}
    nrrd.write(str(tmp_path / "v.nrrd"), volume, {**header, "space units": ["nm"] * 3}, index_order="F")
    check(open_array(tmp_path / "v.nrrd", "nrrd", None, tmp_path), volume)


def test_nrrd_with_two_axes_along_one_is_refused(tmp_path, volume):
    rows = np.array([[4, 0, 0], [5, 4, 0], [0, 0, 40]])
    nrrd.write(str(tmp_path / "v.nrrd"), volume, {"space dimension": 3, "space directions": rows}, index_order="C")
    with pytest.raises(InputError, match=r"v\.nrrd: expected NRRD axes along x, y and z, found space directions \[\[4"):
        open_array(tmp_path / "v.nrrd", "nrrd", None, tmp_path)


@pytest.mark.parametrize("encoding", ["raw", "gzip"])
@pytest.mark.parametrize("name", ["line skip", "lineskip"])
def test_nrrd_with_lines_before_the_voxels(tmp_path, volume, encoding, name):
    path = tmp_path / "v.nrrd"
    nrrd.write(str(path), volume, {"encoding": encoding}, index_order="C")
    head, _, voxels = path.read_bytes().partition(b"\n\n")
    path.write_bytes(head + f"\n{name}: 2\n\n".encode() + b"one\n\xff two\n" + voxels)
    np.testing.assert_array_equal(nrrd.read(str(path), index_order="C")[0], volume)
    check(open_array(path, "nrrd", None, tmp_path / "scratch"), volume, None)


def test_nrrd_of_one_channel_and_without_units(tmp_path, volume):
    header = {"kinds": ["vector", "domain", "domain", "domain"], "spacings": [np.nan, 4, 8, 40]}
    nrrd.write(str(tmp_path / "v.nrrd"), volume.T[None], header, index_order="F")
    check(open_array(tmp_path / "v.nrrd", "nrrd", None, tmp_path), volume, None)


def test_nrrd_that_cannot_be_read(tmp_path, volume):
    nrrd.write(str(tmp_path / "v.nhdr"), volume, index_order="C")
    with pytest.raises(InputError, match=r"v\.nhdr: the voxels are in another file"):
        open_array(tmp_path / "v.nhdr", "nrrd", None, tmp_path)
    nrrd.write(str(tmp_path / "v.nrrd"), volume, {"encoding": "raw"}, index_order="C")
    data = (tmp_path / "v.nrrd").read_bytes()
    for damaged in (data[:-9], b"<html>"):
        (tmp_path / "v.nrrd").write_bytes(damaged)
        with pytest.raises(InputError, match=r"v\.nrrd cannot be read"):
            open_array(tmp_path / "v.nrrd", "nrrd", None, tmp_path)


# ------------------------------------------------------------------------------------------------ MRC


def write_mrc(path, volume, size=(4, 8, 40)):
    with mrcfile.new(path) as file:
        file.set_data(volume)
        file.voxel_size = tuple(10 * n for n in size)  # x, y, z in angstrom
    return path


@pytest.mark.parametrize("dtype", ["<u2", ">u2", "<i2", "<f4"])
def test_mrc(tmp_path, volume, dtype):
    path = write_mrc(tmp_path / "v.mrc", volume.astype(dtype))
    check(open_array(path, "mrc"), volume.astype(dtype))


def test_mrc_packed(tmp_path, volume):
    path = write_mrc(tmp_path / "v.mrc", volume.astype(np.int16))
    (tmp_path / "v.mrc.gz").write_bytes(gzip.compress(path.read_bytes()))
    check(open_array(tmp_path / "v.mrc.gz", "mrc", None, tmp_path / "scratch"), volume.astype(np.int16))


@pytest.mark.parametrize(("flags", "unsigned"), [(None, False), (1, False), (0, True), (4, True)])
def test_bytes_of_mrc_are_unsigned_where_imod_says_so(tmp_path, volume, flags, unsigned):
    path = write_mrc(tmp_path / "v.mrc", volume.view(np.int8))
    if flags is not None:
        data = bytearray(path.read_bytes())
        data[152:160] = np.array([1146047817, flags], "<i4").tobytes()
        path.write_bytes(data)
    check(open_array(path, "mrc"), volume if unsigned else volume.view(np.int8))


def test_mrc_with_axes_in_another_order(tmp_path, volume):
    path = write_mrc(tmp_path / "v.mrc", np.ascontiguousarray(volume.transpose(2, 0, 1)).astype(np.int16), (1, 1, 1))
    with mrcfile.open(path, "r+") as file:  # columns are y, rows z, sections x
        file.header.mapc, file.header.mapr, file.header.maps = 2, 3, 1
        file.header.mx, file.header.my, file.header.mz = SHAPE[::-1]
        file.header.cella.x, file.header.cella.y, file.header.cella.z = (44 * 10, 56 * 10, 200 * 10)
    check(open_array(path, "mrc"), volume.astype(np.int16))


def test_mrc_without_a_cell_and_truncated(tmp_path, volume):
    path = write_mrc(tmp_path / "v.mrc", volume.astype(np.int16), (0, 0, 0))
    check(open_array(path, "mrc"), volume.astype(np.int16), None)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(InputError, match=r"v\.mrc cannot be read"):
        open_array(path, "mrc")


# ------------------------------------------------------------------------------------------------ NIfTI


def write_nifti(path, volume, kind=nibabel.Nifti1Image, unit="micron", size=(0.004, 0.008, 0.04)):
    image = kind(volume, np.diag([*size, 1]))
    image.header.set_xyzt_units(unit)
    nibabel.save(image, path)
    return path


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("name", ["v.nii", "v.nii.gz"])
def test_nifti(tmp_path, volume, kind, name):
    path = write_nifti(tmp_path / name, volume.T, kind)
    check(open_array(path, "nifti", None, tmp_path / "scratch"), volume)


def test_nifti_of_one_time_point_without_a_unit(tmp_path, volume):
    path = write_nifti(tmp_path / "v.nii", volume.T[..., None], unit="unknown")
    check(open_array(path, "nifti"), volume, None)


def test_nifti_with_a_slope(tmp_path, volume):
    image = nibabel.Nifti1Image(volume.T / 255 - 3, np.eye(4))
    image.set_data_dtype(np.uint8)
    nibabel.save(image, tmp_path / "v.nii")
    array = open_array(tmp_path / "v.nii", "nifti")
    assert array.dtype == np.float64
    np.testing.assert_array_equal(array[BOX], nibabel.load(tmp_path / "v.nii").get_fdata().T[BOX])


def test_nifti_that_cannot_be_read(tmp_path, volume):
    nibabel.save(nibabel.Nifti1Pair(volume.T, np.eye(4)), tmp_path / "v.img")
    with pytest.raises(InputError, match=r"v\.hdr: the voxels are in another file"):
        open_array(tmp_path / "v.hdr", "nifti")
    (tmp_path / "v.nii").write_bytes(b"<html>" * 100)
    with pytest.raises(InputError, match=r"v\.nii cannot be read"):
        open_array(tmp_path / "v.nii", "nifti")


# ------------------------------------------------------------------------------------------------ TIFF


@pytest.mark.parametrize("axes", ["ZYX", "CZYX", "TCZYX"])
@pytest.mark.parametrize("tile", [None, (16, 16)])
def test_ome_tiff(tmp_path, volume, axes, tile):
    metadata = {"axes": axes, "PhysicalSizeX": 4, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 8}
    metadata |= {"PhysicalSizeYUnit": "nm", "PhysicalSizeZ": 0.04, "PhysicalSizeZUnit": "µm"}
    data = volume.reshape((1,) * (len(axes) - 3) + SHAPE)
    tifffile.imwrite(tmp_path / "v.ome.tif", data, metadata=metadata, tile=tile, photometric="minisblack")
    check(open_array(tmp_path / "v.ome.tif", "tiff"), volume)


def test_a_pyramid_of_tiles(tmp_path):
    volume = np.random.default_rng(0).integers(0, 256, (5, 70, 110)).astype(np.uint8)
    options = {"tile": (32, 32), "photometric": "minisblack", "compression": "zlib"}
    with tifffile.TiffWriter(tmp_path / "v.ome.tif", ome=True) as file:
        file.write(volume, subifds=1, metadata={"axes": "ZYX"}, **options)
        file.write(volume[:, ::2, ::2], subfiletype=1, **options)
    array = open_array(tmp_path / "v.ome.tif", "tiff")
    assert array.sections is None
    check(array, volume, None)


def test_tiff_with_axes_in_another_order(tmp_path, volume):
    data = np.ascontiguousarray(volume.transpose(1, 2, 0))
    tifffile.imwrite(tmp_path / "v.tif", data, metadata={"axes": "YXZ"}, photometric="minisblack")
    check(open_array(tmp_path / "v.tif", "tiff"), volume, None)


@pytest.mark.parametrize("compression", ["lzw", "zlib", "jpeg"])
def test_compressed_tiff(tmp_path, volume, compression):
    smooth = np.broadcast_to(np.arange(5, dtype=np.uint8)[:, None, None] * 50, SHAPE).copy()
    tifffile.imwrite(tmp_path / "v.tif", smooth, compression=compression, photometric="minisblack")
    array = open_array(tmp_path / "v.tif", "tiff")
    assert np.abs(array[:].astype(int) - smooth).max() <= (1 if compression == "jpeg" else 0)
    assert isinstance(array.sections, Sections)


@pytest.mark.parametrize(("unit", "length"), [("CENTIMETER", 1e7), ("INCH", 2.54e7)])
def test_tags_state_the_size_of_pixels(tmp_path, volume, unit, length):
    resolution = (length / 4, length / 8)
    options = {"resolution": resolution, "resolutionunit": unit, "photometric": "minisblack", "metadata": None}
    tifffile.imwrite(tmp_path / "v.tif", volume, **options)
    array = open_array(tmp_path / "v.tif", "tiff")
    assert array.voxel_size_nm[0] is None
    assert array.voxel_size_nm[1:] == pytest.approx((8, 4))


def test_the_resolution_of_a_printer_is_none_of_the_specimen(tmp_path, volume):
    tifffile.imwrite(tmp_path / "v.tif", volume, resolution=(300, 300), resolutionunit="INCH", photometric="minisblack")
    check(open_array(tmp_path / "v.tif", "tiff"), volume, None)


@pytest.mark.parametrize("suffix", [".tif", ".ome.tif"])
@pytest.mark.parametrize("pieces", [[1] * 5, [2, 3], [2, 1, 2]])
@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}, {"tile": (16, 16)}])
def test_a_tiff_written_piece_by_piece(tmp_path, volume, caplog, suffix, pieces, options):
    with tifffile.TiffWriter(tmp_path / f"v{suffix}") as file:
        for piece in np.split(volume, np.cumsum(pieces)[:-1]):
            file.write(piece, contiguous=False, photometric="minisblack", metadata={"axes": "ZYX"}, **options)
    check(open_array(tmp_path / f"v{suffix}", "tiff"), volume, None)
    assert f"its {len(pieces)} images of one size are read one after another" in caplog.text


def test_a_tiff_that_was_appended_to(tmp_path, volume):
    for part in (volume[:2], volume[2:]):
        tifffile.imwrite(tmp_path / "v.tif", part, append=True, photometric="minisblack")
    check(open_array(tmp_path / "v.tif", "tiff"), volume, None)


@pytest.mark.parametrize("packed", [{0, 1}, {1, 3}, {0, 4}])
def test_a_tiff_of_pages_packed_in_two_ways(tmp_path, volume, packed):
    with tifffile.TiffWriter(tmp_path / "v.tif") as file:
        for z, page in enumerate(volume):
            file.write(page, compression="zlib" if z in packed else None, contiguous=False, metadata=None)
    check(open_array(tmp_path / "v.tif", "tiff"), volume, None)


@pytest.mark.parametrize("other", [np.zeros((3, 7, 10), np.uint8), np.zeros((3, 7, 11), np.uint16)])
def test_a_tiff_of_several_images_that_differ_is_refused(tmp_path, volume, other):
    with tifffile.TiffWriter(tmp_path / "v.tif") as file:
        file.write(volume, photometric="minisblack")
        file.write(other, photometric="minisblack")
    shape = rf"\[3, 7, {other.shape[2]}\] {other.dtype}"
    with pytest.raises(InputError, match=rf"v\.tif has 2 images, .*{shape}, QYX \[5, 7, 11\] uint8|\[5.*{shape}"):
        open_array(tmp_path / "v.tif", "tiff")


def test_levels_beside_a_volume_are_not_its_sections(tmp_path, volume):
    with tifffile.TiffWriter(tmp_path / "v.tif") as file:
        file.write(volume, photometric="minisblack", metadata=None)
        file.write(volume[:, ::2, ::2], photometric="minisblack", subfiletype=1, metadata=None)
    check(open_array(tmp_path / "v.tif", "tiff"), volume, None)


@pytest.mark.parametrize(("kind", "tile"), [("imagej", None), ("ome", None), ("ome", (16, 16))])
def test_channels_are_no_sections(tmp_path, volume, kind, tile):
    with tifffile.TiffWriter(tmp_path / "v.tif", **{kind: True}) as file:
        file.write(volume[:3], metadata={"axes": "CYX"}, photometric="minisblack", tile=tile)
    with pytest.raises(InputError, match=r"v\.tif has axes CYX, that is several channels: store one channel"):
        open_array(tmp_path / "v.tif", "tiff")


@pytest.mark.parametrize("tile", [None, (16, 16)])
def test_a_stack_that_was_written_without_axes_is_one(tmp_path, volume, tile):
    with tifffile.TiffWriter(tmp_path / "v.tif", ome=True) as file:
        file.write(volume, metadata={"axes": "CYX"}, photometric="minisblack", tile=tile)
    check(open_array(tmp_path / "v.tif", "tiff"), volume, None)


def test_channels_of_several_images_are_no_sections(tmp_path, volume):
    with tifffile.TiffWriter(tmp_path / "v.tif", ome=True) as file:
        for _ in range(2):
            file.write(volume[:3], metadata={"axes": "CYX"}, photometric="minisblack")
    with pytest.raises(InputError, match=r"v\.tif has 2 images, .*: CYX \[3, 7, 11\] uint8"):
        open_array(tmp_path / "v.tif", "tiff")


def test_colour_tiff_is_refused(tmp_path, volume):
    tifffile.imwrite(tmp_path / "v.tif", np.zeros((7, 11, 3), np.uint8), photometric="rgb")
    with pytest.raises(InputError, match=r"v\.tif has axes .*S"):
        open_array(tmp_path / "v.tif", "tiff")


# ------------------------------------------------------------------------------------------------ HDF5


@pytest.mark.parametrize("order", ["zyx", "xyz", "yzx"])
@pytest.mark.parametrize("by", ["labels", "vigra"])
def test_hdf5_with_named_axes(tmp_path, volume, order, by):
    places = ["zyx".index(axis) for axis in order]
    with h5py.File(tmp_path / "v.h5", "w") as file:
        item = file.create_dataset("raw", data=volume.transpose(places))
        item.attrs["resolution"] = [SIZE[place] for place in places]
        if by == "vigra":
            item.attrs["axistags"] = json.dumps({"axes": [{"key": axis, "typeFlags": 2} for axis in order]})
        for dimension, axis in zip(item.dims, order, strict=True):
            dimension.label = axis if by == "labels" else ""
    check(open_array(tmp_path / "v.h5", "hdf5", "raw"), volume)


def test_hdf5_of_one_channel(tmp_path, volume):
    with h5py.File(tmp_path / "v.h5", "w") as file:
        item = file.create_dataset("raw", data=volume[..., None])
        item.attrs["axistags"] = json.dumps({"axes": [{"key": axis} for axis in "zyxc"]})
    check(open_array(tmp_path / "v.h5", "hdf5", "raw"), volume, None)


# ------------------------------------------------------------------------------------------------ webKnossos


def write_wkw(folder, volume, start, mag=(1, 1, 1), scale=(4, 8, 40)):
    """A layer whose box begins at `start` (x, y, z), in full resolution, of `volume` at one magnification."""
    place = folder / "color" / "-".join(map(str, mag))
    place.mkdir(parents=True)
    header = wkw.Header(np.uint8, block_len=4, file_len=2)
    with wkw.Dataset.create(str(place), header) as file:
        file.write([s // m for s, m in zip(start, mag, strict=True)], np.asfortranarray(volume.T))
    width, height, depth = (n * m for n, m in zip(volume.shape[::-1], mag, strict=True))
    box = {"topLeft": list(start), "width": width, "height": height, "depth": depth}
    layer = {"name": "color", "category": "color", "boundingBox": box, "elementClass": "uint8", "dataFormat": "wkw"}
    properties = {"id": {"name": "v", "team": ""}, "dataLayers": [layer], "scale": scale}
    (folder / "datasource-properties.json").write_text(json.dumps(properties))
    return folder


def test_wkw(tmp_path, volume):
    check(open_array(write_wkw(tmp_path, volume, (9, 6, 3)), "wkw", "color/1-1-1"), volume)


@pytest.mark.parametrize(
    ("key", "value"),
    [("topLeft", [10**12, 0, 0]), ("topLeft", [-1, 0, 0]), ("depth", 1.5), ("width", None), ("boundingBox", 3)],
)
def test_damaged_properties_of_wkw(tmp_path, volume, key, value):
    path = write_wkw(tmp_path, volume, (9, 6, 3))
    properties = json.loads((path / "datasource-properties.json").read_text())
    layer = properties["dataLayers"][0]
    (layer if key == "boundingBox" else layer["boundingBox"])[key] = value
    (path / "datasource-properties.json").write_text(json.dumps(properties))
    with pytest.raises(InputError, match="its metadata cannot be used"):
        open_array(path, "wkw", "color/1-1-1")
    (path / "datasource-properties.json").write_text("{")
    with pytest.raises(InputError, match=r"datasource-properties\.json is no JSON"):
        open_array(path, "wkw", "color/1-1-1")


def test_wkw_at_another_magnification(tmp_path, volume):
    scale = {"factor": [0.002, 0.004, 0.04], "unit": "micrometer"}
    check(open_array(write_wkw(tmp_path, volume, (8, 6, 3), (2, 2, 1), scale), "wkw", "color/2-2-1"), volume)


def test_wkw_that_is_not_there(tmp_path, volume):
    write_wkw(tmp_path / "v", volume, (0, 0, 0))
    for dataset in ("colour/1", "color/8", None):
        with pytest.raises(InputError, match=r"no wkw data .*it has the layers \['color'\]"):
            open_array(tmp_path / "v", "wkw", dataset)
    with pytest.raises(InputError, match=r"has no datasource-properties\.json"):
        open_array(tmp_path, "wkw", "color/1")
