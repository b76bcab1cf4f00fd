"""Local source files: variables, folders, order and checksums."""

import hashlib

import pytest

from tokenunify.data import sources
from tokenunify.errors import InputError


def test_variables_are_expanded(monkeypatch, tmp_path):
    monkeypatch.setenv("EM_DATA", str(tmp_path))
    assert sources.expand("${EM_DATA}/a.h5") == f"{tmp_path}/a.h5"


def test_an_unset_variable_is_named(monkeypatch):
    monkeypatch.delenv("EM_DATA", raising=False)
    with pytest.raises(InputError, match=r"\$\{EM_DATA\}/a.h5.*EM_DATA is not set"):
        sources.find("${EM_DATA}/a.h5", "hdf5")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"gone\.h5 does not exist"):
        sources.find(str(tmp_path / "gone.h5"), "hdf5")


@pytest.mark.parametrize("pattern", ["", "*.png"])
def test_a_folder_or_glob_without_images_is_refused(tmp_path, pattern):
    (tmp_path / "readme.txt").write_text("no image")
    with pytest.raises(InputError, match="has no images"):
        sources.find(str(tmp_path / pattern), "images")


def test_images_are_in_natural_order(tmp_path):
    for name in ("s10.png", "s2.png", "s1.PNG", "s2.png.sha256", ".s0.png"):
        (tmp_path / name).write_bytes(b"x")
    assert [file.name for file in sources.image_files(tmp_path)] == ["s1.PNG", "s2.png", "s10.png"]
    assert [file.name for file in sources.image_files(tmp_path / "s*.png")] == ["s2.png", "s10.png"]


def test_a_file_has_its_own_checksum(tmp_path):
    (tmp_path / "a").write_bytes(b"neuropil")
    assert sources.checksum(tmp_path / "a", "npy") == hashlib.sha256(b"neuropil").hexdigest()


def test_a_folder_has_the_checksum_of_its_entries(tmp_path):
    store = tmp_path / "v.zarr"
    (store / "c" / "0").mkdir(parents=True)
    (store / "zarr.json").write_bytes(b"{}")
    (store / "c" / "0" / "0").write_bytes(b"abc")
    text = "".join(
        f"{hashlib.sha256(data).hexdigest()}  {len(data)}  {name}\n"
        for name, data in (("c/0/0", b"abc"), ("zarr.json", b"{}"))
    )
    before = sources.checksum(store, "zarr")
    assert before == hashlib.sha256(text.encode()).hexdigest()
    (store / "c" / "0" / "0").write_bytes(b"abd")
    assert sources.checksum(store, "zarr") != before


def test_images_are_identified_without_what_lies_beside_them(tmp_path):
    (tmp_path / "1.png").write_bytes(b"one")
    before = sources.checksum(tmp_path, "images")
    (tmp_path / "1.png.sha256").write_bytes(b"...")
    assert sources.checksum(tmp_path, "images") == before


def test_a_wrong_checksum_names_file_expected_and_found(tmp_path):
    (tmp_path / "a.h5").write_bytes(b"neuropil")
    found = hashlib.sha256(b"neuropil").hexdigest()
    assert sources.verify(tmp_path / "a.h5", "hdf5", found) == found
    with pytest.raises(InputError, match=f"a.h5.*expected sha256 {'0' * 64}, found {found}"):
        sources.verify(tmp_path / "a.h5", "hdf5", "0" * 64)
