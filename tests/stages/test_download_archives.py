"""Members of archives: only those asked for, killed and repeated, and archives that would do harm."""

import hashlib
import io
import json
import stat
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tests.stages.server import Fault, Server, running
from tokenunify.data import local_files, retry
from tokenunify.data.download import archives, download
from tokenunify.errors import InputError
from tokenunify.stages import sections
from tokenunify.store import manifest

RAW = np.random.default_rng(1).bytes(150_001)
LABELS = np.random.default_rng(2).bytes(50_003)
FILES = {"set/raw.bin": RAW, "set/labels.bin": LABELS, "set/s/2.png": b"two", "set/s/10.png": b"ten", "readme": b"x"}
WRITERS = ["zip", "tar", "tar.gz", "tar.bz2", "tar.xz"]


def pack(path: Path, files: dict[str, bytes]) -> Path:
    kind = path.name.partition(".")[2]
    if kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in files.items():
                archive.writestr(name, data)
        return path
    with tarfile.open(path, f"w:{kind.partition('.')[2]}") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def pack_entry(path: Path, kind: str, name: str = "set/raw.bin") -> Path:
    """An archive with one member that is a link or a device."""
    if path.suffix == ".zip":
        info = zipfile.ZipInfo(name)
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(info, "/etc/passwd")
        return path
    types = {"symbolic link": tarfile.SYMTYPE, "hard link": tarfile.LNKTYPE, "device": tarfile.CHRTYPE}
    with tarfile.open(path, "w") as archive:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = types[kind], "/etc/passwd"
        archive.addfile(info)
    return path


@pytest.fixture
def run(tmp_path):
    """Run the stage on one source of raw; return the manifest."""

    def run_stage(permit=sections.DEFAULT_PERMIT, **source) -> dict:
        text = json.dumps({"version": 1, "sources": [{"raw": {"format": "npy", **source}}]})
        section, plain = sections.from_json("download", text)
        output = tmp_path / "data" / "v.json"
        download.run(section, plain, downloads=tmp_path / "downloads", output=output, permit=permit)
        return manifest.read(output)

    return run_stage


@pytest.mark.parametrize("kind", WRITERS)
def test_one_member(run, tmp_path, kind):
    archive = pack(tmp_path / f"a.{kind}", FILES)
    made = run(path=str(archive), member="set/raw.bin", sha256=manifest.file_sha256(archive))
    assert Path(made["run"]["raw"]).read_bytes() == RAW
    assert made["content"]["raw"]["sha256"] == hashlib.sha256(RAW).hexdigest()
    kept = {path.name.partition("-")[2] for path in (tmp_path / "downloads").glob("[!.]*")}
    assert kept == {"raw.bin", "raw.bin.sha256"}


@pytest.mark.parametrize("kind", WRITERS)
def test_a_glob_of_images(run, tmp_path, kind):
    archive = pack(tmp_path / f"a.{kind}", FILES)
    made = run(path=str(archive), member="set/s/*.png", format="images")
    assert [path.read_bytes() for path in local_files.image_files(made["run"]["raw"])] == [b"two", b"ten"]


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.xz"])
@pytest.mark.parametrize("member", ["set/**/*.png", "set/*.png", "*/z*/i.png"])
def test_images_in_several_folders_are_in_the_order_of_their_paths(run, tmp_path, kind, member):
    archive = pack(tmp_path / f"a.{kind}", {"set/z10/i.png": b"2", "set/z9/i.png": b"1", "set/i.txt": b"no"})
    made = run(path=str(archive), member=member, format="images")
    assert [path.read_bytes() for path in local_files.image_files(made["run"]["raw"])] == [b"1", b"2"]
    assert run(path=str(archive), member=member, format="images")["content"] == made["content"]


def test_two_stars_also_match_no_folder(run, tmp_path):
    archive = pack(tmp_path / "a.zip", {"set/2.png": b"3", "set/b/1.png": b"2", "set/a/c/9.png": b"1"})
    made = run(path=str(archive), member="set/**/*.png", format="images")
    assert [path.read_bytes() for path in local_files.image_files(made["run"]["raw"])] == [b"1", b"2", b"3"]


