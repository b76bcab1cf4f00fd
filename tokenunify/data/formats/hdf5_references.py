"""What an HDF5 data set takes from other files: external links, virtual sources and external storage.

They are followed inside the folder of the source file alone: anything else that this machine holds could get into a
volume by them. What they lead to must be there and long enough, for HDF5 reads zeros where it is not.
"""

import os
import resource
from collections.abc import Iterable, Iterator
from itertools import groupby
from math import prod
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import h5py

from tokenunify.data.formats import hdf5_unwritten, hdf5_virtual, tiff_set
from tokenunify.data.read_errors import UNREADABLE, naming
from tokenunify.errors import InputError
from tokenunify.store import manifest

DATASETS = {"neuroproof": ("stack", "transforms")}
"""What is read of a file of the format; of hdf5 the configuration says it."""
MOST_LINKS = 32
"""On the way to one data set; more go round in a circle."""
ELSEWHERE = ("HDF5_VDS_PREFIX", "HDF5_EXT_PREFIX", "HDF5_EXTFILE_PREFIX")
"""Environment variables with folders in which HDF5 looks first."""
SPARE_FILES = 64
"""That this process may open for other ends."""
STORED_BESIDE = h5py.h5p.create(h5py.h5p.DATASET_ACCESS)
STORED_BESIDE.set_efile_prefix(b"${ORIGIN}")


class Followed(NamedTuple):
    """A data set, and what it is made of."""

    dataset: h5py.Dataset
    files: dict[str, str]
    """Paths of the other files, by their names below the folder."""
    parts: dict[int, int]
    """Voxels never written in what each mapping of a virtual data set maps, by the mapping's number."""
    filters: dict[int, str]
    """What unpacks it, or a part of it, and is not installed: numbers, and names as the file has them."""
    held: list[h5py.File]
    """The other HDF5 files, open: one that HDF5 could not open when it reads would be zeros."""


def referred(path: str, format: str, dataset: str | None, *, alone: bool = False) -> dict[str, str]:
    """SHA-256 of the other files that are read with a source, by their names below its folder.

    Raises InputError for those that are gone, too short or outside the folder, and of a file that came `alone` for any.
    A file that cannot be opened is told of where it is read.
    """
    if format == "tiff":
        return tiff_set.referred(path)
    if format not in ("hdf5", *DATASETS) or not (os.path.isfile(path) and h5py.is_hdf5(path)):
        return {}
    try:
        file = opened(path)
    except UNREADABLE:
        return {}
    files: dict[str, str] = {}
    with file, naming(path):
        for name in DATASETS.get(format, (dataset or "",)):
            followed = follow(path, file, name, None if alone else folder_of(path))
            files |= followed.files if followed else {}
    return {name: _sha256(files[name]) for name in sorted(files)}


def _sha256(path: str) -> str:
    with naming(path):
        return manifest.file_sha256(path)


def opened(path: str) -> h5py.File:
    """The file, by its real path: names in it count from the folder that it is really in."""
    return h5py.File(os.path.realpath(path), "r", locking="best-effort")


def folder_of(path: str) -> str:
    """The real folder of a file."""
    return os.path.dirname(os.path.realpath(path))


def follow(path: str, file: h5py.File, name: str, folder: str | None) -> Followed | None:
    """The data set of that name, after checking all that it refers to; None where there is none.

    `path` is how messages name the file; `folder`, of real path, holds all that may be read, None nothing. Raises
    InputError that names what is missing, too short or outside.
    """
    walk = _Walk(path, folder)
    found = walk.find(file, name)
    if not isinstance(found, h5py.Dataset):
        return None
    parts = walk.check(found)
    return Followed(found, walk.files, parts, walk.filters, list(walk.held.values()))


def check_there(path: str, followed: Followed) -> None:
    """Refuse what has been read meanwhile where a file is gone: HDF5 may have opened it too late, and read zeros."""
    gone = next((place for place in followed.files.values() if not os.path.exists(place)), None)
    if gone:
        raise InputError(f"{gone}, of which {path} takes voxels, vanished while it was read; put it back")


