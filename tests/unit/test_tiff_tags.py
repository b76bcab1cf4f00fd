"""What the tags of a TIFF say: grey values, pages that must be there, and other files of a set."""

import struct
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import tifffile

from tokenunify.data.formats import tiff_set
from tokenunify.data.formats.readers import open_array
from tokenunify.errors import InputError

SHAPE = (5, 40, 50)
LAYOUTS = {
    "stack": {},
    "pages": {"metadata": None},
    "packed": {"compression": "zlib"},
    "tiles": {"tile": (16, 16)},
    "OME": {"ome": True, "metadata": {"axes": "ZYX"}},
    "tiles of OME": {"ome": True, "metadata": {"axes": "ZYX"}, "tile": (16, 16), "compression": "lzw"},
    "BigTIFF": {"bigtiff": True},
}


@pytest.fixture
def volume() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, SHAPE).astype(np.uint8)


def write(path: Path, values: np.ndarray, **options) -> Path:
    tifffile.imwrite(path, values, **{"photometric": "minisblack", **options})
    return path


# ------------------------------------------------------------------------------------------------ values


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_white_is_zero(tmp_path, volume, caplog, layout, dtype):
    values = volume.astype(dtype) * (257 if dtype == "uint16" else 1)
    path = write(tmp_path / "v.tif", np.iinfo(dtype).max - values, photometric="miniswhite", **LAYOUTS[layout])
    found = open_array(path, "tiff")
    np.testing.assert_array_equal(found[:], values)
    np.testing.assert_array_equal(found[1:3, 5:9, 30:], values[1:3, 5:9, 30:])
    assert "its tag says that white is zero" in caplog.text
    stored = open_array(path, "tiff", is_grey=False)
    np.testing.assert_array_equal(stored[:], np.iinfo(dtype).max - values)


@pytest.mark.parametrize("bits", [1, 12])
def test_white_is_zero_of_few_bits(tmp_path, volume, bits):
    values = volume > 99 if bits == 1 else volume.astype(np.uint16) * 16
    options = {} if bits == 1 else {"bitspersample": bits}
    path = write(tmp_path / "v.tif", values, photometric="miniswhite", **options)
    np.testing.assert_array_equal(open_array(path, "tiff")[:], ~values if bits == 1 else 4095 - values)


def test_white_is_zero_of_pieces(tmp_path, volume):
    with tifffile.TiffWriter(tmp_path / "v.tif") as file:
        for piece in (volume[:2], volume[2:]):
            file.write(255 - piece, contiguous=False, photometric="miniswhite")
    np.testing.assert_array_equal(open_array(tmp_path / "v.tif", "tiff")[:], volume)


@pytest.mark.parametrize("dtype", ["int8", "int16", "float32"])
@pytest.mark.parametrize("format", ["tiff", "images"])
def test_white_is_zero_means_nothing_for_numbers_with_a_sign(tmp_path, volume, dtype, format):
    values = volume.astype(dtype) if format == "tiff" else volume[0].astype(dtype)
    path = write(tmp_path / "v.tif", values, photometric="miniswhite")
    with pytest.raises(InputError, match=rf"v\.tif: its tag says that white is zero, .* values of {dtype}"):
        open_array(path, format)[:]


@pytest.mark.parametrize("layout", ["stack", "packed", "tiles"])
def test_tables_of_colours(tmp_path, volume, layout):
    grey = np.stack([np.arange(255, -1, -1, np.uint16) * 257] * 3)
    path = write(tmp_path / "v.tif", volume, photometric="palette", colormap=grey, **LAYOUTS[layout])
    np.testing.assert_array_equal(open_array(path, "tiff")[:], 255 - volume)
    grey[1, 3] = 0
    path = write(tmp_path / "v.tif", volume, photometric="palette", colormap=grey, **LAYOUTS[layout])
    np.testing.assert_array_equal(open_array(path, "tiff", is_grey=False)[:], volume)
    with pytest.raises(InputError, match=r"v\.tif: expected grey values, found a table of colours; save it as grey"):
        open_array(path, "tiff")


def test_planes_of_colours_are_no_sections(tmp_path, volume):
    write(tmp_path / "v.tif", volume[:3], photometric="rgb", planarconfig="separate")
    with pytest.raises(InputError, match=r"v\.tif has axes SYX, that is several channels"):
        open_array(tmp_path / "v.tif", "tiff")


@pytest.mark.parametrize("bits", [10, 12, 14])
def test_values_packed_in_few_bits(tmp_path, volume, bits):
    values = volume.astype(np.uint16) << (bits - 8)
    np.testing.assert_array_equal(open_array(write(tmp_path / "v.tif", values, bitspersample=bits), "tiff")[:], values)


@pytest.mark.parametrize(
    ("tag", "told"), [((274, "H", 1, 6), "to be turned when shown"), ((42113, "s", 0, "0"), "0 means no data")]
)
def test_tags_that_change_nothing_are_told(tmp_path, volume, caplog, tag, told):
    path = write(tmp_path / "v.tif", volume, extratags=[(*tag, True)])
    np.testing.assert_array_equal(open_array(path, "tiff")[:], volume)
    assert told in caplog.text


# ------------------------------------------------------------------------------------------------ what must be there


