"""Files that belong together: OME-TIFFs and files of Micro-Manager name others that have pages of the same image."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from tifffile import TiffFile, TiffFileError, read_ndtiff_index

from tokenunify.data.formats.tiff_checks import bad_tags
from tokenunify.errors import InputError
from tokenunify.store import manifest

INDEX = "NDTiff.index"
"""Micro-Manager's list of the files of a set."""


def referred(path: str | Path) -> dict[str, str]:
    """SHA-256 of the other files that are read with a TIFF, by their names below its folder.

    Raises InputError for one that is missing or lies outside the folder. A file that cannot be opened has none here;
    the reader tells of it.
    """
    try:
        with bad_tags(), TiffFile(path) as file:
            names = sorted(set(_names(file)))
    except (TiffFileError, OSError, ValueError):
        return {}
    return {name: manifest.file_sha256(_inside(path, name)) for name in names}


def check(path: str | Path) -> None:
    """Raise InputError as `referred` does, before the other files are opened."""
    with TiffFile(path) as file:
        for name in _names(file):
            _inside(path, name)


def _names(file: TiffFile) -> Iterator[str]:
    """The names of the other files of a set, in their order: by OME's metadata, or by Micro-Manager's index."""
    named: list[str] = []
    if file.is_ome and file.ome_metadata:
        with contextlib.suppress(ElementTree.ParseError):  # tifffile then takes the pages as they are
            root = ElementTree.fromstring(file.ome_metadata)
            others = [uuid for uuid in root.iterfind(".//{*}TiffData/{*}UUID") if uuid.text != root.get("UUID")]
            named = [name for uuid in others if (name := uuid.get("FileName"))]
    index = Path(file.filehandle.path).with_name(INDEX)
    if file.is_ndtiff and index.exists():
        named += [INDEX, *(entry[1] for entry in read_ndtiff_index(index))]
    return (name for name in dict.fromkeys(named) if name.lower() != file.filename.lower())


def _inside(path: str | Path, name: str) -> Path:
    folder = Path(os.path.realpath(path)).parent
    place = Path(os.path.realpath(folder / name))
    if folder not in place.parents:
        raise InputError(f"{path} refers to {name}, outside its folder; put the files of the set into one folder")
    if not place.is_file():
        raise InputError(f"{path} refers to {name}, which is not there; put all files of the set into one folder")
    return place