class _Walk:
    """The way from a file to all that one of its data sets is made of."""

    def __init__(self, path: str, folder: str | None):
        self.path, self.folder = path, folder
        self.files: dict[str, str] = {}
        self.filters: dict[int, str] = {}
        self.open: list[tuple[str, str]] = []  # what leads to the data set that is looked at
        self.moved: dict[str, str] = {}
        self.held: dict[str, h5py.File] = {}
        self.lost: dict[tuple[str, str], int] = {}  # voxels never written, of what was checked

    def find(self, group: Any, name: str, links: Iterator | None = None) -> Any:
        """The object of a name that counts from the group; None where there is none."""
        links = iter(range(MOST_LINKS)) if links is None else links
        item = group.file if name.startswith("/") else group
        for word in filter(lambda word: word not in ("", "."), name.split("/")):
            if not isinstance(item, h5py.Group) or not item.id.links.exists(key := os.fsencode(word)):
                return None
            item = self._behind(item, key, links)
        return item

    def _behind(self, group: h5py.Group, key: bytes, links: Iterator) -> Any:
        kind = group.id.links.get_info(key).type
        if kind == h5py.h5l.TYPE_HARD:
            is_dataset = h5py.h5o.get_info(group.id, key).type == h5py.h5o.TYPE_DATASET
            return _dataset(group, key) if is_dataset else group[os.fsdecode(key)]
        if next(links, None) is None:
            raise InputError(f"{self.path}: the links of {group.name} go round in a circle; correct them in the file")
        if kind == h5py.h5l.TYPE_SOFT:
            return self.find(group, os.fsdecode(group.id.links.get_val(key)), links)
        if kind != h5py.h5l.TYPE_EXTERNAL:
            raise InputError(f"{self.path}: {os.fsdecode(key)} is a link of a kind that is not known; give the target")
        other, name = map(os.fsdecode, group.id.links.get_val(key))
        place = self._locate(group.file, other)
        with naming(place):
            found = self.find(self._opened(place), name, links)
        if found is None:
            raise self._lacks(other, name)
        return found

    def check(self, dataset: h5py.Dataset) -> dict[int, int]:
        """Check what a data set is made of; of a virtual one, the voxels of each mapping that were never written."""
        place = _place(dataset)
        if place in self.open:
            raise InputError(f"{self.path}: {dataset.name} is made of itself; correct its virtual sources")
        self.open.append(place)
        layout = dataset.id.get_create_plist()
        self.filters |= {code: name for code, name in _filters(layout) if not h5py.h5z.filter_avail(code)}
        self._check_storage(dataset, layout)
        is_virtual = layout.get_layout() == h5py.h5d.VIRTUAL
        parts = self._check_sources(dataset, layout) if is_virtual else {}
        self.open.pop()
        return parts

    # -------------------------------------------------------------------------------------------- external storage

    def _check_storage(self, dataset: h5py.Dataset, layout: Any) -> None:
        left = dataset.id.get_type().get_size() * prod(dataset.shape or ())
        for number in range(layout.get_external_count()):
            name, start, size = layout.get_external(number)
            needed = start + min(size, left)
            place = self._locate(dataset.file, os.fsdecode(name), raw=True)
            if len(self.open) > 1 and not os.path.isabs(name):
                raise InputError(
                    f"{self.path} takes voxels from {place} by way of {dataset.file.filename}, which gives no absolute "
                    "path of the former: HDF5 would look for it where it was started; give the path, or use a file "
                    "that holds the voxels itself"
                )
            if (found := os.path.getsize(place)) < needed:
                raise InputError(
                    f"{self.path}: {dataset.name} takes its voxels from {place}, of which it needs {needed} bytes and "
                    f"which has {found}: what is missing would be read as zeros; get {place} again"
                )
            left -= min(size, left)

    # --------------------------------------------------------------------------------------------- virtual sources

    def _check_sources(self, dataset: h5py.Dataset, layout: Any) -> dict[int, int]:
        parts: dict[int, int] = {}
        mapped = list(self._mapped(dataset, layout))
        _make_room(self.path, len({name for name, _, _ in mapped}))
        for name, sources in groupby(mapped, itemgetter(0)):
            place = None if name == "." else self._locate(dataset.file, name)
            with naming(place or self.path):
                file = dataset.file if place is None else self._opened(place)
                for _, source, number in sources:
                    spaces = layout.get_virtual_srcspace(number), layout.get_virtual_vspace(number)
                    parts[number] = parts.get(number, 0) + self._check_source(file, name, source, *spaces)
        self._check_extent(dataset)
        return parts

    def _check_source(self, file: h5py.File, name: str, source: str, space: Any, target: Any) -> int:
        """Whether a source has all that is taken of it; voxels of it that were never written."""
        found = self.find(file, source)
        if not isinstance(found, h5py.Dataset):
            raise self._lacks(name, source)
        shape = found.shape or ()
        if not hdf5_virtual.fits(shape, space, target):
            raise InputError(
                f"{self.path}: {source} in {file.filename} has shape {list(shape)}, not that of which its voxels are "
                f"taken: those missing would be read as zeros; get {file.filename} again"
            )
        place = _place(found)
        if place not in self.lost:
            self.lost[place] = hdf5_unwritten.voxels(found, self.check(found))
        return self.lost[place]

    def _mapped(self, dataset: h5py.Dataset, layout: Any) -> Iterator[tuple[str, str, int]]:
        """File, data set and number of the mapping of each source."""
        for number in range(layout.get_virtual_count()):
            name, source = (
                os.fsdecode(get(number)) for get in (layout.get_virtual_filename, layout.get_virtual_dsetname)
            )
            blocks = (
                self._blocks(dataset, name, source)
                if hdf5_virtual.numbered(name) or hdf5_virtual.numbered(source)
                else (0,)
            )
            yield from (
                (hdf5_virtual.filled(name, block), hdf5_virtual.filled(source, block), number) for block in blocks
            )

    def _blocks(self, dataset: h5py.Dataset, name: str, source: str) -> Iterable[int]:
        """Numbers of the blocks of `%b`: HDF5 ends the array before the first that is not there."""
        place = dataset.file.filename if name == "." else self._locate(dataset.file, hdf5_virtual.filled(name, 0))
        if hdf5_virtual.numbered(name):
            pattern, listed = os.path.basename(name), os.listdir(os.path.dirname(place))
        else:
            pattern = source.rpartition("/")[2]
            listed = list(self.find(self._opened(place), source.rpartition("/")[0] or "/") or ())
        found = hdf5_virtual.numbers(pattern, listed)
        lost = next((number for number, block in enumerate(found) if number != block), None if found else 0)
        if lost is not None:
            raise self._lacks(hdf5_virtual.filled(name, lost), hdf5_virtual.filled(source, lost))
        return range(len(found))

    def _check_extent(self, dataset: h5py.Dataset) -> None:
        """Sources of an unlimited data set must be of one length: the shorter are filled up."""
        if None not in (dataset.maxshape or ()):
            return
        if self.folder is None:
            raise InputError(f"{self.path}: {dataset.name} has virtual sources of any length; give another dataset")
        access = h5py.h5p.create(h5py.h5p.DATASET_ACCESS)
        access.set_virtual_view(h5py.h5d.VDS_FIRST_MISSING)
        with h5py.File(dataset.file.filename, "r", driver="stdio", locking="best-effort") as file:  # opened anew
            shortest = h5py.h5d.open(file.id, os.fsencode(dataset.name), access).shape
        if shortest != dataset.shape:
            raise InputError(
                f"{self.path}: the sources of {dataset.name} differ in length, {list(shortest)} to "
                f"{list(dataset.shape)}: what is missing would be read as zeros; get the shorter ones again"
            )

    # ------------------------------------------------------------------------------------------------------- files

    def _opened(self, place: str) -> h5py.File:
        """A file by the path that HDF5 takes, from whose folder the names in it count."""
        if place not in self.held:
            self.held[place] = h5py.File(place, "r", locking="best-effort")
        return self.held[place]

    def _locate(self, file: h5py.File, name: str, *, raw: bool = False) -> str:
        """Where HDF5 finds a file that `file` names, which must be in the folder."""
        beside = os.path.join(os.path.dirname(file.filename), os.path.basename(name) if os.path.isabs(name) else name)
        place = name if os.path.isabs(name) and (raw or os.path.exists(name)) else beside
        real = os.path.realpath(place)
        self._check_allowed(name, real)
        if not os.path.isfile(real):
            raise InputError(
                f"{self.path} takes voxels from {name}, which is not there (expected at {place}): they would be read "
                "as zeros; put the file back, or correct the reference"
            )
        if os.path.isabs(name) and place == beside and self.moved.setdefault(real, name) != name:
            raise InputError(
                f"{self.path} takes voxels from {self.moved[real]} and {name}, which are not there, and both would be "
                f"read from {real}; put the files back, or correct the references"
            )
        if real != os.path.realpath(self.path):
            self.files[Path(real).relative_to(self.folder or "").as_posix()] = real
        return place

    def _check_allowed(self, name: str, real: str) -> None:
        if self.folder is None:
            raise InputError(
                f"{self.path} takes voxels from another file, {name}, which did not come with it; get all files into "
                "one folder and give the path of this one, unpacked, or use a file that holds the voxels itself"
            )
        if not Path(real).is_relative_to(self.folder):
            raise InputError(
                f"{self.path} takes voxels from {name} ({real}), outside of its folder {self.folder}, which is not "
                "read; move the file into the folder and correct the reference, or use a file that holds the voxels "
                "itself"
            )
        if strange := [variable for variable in ELSEWHERE if os.environ.get(variable)]:
            raise InputError(
                f"{self.path} takes voxels from {name}, and the environment variable {strange[0]} would make HDF5 look "
                "for it elsewhere first; unset it and run snakemake again"
            )

    def _lacks(self, name: str, source: str) -> InputError:
        return InputError(
            f"{self.path} takes voxels from {source} in {self.path if name == '.' else name}, which is not there; "
            "get that file again, or correct the reference"
        )


