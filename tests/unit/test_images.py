"""Sequences of images of all kinds: grey values as viewers show them, ids as they are stored, and what is refused."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from tokenunify.data.formats.readers import open_array
from tokenunify.errors import InputError

SHAPE = (3, 7, 11)
GREYS = np.arange(256)


@pytest.fixture
def volume() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, SHAPE).astype(np.uint8)


def colours(section: np.ndarray, *more: np.ndarray) -> np.ndarray:
    return np.stack([section] * 3 + list(more), axis=-1)


def with_table(section: np.ndarray, table: np.ndarray) -> Image.Image:
    image = Image.fromarray(section, "P")
    image.putpalette(np.broadcast_to(table, (256, 3)).astype(np.uint8).tobytes())
    return image


def opaque(section: np.ndarray) -> np.ndarray:
    return np.full_like(section, 255)


READ = {
    "RGB": (lambda s, p: Image.fromarray(colours(s)).save(p), lambda v: v),
    "RGBA": (lambda s, p: Image.fromarray(colours(s, opaque(s))).save(p), lambda v: v),
    "LA": (lambda s, p: Image.fromarray(np.dstack([s, opaque(s)]), "LA").save(p), lambda v: v),
    "grey table": (lambda s, p: with_table(s, 255 - GREYS[:, None]).save(p), lambda v: 255 - v),
    "one bit": (lambda s, p: Image.fromarray(s > 99).save(p), lambda v: v > 99),
    "16 bits": (lambda s, p: Image.fromarray(s.astype(np.uint16) * 200).save(p), lambda v: v.astype(np.uint16) * 200),
}


@pytest.mark.parametrize("name", READ)
def test_one_channel_is_read(tmp_path, volume, name):
    write, expected = READ[name]
    for z, section in enumerate(volume):
        write(section, tmp_path / f"{z}.png")
    found = open_array(tmp_path, "images")[:]
    np.testing.assert_array_equal(found, expected(volume))
    assert found.dtype == expected(volume).dtype


def test_the_numbers_of_a_colour_table_are_ids(tmp_path, volume):
    table = np.random.default_rng(1).integers(0, 256, (256, 3))
    for z, section in enumerate(volume):
        with_table(section, table).save(tmp_path / f"{z}.png")
    np.testing.assert_array_equal(open_array(tmp_path, "images", is_grey=False)[:], volume)
    with pytest.raises(InputError, match=r"0\.png: expected a grey image, found colours"):
        open_array(tmp_path, "images")


def turned(section: np.ndarray, path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(section).save(path, exif=exif)


def deep_colour(section: np.ndarray, path: Path) -> None:
    """Of 16 bits a channel, of which Pillow would keep 8."""
    rows = b"".join(b"\0" + colours(row.astype(">u2")).tobytes() for row in section)
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", *section.shape[::-1], 16, 2, 0, 0, 0)), (b"IDAT", zlib.compress(rows))]
    path.write_bytes(png(*chunks, (b"IEND", b"")))


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    packed = [struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


REFUSED = {
    "colours": (lambda s, p: Image.fromarray(np.dstack([s, s, 255 - s])).save(p), "png", "found colours; save it as"),
    "transparent": (lambda s, p: Image.fromarray(colours(s, s)).save(p), "png", "found transparent pixels; save it"),
    "CMYK": (lambda s, p: Image.fromarray(colours(s)).convert("CMYK").save(p), "jpg", "found mode CMYK; save it"),
    "colours of 16 bits": (deep_colour, "png", "found mode RGB; save it as grey"),
    "orientation": (turned, "jpg", r"is to be turned when shown \(orientation 6\): turn its pixels"),
    "animated": (
        lambda s, p: Image.fromarray(s).save(p, save_all=True, append_images=[Image.fromarray(255 - s)]),
        "png",
        "has 2 images in it: expected one section; give a file of each",
    ),
    "several pages": (lambda s, p: tifffile.imwrite(p, np.stack([s, s])), "tif", "has 2 images in it"),
    "colours in a TIFF": (
        lambda s, p: tifffile.imwrite(p, np.dstack([s, s, 255 - s]), photometric="rgb"),
        "tif",
        "found colours; save it as grey",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_gives_no_grey_value_is_refused_by_name(tmp_path, volume, name):
    write, suffix, message = REFUSED[name]
    for z, section in enumerate(volume):
        write(section, tmp_path / f"{z}.{suffix}")
    with pytest.raises(InputError, match=rf"0\.{suffix}.*{message}"):
        open_array(tmp_path, "images")


@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_equal_channels_of_a_tiff(tmp_path, volume, planar):
    for z, section in enumerate(volume):
        values = colours(section) if planar == "contig" else np.stack([section] * 3)
        tifffile.imwrite(tmp_path / f"{z}.tif", values, photometric="rgb", planarconfig=planar)
    np.testing.assert_array_equal(open_array(tmp_path, "images")[:], volume)


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (np.zeros((7, 10), np.uint8), r"uint8 \[7, 10\]"),
        (np.zeros((7, 11), np.uint16), r"uint16 \[7, 11\]"),
        (np.zeros((7, 11, 3), np.uint8), r"uint8, 3 samples \[7, 11\]"),
    ],
)
@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("place", [0, 2])
def test_the_odd_image_is_named(tmp_path, volume, other, told, suffix, place):
    for z in range(5):
        save = tifffile.imwrite if suffix == "tif" else lambda path, values: Image.fromarray(values).save(path)
        save(tmp_path / f"{z}.{suffix}", other if z == place else volume[0])
    with pytest.raises(
        InputError, match=rf"4 of 5 images are uint8 \[7, 11\], but \S*/{place}\.{suffix} \({told}\); make"
    ):
        open_array(tmp_path, "images")


def test_numbers_that_are_left_out_are_told(tmp_path, volume, caplog):
    for z in (1, 2, 4):
        Image.fromarray(volume[0]).save(tmp_path / f"s{z}.png")
    assert open_array(tmp_path, "images").shape == (3, 7, 11)
    assert "the numbers of its images leave out s{3}; see whether sections are missing" in caplog.text


@pytest.mark.parametrize("size", [100_000, 2**31 - 1])
def test_an_image_that_says_more_than_it_can_hold_is_refused(tmp_path, size):
    header = (b"IHDR", struct.pack(">IIBBBBB", size, size, 8, 0, 0, 0, 0))
    (tmp_path / "1.png").write_bytes(png(header, (b"IDAT", zlib.compress(bytes(10**6))), (b"IEND", b"")))
    with pytest.raises(InputError, match=r"1\.png"):
        open_array(tmp_path, "images")


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_an_image_beyond_the_limit_is_refused(tmp_path, suffix):
    values = np.zeros((700, 1000), np.uint8)
    if suffix == "tif":
        tifffile.imwrite(tmp_path / "1.tif", values, compression="zlib")
    else:
        Image.fromarray(values).save(tmp_path / "1.png")
    assert open_array(tmp_path, "images", max_bytes=700_000).shape == (1, 700, 1000)
    with pytest.raises(InputError, match=rf"1\.{suffix}.* takes 0.0007 GB when decoded.*max_unpacked_gb allows 0.0006"):
        open_array(tmp_path, "images", max_bytes=600_000)


@pytest.mark.parametrize("kind", ["cut", "text", "empty"])
@pytest.mark.parametrize("suffix", ["png", "tif", "jpg"])
def test_a_damaged_image_is_named(tmp_path, volume, suffix, kind):
    for z, section in enumerate(volume):
        image = np.kron(section, np.ones((9, 9), np.uint8))
        Image.fromarray(image).save(tmp_path / f"{z}.{suffix}")
    path = tmp_path / f"1.{suffix}"
    data = path.read_bytes()
    path.write_bytes({"cut": data[: len(data) // 2], "text": b"<html>", "empty": b""}[kind])
    with pytest.raises(InputError, match=rf"1\.{suffix}"):
        open_array(tmp_path, "images")[:]
