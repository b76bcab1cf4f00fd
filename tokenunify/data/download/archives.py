"""Take members out of zip and tar archives: only those asked for, and nothing that could harm this machine."""

import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from lzma import LZMAError
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from tqdm import tqdm

from tokenunify.config import FileSource
from tokenunify.data import local_files
from tokenunify.data.download import checksum
from tokenunify.data.download.job import Fetched, Job
from tokenunify.data.formats import image_files
from tokenunify.errors import InputError

COPY_BYTES = 2**20
DAMAGED = (zipfile.BadZipFile, tarfile.TarError, zlib.error, LZMAError, EOFError, NotImplementedError)
"""What the libraries raise on a bad archive; NotImplementedError on a compression they do not know."""
ZIP = (b"PK\3\4", b"PK\5\6")
"""What a zip archive, or an empty one, begins with."""
TAR_KINDS = {tarfile.SYMTYPE: "symbolic link", tarfile.LNKTYPE: "hard link", tarfile.DIRTYPE: "folder"}
UNPACKING = ".unpacking"


class Member(NamedTuple):
    """One entry of an archive."""

    name: str
    num_bytes: int
    """As the archive declares it."""
    kind: str
    """`file`, `folder`, or what else it is."""
    open: Callable[[], Any]


def extract(archive: Fetched, file: FileSource, job: Job) -> Fetched:
    """The member that the source names, unpacked once for each content of the archive."""
    wanted = file.member
    assert wanted is not None
    is_glob = image_files.is_glob(wanted)
    layout = ["paths"] if is_glob else []  # earlier ones had the files of all folders in one
    name = PurePosixPath(wanted).name.translate(str.maketrans("*?[]", "----"))
    target = job.target([archive.sha256, wanted, *layout], name)

    def images_or_file(made: Path) -> str:
        return image_files.nested(made) if is_glob and made.is_dir() else str(made)

    def checksum_of(made: Path) -> str:
        return local_files.checksum(images_or_file(made), file.format)

    with checksum.once(f"{archive.path}:{wanted}", target, None, checksum_of) as kept:
        if kept.missing:
            unpack(archive.path, wanted, target, job.permit.max_unpacked_bytes)
    return Fetched(images_or_file(target), kept.sha256)


def unpack(archive: str | Path, wanted: str, target: Path, max_bytes: float) -> None:
    """Make `target` from the member `wanted`: of a file that file, of a folder or a glob a folder.

    Raises InputError that names the member for a path out of the archive, for a link or device, and where the members
    are larger than `max_bytes` together, by what the archive declares or by what comes out. `target` appears when it is
    whole; the files of a folder that are there already are kept when a killed process is repeated.
    """
    work = target.with_name(target.name + UNPACKING)
    work.mkdir(parents=True, exist_ok=True)
    root = PurePosixPath(wanted)
    pattern = str(root) if image_files.is_glob(wanted) else None
    if pattern and "[" in pattern:  # only the names of all members tell whether it is meant as it stands
        with _opened(archive) as members:
            pattern = image_files.meant((str(PurePosixPath(member.name)) for member in members), pattern)
    found: dict[str, str] = {}
    left = max_bytes
    with _opened(archive) as members:
        for member in tqdm(members, unit="member", mininterval=5):
            place = _place(archive, member.name, root, pattern)
            if place is None or member.kind == "folder":
                continue
            if member.kind != "file":
                raise InputError(
                    f"{archive}: the member {member.name!r} is a {member.kind}, not a file; give its target"
                )
            if place in found:
                raise InputError(f"{archive}: another member is also named like {member.name!r}; use a narrower member")
            if member.num_bytes > left:
                raise _too_large(archive, member, f"{member.num_bytes} bytes", max_bytes)
            found[place] = str(PurePosixPath(member.name))
            left -= copy_member(archive, member, work / place, left, max_bytes)
    if not found:
        raise InputError(f"{archive} has no member {wanted!r}; correct member: a path or a glob inside the archive")
    if list(found.values()) == [str(root)]:
        os.replace(work / root.name, target)
        shutil.rmtree(work)
    else:
        os.replace(work, target)


def _place(archive: str | Path, name: str, root: PurePosixPath, pattern: str | None) -> str | None:
    """Where a member belongs in the unpacked folder; None if it is not wanted. No member may leave the folder."""
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or "\0" in name or (path.parts[:1] and path.parts[0].endswith(":")):
        raise InputError(
            f"{archive}: the member {name!r} would be written outside the folder; do not use this archive, get it from "
            "its publisher again"
        )
    path = PurePosixPath(name)
    if path == root:
        return path.name
    if root in path.parents:
        return str(path.relative_to(root))
    if pattern and image_files.matches(str(path), pattern):
        return str(path.relative_to(image_files.fixed_folder(pattern)))
    return None


def _too_large(archive: str | Path, member: Member, found: str, max_bytes: float) -> InputError:
    return InputError(
        f"{archive}: with the member {member.name!r} of {found} the unpacked files exceed {max_bytes / 1e9:g} GB; if "
        "the archive is right, raise download.max_unpacked_gb"
    )


def copy_member(archive: str | Path, member: Member, path: Path, left: float, max_bytes: float) -> int:
    """Write one member, unless it is there; return its size."""
    if path.exists():
        return path.stat().st_size
    path.parent.mkdir(parents=True, exist_ok=True)
    part, written = path.with_name(path.name + ".part"), 0
    with member.open() as packed, open(part, "wb") as file:
        while data := packed.read(COPY_BYTES):
            written += len(data)
            if written > min(left, member.num_bytes):
                declared = f"more than the {member.num_bytes} bytes that the archive declares"
                raise _too_large(archive, member, declared, max_bytes)
            file.write(data)
        file.flush()
        os.fsync(file.fileno())
    if written < member.num_bytes:
        raise EOFError(f"{member.name} ends after {written} of {member.num_bytes} bytes")
    os.replace(part, path)
    return written


@contextmanager
def _opened(archive: str | Path) -> Iterator[Iterator[Member]]:
    """The members of an archive; InputError for one that turns out to be damaged or locked while it is read."""
    # Not zipfile.is_zipfile: it also takes a tar for a zip that ends with one.
    with open(archive, "rb") as file:
        is_zip = file.read(4) in ZIP
    try:
        if is_zip:
            with zipfile.ZipFile(archive) as zipped:
                members = []
                for info in zipped.infolist():
                    # As it stands in the archive: zipfile's own is cut at a NUL. Some Windows programs use backslashes.
                    name = info.orig_filename.replace("\\", "/")
                    plain = "folder" if name.endswith("/") else "file"
                    kinds = {stat.S_IFLNK: "symbolic link", stat.S_IFDIR: "folder", stat.S_IFREG: plain, 0: plain}
                    kind = kinds.get(stat.S_IFMT(info.external_attr >> 16), "device")
                    members.append(Member(name, info.file_size, kind, partial(zipped.open, info)))
                yield iter(members)
        else:
            with tarfile.open(archive, "r:*") as packed:
                typed = ((info, "file" if info.isreg() else TAR_KINDS.get(info.type, "device")) for info in packed)
                yield (Member(info.name, info.size, kind, partial(packed.extractfile, info)) for info, kind in typed)
    except DAMAGED as error:
        raise InputError(
            f"{archive} cannot be unpacked ({type(error).__name__}: {error}); get it again, or correct sha256"
        ) from error
    except RuntimeError as error:  # zipfile's for a password
        raise InputError(f"{archive} cannot be unpacked ({error}); unpack it by hand and give its path") from error