@pytest.mark.parametrize("member", ["cell [2]/1.png", "cell [2]", "cell [2]/*.png"])
def test_brackets_in_the_names_of_members(run, tmp_path, member):
    archive = pack(tmp_path / "a.zip", {"cell [2]/1.png": b"1", "cell 2/1.png": b"2"})
    made = run(path=str(archive), member=member, format="images")
    assert [path.read_bytes() for path in local_files.image_files(made["run"]["raw"])] == [b"1"]


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_a_folder(run, tmp_path, kind):
    archive = pack(tmp_path / f"a.{kind}", {"x/v.zarr/zarr.json": b"{}", "x/v.zarr/c/0/0/0": b"1", "x/other": b""})
    folder = Path(run(path=str(archive), member="x/v.zarr", format="zarr")["run"]["raw"])
    assert sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()) == ["c/0/0/0", "zarr.json"]


def test_a_folder_that_holds_one_file_of_its_name(run, tmp_path):
    archive = pack(tmp_path / "a.zip", {"a/a": b"1"})
    folder = Path(run(path=str(archive), member="a", format="zarr")["run"]["raw"])
    assert (folder / "a").read_bytes() == b"1"


def test_a_tar_that_ends_with_a_zip(run, tmp_path):
    inner = pack(tmp_path / "in.zip", {"q": b"q"}).read_bytes()
    archive = pack(tmp_path / "a.tar", {"set/raw.bin": RAW, "in.zip": inner})
    assert Path(run(path=str(archive), member="set/raw.bin")["run"]["raw"]).read_bytes() == RAW


@pytest.mark.parametrize("member", ["im/*.png", "im"])
def test_a_zip_with_the_paths_of_windows(run, tmp_path, member):
    archive = pack(tmp_path / "a.zip", {"im\\": b"", "im\\im1.png": b"one", "im\\im2.png": b"two"})
    made = run(path=str(archive), member=member, format="images")
    assert [path.read_bytes() for path in local_files.image_files(made["run"]["raw"])] == [b"one", b"two"]


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_a_path_of_windows_out_of_the_folder_is_refused(run, tmp_path, kind):
    archive = pack(tmp_path / f"a.{kind}", {"im\\..\\..\\evil.png": b"evil"})
    with pytest.raises(InputError, match=r"evil\.png' would be written outside the folder"):
        run(path=str(archive), member="*.png", format="images")


def test_an_archive_with_another_checksum_is_not_opened(run, tmp_path):
    archive = pack(tmp_path / "a.zip", FILES)
    with pytest.raises(InputError, match=f"not the expected file.*expected sha256 {'0' * 64}"):
        run(path=str(archive), member="set/raw.bin", sha256="0" * 64)
    assert not list((tmp_path / "downloads").glob("*raw.bin*"))


def test_a_member_changed_after_unpacking_is_not_used(run, tmp_path):
    source = {"path": str(pack(tmp_path / "a.zip", FILES)), "member": "set/raw.bin"}
    Path(run(**source)["run"]["raw"]).write_bytes(b"damage")
    with pytest.raises(InputError, match=r"a\.zip:set/raw\.bin is not the expected file"):
        run(**source)
    assert Path(run(**source)["run"]["raw"]).read_bytes() == RAW


def test_a_missing_member_is_named(run, tmp_path):
    with pytest.raises(InputError, match=r"has no member 'set/gone'"):
        run(path=str(pack(tmp_path / "a.zip", FILES)), member="set/gone")


@pytest.mark.parametrize("name", ["../evil", "set/../../evil", "/etc/evil", "..\\evil", "C:\\evil"])
@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_a_path_out_of_the_folder_is_refused_by_name(run, tmp_path, kind, name):
    archive = pack(tmp_path / f"a.{kind}", {**FILES, name: b"evil"})
    with pytest.raises(InputError, match="evil' would be written outside the folder"):
        run(path=str(archive), member="*")
    with pytest.raises(InputError, match="evil' would be written outside the folder"):
        run(path=str(archive), member=name)
    files = [path for path in tmp_path.rglob("*") if path.is_file() and path != archive]
    assert not [path for path in files if path.read_bytes() == b"evil"]