def _make_room(path: str, number: int) -> None:
    """Let this process have so many more files open: HDF5 takes what it cannot open for zeros."""
    needed = len(os.listdir("/dev/fd")) + number + SPARE_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or needed <= soft:
        return
    if hard != resource.RLIM_INFINITY and needed > hard:
        raise InputError(
            f"{path} takes voxels from {number} files, which have to be open at a time, but only {hard} may be; raise "
            f"the limit (ulimit -Hn {needed}), or use a file that holds the voxels itself"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def _place(dataset: h5py.Dataset) -> tuple[str, str]:
    return os.path.realpath(dataset.file.filename), dataset.name


def _dataset(group: h5py.Group, key: bytes) -> h5py.Dataset:
    """External storage of a relative name lies beside the file, wherever this process was started."""
    try:
        found = h5py.h5d.open(group.id, key)
    except KeyError:  # open already, as below: HDF5 takes one or the other
        return h5py.Dataset(h5py.h5d.open(group.id, key, STORED_BESIDE))
    layout = found.get_create_plist()
    if all(os.path.isabs(layout.get_external(number)[0]) for number in range(layout.get_external_count())):
        return h5py.Dataset(found)
    found.close()
    return h5py.Dataset(h5py.h5d.open(group.id, key, STORED_BESIDE))


def _filters(layout: Any) -> Iterator[tuple[int, str]]:
    for number in range(layout.get_nfilters()):
        code, _, _, name = layout.get_filter(number)
        yield code, os.fsdecode(name)
