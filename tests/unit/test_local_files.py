"""Local source files: variables, folders, order and checksums."""

import hashlib
import os

import pytest

from tokenunify.data import local_files
from tokenunify.errors import InputError


def test_variables_are_expanded(monkeypatch, tmp_path):
    monkeypatch.setenv("EM_DATA", str(tmp_path))
    assert local_files.expand("${EM_DATA}/a.h5") == f"{tmp_path}/a.h5"


def test_an_unset_variable_is_named(monkeypatch):
    monkeypatch.delenv("EM_DATA", raising=False)
    with pytest.raises(InputError, match=r"\$\{EM_DATA\}/a.h5.*EM_DATA is not set"):
        local_files.find("${EM_DATA}/a.h5", "hdf5")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"gone\.h5 does not exist"):
        local_files.find(str(tmp_path / "gone.h5"), "hdf5")


@pytest.mark.parametrize("pattern", ["", "*.png"])
def test_a_folder_or_glob_without_images_is_refused(tmp_path, pattern):
    (tmp_path / "readme.txt").write_text("no image")
    with pytest.raises(InputError, match="has no images"):
        local_files.find(str(tmp_path / pattern), "images")


def test_images_are_in_natural_order(tmp_path):
    for name in ("s10.png", "s2.png", "s1.PNG", "s2.png.sha256", ".s0.png"):
        (tmp_path / name).write_bytes(b"x")
    assert [file.name for file in local_files.image_files(tmp_path)] == ["s1.PNG", "s2.png", "s10.png"]
    assert [file.name for file in local_files.image_files(tmp_path / "s*.png")] == ["s2.png", "s10.png"]


def test_a_file_has_its_own_checksum(tmp_path):
    (tmp_path / "a").write_bytes(b"neuropil")
    assert local_files.checksum(tmp_path / "a", "npy") == hashlib.sha256(b"neuropil").hexdigest()


def test_a_folder_has_the_checksum_of_its_entries(tmp_path):
    store = tmp_path / "v.zarr"
    (store / "c" / "0").mkdir(parents=True)
    (store / "zarr.json").write_bytes(b"{}")
    (store / "c" / "0" / "0").write_bytes(b"abc")
    text = "".join(
        f"{hashlib.sha256(data).hexdigest()}  {len(data)}  {name}\n"
        for name, data in (("c/0/0", b"abc"), ("zarr.json", b"{}"))
    )
    before = local_files.checksum(store, "zarr")
    assert before == hashlib.sha256(text.encode()).hexdigest()
    (store / "c" / "0" / "0").write_bytes(b"abd")
    assert local_files.checksum(store, "zarr") != before


def test_images_are_identified_without_what_lies_beside_them(tmp_path):
    (tmp_path / "1.png").write_bytes(b"one")
    before = local_files.checksum(tmp_path, "images")
    (tmp_path / "1.png.sha256").write_bytes(b"...")
    assert local_files.checksum(tmp_path, "images") == before


def test_a_wrong_checksum_names_file_expected_and_found(tmp_path):
    (tmp_path / "a.h5").write_bytes(b"neuropil")
    found = hashlib.sha256(b"neuropil").hexdigest()
    assert local_files.verify(tmp_path / "a.h5", "hdf5", found) == found
    with pytest.raises(InputError, match=f"a.h5.*expected sha256 {'0' * 64}, found {found}"):
        local_files.verify(tmp_path / "a.h5", "hdf5", "0" * 64)


def _folder(tmp_path, format):
    """A folder of the format with one file, an outside file, and a place for a link."""
    folder, outside = tmp_path / "in" / "v", tmp_path / "private"
    (folder / "c").mkdir(parents=True)
    outside.mkdir()
    for place in (folder / "1.png", folder / "c" / "0", outside / "2.png"):
        place.write_bytes(b"abc")
    return folder, outside


@pytest.mark.parametrize("format", ["zarr", "n5", "precomputed", "wkw", "images"])
def test_a_link_out_of_a_folder_is_refused(tmp_path, format):
    folder, outside = _folder(tmp_path, format)
    link = folder / "2.png"
    link.symlink_to(outside / "2.png")
    with pytest.raises(InputError, match=rf"v/2\.png is a link to {outside}/2\.png, outside {folder}"):
        local_files.checksum(folder, format)
    link.unlink()
    link.symlink_to("../../private/2.png")
    with pytest.raises(InputError, match=r"v/2\.png is a link to .*outside"):
        local_files.checksum(folder, format)


@pytest.mark.parametrize("format", ["zarr", "n5", "precomputed"])
def test_a_link_to_a_folder_outside_is_refused(tmp_path, format):
    folder, outside = _folder(tmp_path, format)
    (folder / "d").symlink_to(outside)
    with pytest.raises(InputError, match=rf"v/d is a link to {outside}, outside"):
        local_files.checksum(folder, format)
    with pytest.raises(InputError, match=rf"v/d is a link to {outside}, outside"):
        local_files.check_links(folder)


def test_images_of_a_glob_that_are_links(tmp_path):
    folder, outside = _folder(tmp_path, "images")
    (folder / "2.png").symlink_to(folder / "1.png")
    local_files.checksum(folder / "*.png", "images")
    (folder / "3.png").symlink_to(outside / "2.png")
    with pytest.raises(InputError, match=r"v/3\.png is a link"):
        local_files.checksum(folder / "*.png", "images")
    local_files.checksum(tmp_path / "*" / "2.png", "images")


def test_what_links_inside_a_folder_lead_to_is_hashed(tmp_path):
    folder, _ = _folder(tmp_path, "zarr")
    before = local_files.checksum(folder, "zarr")
    (folder / "d").symlink_to("c")
    linked = local_files.checksum(folder, "zarr")
    assert linked != before
    assert [name for name, _ in sorted(local_files.files(folder))] == ["1.png", "c/0", "d/0"]
    (folder / "c" / "0").write_bytes(b"abd")
    assert local_files.checksum(folder, "zarr") != linked


def test_the_source_itself_may_be_a_link(tmp_path):
    folder, _ = _folder(tmp_path, "zarr")
    (tmp_path / "link").symlink_to(folder)
    assert local_files.checksum(tmp_path / "link", "zarr") == local_files.checksum(folder, "zarr")
    assert local_files.checksum(tmp_path / "link", "images") == local_files.checksum(folder, "images")
    (tmp_path / "file").symlink_to(folder / "1.png")
    assert local_files.checksum(tmp_path / "file", "npy") == hashlib.sha256(b"abc").hexdigest()


@pytest.mark.parametrize("target", ["..", ".", "0", "gone"])
def test_links_that_lead_nowhere_or_back_are_refused(tmp_path, target):
    folder, _ = _folder(tmp_path, "zarr")
    (folder / "c" / ("0" if target == "0" else "link")).unlink(missing_ok=True)
    (folder / "c" / ("0" if target == "0" else "link")).symlink_to(target)
    with pytest.raises(InputError, match=r"v/c/(link|0) is a link"):
        local_files.checksum(folder, "zarr")


def test_a_pipe_in_a_folder_is_refused(tmp_path):
    folder, _ = _folder(tmp_path, "zarr")
    os.mkfifo(folder / "c" / "1")
    with pytest.raises(InputError, match=r"v/c/1 is a named pipe"):
        local_files.checksum(folder, "zarr")
