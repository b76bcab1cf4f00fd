"""Which images a folder or pattern names, their order, and what is left out between them."""

import os
import random
import socket
from pathlib import Path

import pytest

from tokenunify.data import local_files
from tokenunify.data.formats.image_files import gaps, image_files, matches, meant
from tokenunify.errors import InputError


def make(folder: Path, names: list[str]) -> None:
    for name in random.Random(1).sample(names, len(names)):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())


def found(folder: Path, pattern: str = "") -> list[str]:
    return [file.relative_to(folder).as_posix() for file in image_files(folder / pattern)]


ORDERS = {
    "a folder per section": ("z*/image.png", [f"z{k}/image.png" for k in (8, 9, 10, 11)]),
    "leading zeros": ("*/raw.tif", [f"{k:04d}/raw.tif" for k in (0, 1, 2, 10)]),
    "batches that count anew": ("batch*/*.png", [f"batch{k}/{n}.png" for k in (2, 10) for n in (1, 9, 10)]),
    "folders of two depths": ("**/*.png", ["a/0.png", "a/1.png", "b/c/2.png", "b/c/10.png"]),
    "files beside a folder": ("**/*.png", ["a/b/30.png", "a/5.png", "2.png", "10.png"]),
    "a folder whose name begins like another's": ("*/*.png", ["a/9.png", "a b/1.png", "a-b/1.png"]),
    "superscripts are no numbers": ("*.png", ["1.png", "\u00b25.png", "\u00b2.png"]),
}


@pytest.mark.parametrize("name", ORDERS)
def test_the_order_is_that_of_the_paths(tmp_path, name):
    pattern, expected = ORDERS[name]
    make(tmp_path, expected)
    assert found(tmp_path, pattern) == expected


def test_two_stars_match_no_folder_and_any_number(tmp_path):
    make(tmp_path, ["s/3.png", "s/a/1.png", "s/a/b/c/2.png", "s/.hidden/4.png", "s/x.png/5.txt"])
    assert found(tmp_path, "s/**/*.png") == ["s/a/b/c/2.png", "s/a/1.png", "s/3.png"]


def test_a_link_back_to_a_folder_on_the_way_is_not_followed(tmp_path):
    make(tmp_path, ["s/1.png", "s/a/2.png"])
    (tmp_path / "s" / "a" / "up").symlink_to(tmp_path / "s")
    (tmp_path / "s" / "b").symlink_to(tmp_path / "s" / "a")  # a folder of its own, as for a section taken twice
    assert found(tmp_path, "s/**/*.png") == ["s/a/2.png", "s/b/2.png", "s/1.png"]


@pytest.mark.parametrize("pattern", ["cell [2] 10nm", "cell [2] 10nm/*.png", "*/[!1]*.png", "cell [2] 10nm/2[a].png"])
def test_brackets_that_are_part_of_a_name(tmp_path, pattern):
    make(tmp_path, ["cell [2] 10nm/2[a].png", "cell 2 10nm/1.png"])
    assert found(tmp_path, pattern) == ["cell [2] 10nm/2[a].png"]


def test_brackets_after_a_star(tmp_path):
    make(tmp_path, ["a/cell [2]/1.png", "b/cell [2]/1.png", "b/cell 3/1.png"])
    assert found(tmp_path, "*/cell [2]/*.png") == ["a/cell [2]/1.png", "b/cell [2]/1.png"]
    assert found(tmp_path, "*/cell [3]/*.png") == ["b/cell 3/1.png"]


@pytest.mark.parametrize("other", ["s01.png", "s1.tif", "s001.JPG"])
def test_two_images_of_one_section_are_refused(tmp_path, other):
    make(tmp_path, ["s1.png", other, "s2.png"])
    with pytest.raises(InputError, match=r"s\w+\.\w+ and .*s\w+\.\w+ have one number: expected one image per section"):
        image_files(tmp_path)


def test_two_folders_of_one_section_are_refused(tmp_path):
    make(tmp_path, ["z1/i.png", "z01/i.png"])
    with pytest.raises(InputError, match=r"z0?1/i\.png and .*z0?1/i\.png have one number"):
        image_files(tmp_path / "z*/i.png")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["s8.png", "s9.png", "s10.png"], []),
        (["s8.png", "s10.png"], ["s{9}"]),
        (["1.png", "2.TIF", "3.png", "7.png", "20.png"], ["{4-6, 8-19}"]),
        ([f"{n}.png" for n in range(0, 14, 2)], ["{1, 3, 5, 7, ...}"]),
        (["z8/i.png", "z10/i.png"], ["z{9}/i"]),
        (["b0/0.png", "b0/1.png", "b1/0.png", "b1/2.png", "b3/5.png"], ["b{2}/", "b1/{1}"]),
        (["a/0.png", "b/c/1.png"], []),
        (["s1_t17.png", "s2_t400.png", "s3_t9.png"], []),
        (["20240101120000_1.png", "20250101120000_2.png"], ["{20240101120001-20250101119999}_"]),
    ],
)
def test_numbers_that_are_left_out(tmp_path, names, expected):
    make(tmp_path, names)
    assert gaps(image_files(f"{tmp_path}/**/*")) == expected


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("a/*.png", ["a/1.png", "a/b/1.png"]),
        ("a/**/*.png", ["a/1.png", "a/b/1.png", "a/b/c/1.png"]),
        ("**/b/**/*.png", ["b/1.png", "a/b/1.png", "a/b/c/1.png"]),
        ("[ab]/*.png", ["a/1.png", "b/1.png"]),
    ],
)
def test_patterns_of_archives_and_repositories(pattern, names):
    assert all(matches(name, pattern) for name in names)
    assert not matches("c/1.png", pattern)


def test_brackets_in_the_patterns_of_archives_and_repositories():
    assert meant(["a [1]/1.png", "a 1/1.png"], "a [1]/*.png") == "a [[]1]/*.png"
    assert meant(["a 1/1.png"], "a [1]/*.png") == "a [1]/*.png"


def test_the_checksum_of_images_in_several_folders_tells_their_order(tmp_path):
    make(tmp_path / "one", ["z1/i.png", "z2/i.png"])
    before = local_files.checksum(tmp_path / "one" / "*/i.png", "images")
    os.rename(tmp_path / "one" / "z1", tmp_path / "one" / "z3")
    assert local_files.checksum(tmp_path / "one" / "*/i.png", "images") != before
    os.rename(tmp_path / "one" / "z3", tmp_path / "one" / "z1")
    os.rename(tmp_path / "one", tmp_path / "two")
    assert local_files.checksum(tmp_path / "two" / "**/*.png", "images") == before


def test_images_of_one_folder_have_one_checksum_however_they_are_named(tmp_path):
    make(tmp_path, ["s/1.png", "s/2.png"])
    patterns = ("s", "s/*.png", "**/*.png")
    assert len({local_files.checksum(tmp_path / pattern, "images") for pattern in patterns}) == 1


@pytest.mark.parametrize("kind", ["pipe", "link to a device", "socket"])
@pytest.mark.parametrize("format", ["npy", "images", "zarr"])
def test_what_is_no_file_is_refused_at_once(tmp_path, monkeypatch, kind, format):
    path = tmp_path / "v" / "1.png"
    path.parent.mkdir()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        monkeypatch.chdir(path.parent)  # the names of sockets must be short
        socket.socket(socket.AF_UNIX).bind("1.png")
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(InputError, match=r"1\.png is a .*: expected a file or folder"):
        local_files.find(str(path), format)
    with pytest.raises(InputError, match=r"1\.png is (a|no) "):
        local_files.checksum(path.parent if format != "npy" else path, format)
