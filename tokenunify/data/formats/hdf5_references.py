"""What an HDF5 data set takes from other files: external links, virtual sources and external storage.

They are followed only inside the folder of the source file: otherwise they could bring any file of this machine into a
volume. What they lead to must be there and long enough, for HDF5 reads zeros where it is not.
"""

import os
from collections.abc import Iterable, Iterator
from itertools import groupby
from math import prod
from operator import itemgetter
from typing import Any, NamedTuple

import h5py

from tokenunify.data.formats import hdf5_unwritten, hdf5_virtual, tiff_set
from tokenunify.data.formats.hdf5_links import Links
from tokenunify.data.read_errors import UNREADABLE, naming
from tokenunify.errors import InputError
from tokenunify.store import manifest

DATASETS = {"neuroproof": ("stack", "transforms")}
"""The data sets that are read of a file of the format; for hdf5 the configuration names it."""


class Followed(NamedTuple):
    """A data set, and what it is made of."""

    dataset: h5py.Dataset
    files: dict[str, str]
    """Paths of the other files, by their names below the folder."""
    parts: dict[int, int]
    """Voxels never written in what each mapping of a virtual data set maps, by the mapping's number."""
    filters: dict[int, str]
    """Filters that unpack it, or a part of it, and are not installed: numbers, and names as the file has them."""
    held: list[h5py.File]
    """The other HDF5 files, kept open: HDF5 would read zeros of one that it could no longer open."""


def referred(path: str, format: str, dataset: str | None, *, alone: bool = False) -> dict[str, str]:
    """SHA-256 of the other files that are read with a source, by their names below its folder.

    Raises InputError for those that are gone, too short or outside the folder, and for any where the file came `alone`.
    A file that cannot be opened has none here; the reader tells of it.
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
    sums = {}
    for name in sorted(files):
        with naming(files[name]):
            sums[name] = manifest.file_sha256(files[name])
    return sums


def opened(path: str) -> h5py.File:
    """The file, by its real path: names in it count from the folder that it is really in."""
    return h5py.File(os.path.realpath(path), "r", locking="best-effort")


def folder_of(path: str) -> str:
    """The real folder of a file."""
    return os.path.dirname(os.path.realpath(path))


def follow(path: str, file: h5py.File, name: str, folder: str | None) -> Followed | None:
    """The data set of that name, after checking all that it refers to; None where there is none.

    `path` is how messages name the file; all that may be read lies in `folder`, a real path (None: in the file itself).
    Raises InputError that names what is missing, too short or outside.
    """
    links = Links(path, folder)
    found = links.find(file, name)
    if not isinstance(found, h5py.Dataset):
        return None
    check = _Check(links)
    parts = check.parts(found)
    return Followed(found, links.files, parts, check.filters, list(links.held.values()))


def check_there(path: str, followed: Followed) -> None:
    """Raise InputError where a file is gone after reading: HDF5 may have opened it too late, and read zeros."""
    gone = next((place for place in followed.files.values() if not os.path.exists(place)), None)
    if gone:
        raise InputError(f"{gone}, of which {path} takes voxels, vanished while it was read; put it back")


class _Check:
    """Whether all that a data set is made of is there, and which of its voxels were never written."""

    def __init__(self, links: Links):
        self.path, self.links = links.path, links
        self.filters: dict[int, str] = {}
        self.open: list[tuple[str, str]] = []  # the data sets that led to the one that is looked at, and this one
        self.lost: dict[tuple[str, str], int] = {}  # voxels never written, of what was checked

    def parts(self, dataset: h5py.Dataset) -> dict[int, int]:
        """Check what a data set is made of; return what Followed.parts says of a virtual one."""
        if _place(dataset) in self.open:
            raise InputError(f"{self.path}: {dataset.name} is made of itself; correct its virtual sources")
        self.open.append(_place(dataset))
        layout = dataset.id.get_create_plist()
        for number in range(layout.get_nfilters()):
            code, _, _, name = layout.get_filter(number)
            if not h5py.h5z.filter_avail(code):
                self.filters[code] = os.fsdecode(name)
        left = dataset.id.get_type().get_size() * prod(dataset.shape or ())
        for number in range(layout.get_external_count()):
            name, start, size = layout.get_external(number)
            needed = start + min(size, left)
            place = self.links.locate(dataset.file, os.fsdecode(name), raw=True)
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
        is_virtual = layout.get_layout() == h5py.h5d.VIRTUAL
        parts = self._check_sources(dataset, layout) if is_virtual else {}
        self.open.pop()
        return parts

    def _check_sources(self, dataset: h5py.Dataset, layout: Any) -> dict[int, int]:
        """Check that the sources of a virtual data set have all that is taken of them."""
        mapped = list(self._mapped(dataset, layout))
        self.links.make_room(len({name for name, _, _ in mapped}))
        parts: dict[int, int] = {}
        for name, sources in groupby(mapped, itemgetter(0)):
            place = self.path if name == "." else self.links.locate(dataset.file, name)
            with naming(place):
                file = dataset.file if name == "." else self.links.opened(place)
                for _, source, number in sources:
                    found = self.links.find(file, source)
                    if not isinstance(found, h5py.Dataset):
                        raise self.links.lacks(name, source)
                    shape, taken = found.shape or (), layout.get_virtual_srcspace(number)
                    if not hdf5_virtual.fits(shape, taken, layout.get_virtual_vspace(number)):
                        raise InputError(
                            f"{self.path}: {source} in {file.filename} has shape {list(shape)}, not that of which its "
                            f"voxels are taken: those missing would be read as zeros; get {file.filename} again"
                        )
                    if (key := _place(found)) not in self.lost:
                        self.lost[key] = hdf5_unwritten.voxels(found, self.parts(found))
                    parts[number] = parts.get(number, 0) + self.lost[key]
        if None in (dataset.maxshape or ()):  # of unlimited length: shorter sources would be filled up
            if self.links.folder is None:
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
        return parts

    def _mapped(self, dataset: h5py.Dataset, layout: Any) -> Iterator[tuple[str, str, int]]:
        """File, data set and number of the mapping of each source; of the blocks of `%b`, those that are there.

        HDF5 ends the array before the first block that is not there.
        """
        for number in range(layout.get_virtual_count()):
            name, source = map(os.fsdecode, (layout.get_virtual_filename(number), layout.get_virtual_dsetname(number)))
            blocks: Iterable[int] = (0,)
            if hdf5_virtual.numbered(name) or hdf5_virtual.numbered(source):
                first = hdf5_virtual.filled(name, 0)
                place = dataset.file.filename if name == "." else self.links.locate(dataset.file, first)
                if hdf5_virtual.numbered(name):
                    pattern, listed = os.path.basename(name), os.listdir(os.path.dirname(place))
                else:
                    folder, _, pattern = source.rpartition("/")
                    listed = list(self.links.find(self.links.opened(place), folder or "/") or ())
                found = hdf5_virtual.numbers(pattern, listed)
                lost = next((block for block, there in enumerate(found) if block != there), None if found else 0)
                if lost is not None:
                    raise self.links.lacks(hdf5_virtual.filled(name, lost), hdf5_virtual.filled(source, lost))
                blocks = range(len(found))
            for block in blocks:
                yield hdf5_virtual.filled(name, block), hdf5_virtual.filled(source, block), number


def _place(dataset: h5py.Dataset) -> tuple[str, str]:
    return os.path.realpath(dataset.file.filename), dataset.name