@pytest.mark.parametrize(
    ("kind", "entry"),
    [("zip", "symbolic link"), ("tar", "symbolic link"), ("tar", "hard link"), ("tar", "device")],
)
def test_links_and_devices_are_refused_by_name(run, tmp_path, kind, entry):
    archive = pack_entry(tmp_path / f"a.{kind}", entry)
    with pytest.raises(InputError, match=f"'set/raw.bin' is a {entry}"):
        run(path=str(archive), member="set/raw.bin")


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_a_bomb_is_refused_by_what_it_declares(run, tmp_path, kind):
    archive = pack(tmp_path / f"a.{kind}", {"bomb": bytes(5_000_000), "small": b"1"})
    permit = sections.Permit(max_unpacked_gb=0.004)
    with pytest.raises(InputError, match=r"the member 'bomb' of 5000000 bytes the unpacked files exceed 0.004 GB"):
        run(permit, path=str(archive), member="bomb")
    assert Path(run(permit, path=str(archive), member="small")["run"]["raw"]).read_bytes() == b"1"


def test_many_small_members_are_counted_together(run, tmp_path):
    archive = pack(tmp_path / "a.zip", {f"s/{index}.png": bytes(1_000_000) for index in range(5)})
    permit = sections.Permit(max_unpacked_gb=0.0042)
    with pytest.raises(InputError, match=r"the member 's/4\.png'"):
        run(permit, path=str(archive), member="s/*.png", format="images")


def test_a_bomb_that_declares_less_is_refused(tmp_path):
    """The directory says 10 bytes, the stream holds five million."""
    path = pack(tmp_path / "a.zip", {"bomb": bytes(5_000_000)})
    honest, lie = (n.to_bytes(4, "little") for n in (5_000_000, 10))
    path.write_bytes(path.read_bytes().replace(honest, lie))
    with pytest.raises(InputError, match=r"a\.zip"):
        archives.unpack(path, "bomb", tmp_path / "out", 1e9)
    assert not (tmp_path / "out").exists()
    assert sum(file.stat().st_size for file in tmp_path.rglob("*bomb*") if file.is_file()) <= 10


@pytest.mark.parametrize("kind", WRITERS)
def test_a_truncated_archive_is_explained(run, tmp_path, kind):
    archive = pack(tmp_path / f"a.{kind}", FILES)
    archive.write_bytes(archive.read_bytes()[:-60_000])
    with pytest.raises(InputError, match=rf"a\.{kind} cannot be unpacked"):
        run(path=str(archive), member="set/labels.bin")
    assert not list((tmp_path / "downloads").glob("*labels.bin"))


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_killed_while_unpacking(run, tmp_path, monkeypatch, kind):
    """20 times at random writes; the last run ends with the same files."""
    files = {f"s/{index}.png": np.random.default_rng(index).bytes(3000) for index in range(30)}
    source = {"path": str(pack(tmp_path / f"a.{kind}", files)), "member": "s/*.png", "format": "images"}
    random, write = np.random.default_rng(3), archives.copy_member

    class Killed(BaseException):
        pass

    def die(*arguments):
        if random.random() < 0.4:
            path = arguments[2]
            if not path.exists():
                path.with_name(path.name + ".part").write_bytes(b"half")
            raise Killed
        return write(*arguments)

    monkeypatch.setattr(archives, "copy_member", die)
    for _ in range(20):
        with pytest.raises(Killed):
            run(**source)
    monkeypatch.setattr(archives, "copy_member", write)
    folder = Path(run(**source)["run"]["raw"])
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {Path(n).name: d for n, d in files.items()}


def test_an_archive_from_a_server(run, tmp_path, monkeypatch):
    monkeypatch.setattr(retry, "BACKOFF_SECONDS", 0.001)
    archive = pack(tmp_path / "a.zip", FILES).read_bytes()
    with running(Server()) as server:
        server.files["/a.zip"] = archive
        server.faults = [Fault(cut=30_000)]
        source = {"url": f"{server.url}/a.zip", "sha256": hashlib.sha256(archive).hexdigest()}
        for member, data in (("set/raw.bin", RAW), ("set/labels.bin", LABELS)):
            assert Path(run(**source, member=member)["run"]["raw"]).read_bytes() == data
        assert [status for *_, status in server.requests] == [200, 206]
