"""How names lead from one HDF5 file to objects in it and in other files, which all lie in one folder."""

import os
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py

from tokenunify.data.read_errors import naming
from tokenunify.errors import InputError

MOST_LINKS = 32
"""Links on the way to one data set; more go round in a circle."""
ELSEWHERE = ("HDF5_VDS_PREFIX", "HDF5_EXT_PREFIX", "HDF5_EXTFILE_PREFIX")
"""Environment variables with folders in which HDF5 looks first."""
SPARE_FILES = 64
"""Files that this process may open for other ends."""
STORED_BESIDE = h5py.h5p.create(h5py.h5p.DATASET_ACCESS)
STORED_BESIDE.set_efile_prefix(b"${ORIGIN}")


class Links:
    """The objects and files that the file `path` leads to, inside `folder` (a real path; None: no other file).

    `files` has the paths of the other files by their names below the folder, `held` those that are open HDF5 files.
    """

    def __init__(self, path: str, folder: str | None):
        self.path, self.folder = path, folder
        self.files: dict[str, str] = {}
        self.held: dict[str, h5py.File] = {}
        self.moved: dict[str, str] = {}  # absolute names of files that are read from the folder instead

    def find(self, group: Any, name: str, links: Iterator | None = None) -> Any:
        """The object that a name leads to from a group, through links; None where there is none."""
        links = iter(range(MOST_LINKS)) if links is None else links
        item = group.file if name.startswith("/") else group
        for word in filter(lambda word: word not in ("", "."), name.split("/")):
            if not isinstance(item, h5py.Group) or not item.id.links.exists(key := os.fsencode(word)):
                return None
            kind = item.id.links.get_info(key).type
            if kind == h5py.h5l.TYPE_HARD:
                is_dataset = h5py.h5o.get_info(item.id, key).type == h5py.h5o.TYPE_DATASET
                item = _dataset(item, key) if is_dataset else item[word]
            elif next(links, None) is None:
                raise InputError(
                    f"{self.path}: the links of {item.name} go round in a circle; correct them in the file"
                )
            elif kind == h5py.h5l.TYPE_SOFT:
                item = self.find(item, os.fsdecode(item.id.links.get_val(key)), links)
            elif kind == h5py.h5l.TYPE_EXTERNAL:
                other, target = map(os.fsdecode, item.id.links.get_val(key))
                place = self.locate(item.file, other)
                with naming(place):
                    item = self.find(self.opened(place), target, links)
                if item is None:
                    raise self.lacks(other, target)
            else:
                raise InputError(f"{self.path}: {word} is a link of a kind that is not known; give the target")
        return item

    def opened(self, place: str) -> h5py.File:
        """A file by the path that HDF5 takes, from whose folder the names in it count."""
        if place not in self.held:
            self.held[place] = h5py.File(place, "r", locking="best-effort")
        return self.held[place]

    def make_room(self, number: int) -> None:
        """Let this process have so many more files open: HDF5 reads zeros of one that it cannot open."""
        needed = len(os.listdir("/dev/fd")) + number + SPARE_FILES
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft == resource.RLIM_INFINITY or needed <= soft:
            return
        if hard != resource.RLIM_INFINITY and needed > hard:
            raise InputError(
                f"{self.path} takes voxels from {number} files, which have to be open at a time, but only {hard} may "
                f"be; raise the limit (ulimit -Hn {needed}), or use a file that holds the voxels itself"
            )
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))

    def locate(self, file: h5py.File, name: str, *, raw: bool = False) -> str:
        """Where HDF5 finds a file that `file` names (`raw`: of external storage); InputError outside of the folder."""
        beside = os.path.join(os.path.dirname(file.filename), os.path.basename(name) if os.path.isabs(name) else name)
        place = name if os.path.isabs(name) and (raw or os.path.exists(name)) else beside
        real = os.path.realpath(place)
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
            self.files[Path(real).relative_to(self.folder).as_posix()] = real
        return place

    def lacks(self, name: str, source: str) -> InputError:
        """What to say where the file `name` has no object `source`; `.` is the file itself."""
        return InputError(
            f"{self.path} takes voxels from {source} in {self.path if name == '.' else name}, which is not there; "
            "get that file again, or correct the reference"
        )


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