@pytest.mark.parametrize("format", ["tiff", "images"])
def test_an_absent_tile_is_no_zeros(tmp_path, volume, format):
    path, pages = tmp_path / "v.tif", 3 if format == "tiff" else 1

    def tiles():
        for number in range(pages * 12):
            yield None if number == 7 else np.ones((16, 16), np.uint8)

    with tifffile.TiffWriter(path) as file:
        shape = (pages, 48, 64) if pages > 1 else (48, 64)
        file.write(tiles(), shape=shape, dtype="uint8", tile=(16, 16), photometric="minisblack")
    with pytest.raises(InputError, match=r"v\.tif: page 0 lacks 1 of its 12 tiles or strips"):
        open_array(path, format)


def cut_chain(path: Path, number: int, following: int) -> None:
    """Let the page refer to another byte as the next page's."""
    with tifffile.TiffFile(path) as file:
        start = file.pages[number].offset
    data = bytearray(path.read_bytes())
    (tags,) = struct.unpack_from("<H", data, start)
    struct.pack_into("<I", data, start + 2 + 12 * tags, following)
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("layout", "following"),
    [
        *((layout, following) for layout in ("packed", "OME", "tiles", "tiles of OME") for following in (0, 10**9)),
        ("pages", 10**9),  # without a description, a 0 is a whole file's end
    ],
)
def test_pages_that_end_early(tmp_path, volume, layout, following):
    path = write(tmp_path / "v.tif", volume, **LAYOUTS[layout])
    cut_chain(path, 2, following)
    with pytest.raises(InputError, match=r"v\.tif: (after page 2 it refers|its description tells|page 3 of 5 is miss)"):
        open_array(path, "tiff")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("share", [0.95, 0.6])
def test_a_cut_file_is_not_read(tmp_path, volume, layout, share):
    path = write(tmp_path / "v.tif", volume, **LAYOUTS[layout])
    with tifffile.TiffFile(path) as file:
        end = max(page.dataoffsets[-1] + page.databytecounts[-1] for page in file.pages)
    path.write_bytes(path.read_bytes()[: int(end * share)])
    with pytest.raises(InputError, match=r"v\.tif"):
        open_array(path, "tiff")[:]


# ------------------------------------------------------------------------------------------------ files of a set


def write_set(folder: Path, volume: np.ndarray, names: list[str]) -> Path:
    """An OME-TIFF of two files, of the sections before and after the third."""
    folder.mkdir(exist_ok=True)
    uuids = [f"urn:uuid:{n}" for n in range(2)]
    parts = [volume[:2], volume[2:]]
    first = 0
    pixels = '<Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint8" SizeX="50" SizeY="40" SizeZ="5" SizeC="1" '
    text = pixels + 'SizeT="1"><Channel ID="Channel:0:0" SamplesPerPixel="1"/>'
    for name, uuid, part in zip(names, uuids, parts, strict=True):
        for ifd in range(len(part)):
            text += f'<TiffData IFD="{ifd}" FirstZ="{first + ifd}" PlaneCount="1">'
            text += f'<UUID FileName="{name}">{uuid}</UUID></TiffData>'
        first += len(part)
    schema = "http://www.openmicroscopy.org/Schemas/OME/2016-06"
    for name, uuid, part in zip(names, uuids, parts, strict=True):
        xml = f'<OME xmlns="{schema}" UUID="{uuid}"><Image ID="Image:0">{text}</Pixels></Image></OME>'
        ElementTree.fromstring(xml)
        (folder / name).parent.mkdir(exist_ok=True)
        tifffile.imwrite(folder / name, part, description=xml, metadata=None, photometric="minisblack")
    return folder / names[0]


def test_a_set_of_files_is_read_and_hashed(tmp_path, volume):
    path = write_set(tmp_path / "set", volume, ["a.ome.tif", "b.ome.tif"])
    np.testing.assert_array_equal(open_array(path, "tiff")[:], volume)
    before = tiff_set.referred(path)
    assert list(before) == ["b.ome.tif"]
    write_set(tmp_path / "set", 255 - volume, ["a.ome.tif", "b.ome.tif"])
    assert tiff_set.referred(path) != before
    assert tiff_set.referred(write(tmp_path / "v.tif", volume)) == {}


def test_a_missing_file_of_a_set_is_named(tmp_path, volume):
    path = write_set(tmp_path / "set", volume, ["a.ome.tif", "b.ome.tif"])
    (tmp_path / "set" / "b.ome.tif").unlink()
    for look in (tiff_set.referred, lambda path: open_array(path, "tiff")):
        with pytest.raises(InputError, match=r"a\.ome\.tif refers to b\.ome\.tif, which is not there"):
            look(path)


@pytest.mark.parametrize("kind", ["above", "absolute", "link"])
def test_a_file_outside_the_folder_is_refused(tmp_path, volume, kind):
    other = {"above": "../b.ome.tif", "absolute": f"{tmp_path}/other/b.ome.tif", "link": "b.ome.tif"}[kind]
    path = write_set(tmp_path / "set", volume, ["a.ome.tif", other])
    if kind == "link":
        (tmp_path / "set" / other).rename(tmp_path / "b.ome.tif")
        (tmp_path / "set" / other).symlink_to(tmp_path / "b.ome.tif")
    for look in (tiff_set.referred, lambda path: open_array(path, "tiff")):
        with pytest.raises(InputError, match=r"a\.ome\.tif refers to .*b\.ome\.tif, outside its folder"):
            look(path)
