"""What a TIFF says of itself must be there: pages, tiles and strips, and the files that it refers to."""

import os
from collections.abc import Iterator
from math import prod
from pathlib import Path
from xml.etree import ElementTree

import tifffile
from tifffile import TiffFile, TiffFrame, TiffPage, TiffPageSeries
from tifffile.tifffile import shaped_description_metadata

from tokenunify.data.source_array import Opening
from tokenunify.errors import InputError

Page = TiffPage | TiffFrame
AGAIN = "get the file again, or write it again with all of its pages"


def referred(path: str | Path) -> list[Path]:
    """Other files that hold pages of an OME-TIFF, or of Micro-Manager's set of files.

    Raises InputError for one that is missing or lies outside the file's folder.
    """
    try:
        with TiffFile(path) as file:
            names = set(_names(file)) - {Path(path).name}
    except (tifffile.TiffFileError, ElementTree.ParseError, OSError, ValueError):
        return []  # told when it is read
    folder = Path(os.path.realpath(path)).parent
    return [_inside(path, folder, name) for name in sorted(names)]


def _names(file: TiffFile) -> Iterator[str]:
    index = Path(file.filehandle.path).with_name("NDTiff.index")
    if file.is_ndtiff and index.exists():
        yield index.name
        yield from (entry[1] for entry in tifffile.read_ndtiff_index(index))
    if file.is_ome and file.ome_metadata:
        root = ElementTree.fromstring(file.ome_metadata)
        others = (uuid for uuid in root.iterfind(".//{*}TiffData/{*}UUID") if uuid.text != root.get("UUID"))
        yield from filter(None, (uuid.get("FileName") for uuid in others))
        yield from filter(None, (whole.get("MetadataFile") for whole in root.iterfind(".//{*}BinaryOnly")))


def _inside(path: str | Path, folder: Path, name: str) -> Path:
    place = Path(os.path.realpath(folder / name))
    if folder not in place.parents:
        raise InputError(f"{path} refers to {name}, outside its folder; put the files of the set into one folder")
    if not place.is_file():
        raise InputError(f"{path} refers to {name}, which is not there; put all files of the set into one folder")
    return place


def check_whole(path: str, file: TiffFile) -> None:
    """Raise InputError where the pages end before what the file says of them."""
    last = file.pages[len(file.pages) - 1]
    file.filehandle.seek(file.pages.next_page_offset or 0)
    following = int.from_bytes(file.filehandle.read(file.tiff.offsetsize), "little" if file.byteorder == "<" else "big")
    if following and not file.is_ndpi:
        raise InputError(f"{path}: after page {last.index} it refers to another one, which cannot be read; {AGAIN}")
    declared, first = _declared(file), file.pages.first
    found = len(file.pages) * prod(first.shape)
    if declared > found and not _follows(first, declared):
        raise InputError(
            f"{path}: its description tells of {declared} values, its {len(file.pages)} pages hold {found}; {AGAIN}"
        )


def _declared(file: TiffFile) -> int:
    """Values of the first image, by what ImageJ or tifffile wrote about it; 0 where nothing is."""
    first = file.pages.first
    if file.is_imagej and (told := file.imagej_metadata):
        counted = [int(told[key]) for key in ("channels", "slices", "frames") if key in told]
        return prod(counted or [int(told.get("images", 1))]) * prod(first.shape[:2])
    if file.is_shaped and first.shaped_description:
        return prod(shaped_description_metadata(first.shaped_description)["shape"])
    return 0


def _follows(page: TiffPage, declared: int) -> bool:
    """Whether that many values lie behind the page's header, which is then the only one needed."""
    assert page.dtype is not None
    end = page.dataoffsets[0] + declared * page.dtype.itemsize
    return page.is_contiguous and end <= page.parent.filehandle.size


def check_series(path: str, series: TiffPageSeries, opening: Opening) -> None:
    """Raise InputError that names a page with a part that is not in its file."""
    if series.dataoffset is not None:  # all pages one after another, of which only the first may have a header
        end = series.dataoffset + prod(series.shape) * series.dtype.itemsize
        _check_end(path, "its pages", end, series.keyframe.parent.filehandle.path)
        return
    for number, page in enumerate(series.pages):
        if page is None:
            raise InputError(f"{path}: page {number} of {len(series.pages)} is missing; {AGAIN}")
        check_page(path, page, opening)


def check_page(path: str, page: Page, opening: Opening) -> None:
    """Raise InputError for a page of which a tile or strip is absent or beyond the file's end, or that is too large."""
    keyframe, sizes = page.keyframe, page.databytecounts
    assert keyframe is not None
    opening.check(f"{path}: page {page.index}", prod(keyframe.tile or ()) if keyframe.is_tiled else keyframe.nbytes)
    number = prod(keyframe.chunked)
    absent = sum(not offset or not size for offset, size in zip(page.dataoffsets, sizes, strict=True))
    absent += max(number - len(sizes), 0) if sum(sizes) < keyframe.nbytes else 0
    if absent:
        raise InputError(
            f"{path}: page {page.index} lacks {absent} of its {number} tiles or strips, which would be read as zeros; "
            f"{AGAIN} and tiles (GDAL: SPARSE_OK=FALSE)"
        )
    end = max(offset + size for offset, size in zip(page.dataoffsets, sizes, strict=True))
    _check_end(path, f"page {page.index}", end, page.parent.filehandle.path)


def _check_end(path: str, what: str, end: int, file: str) -> None:
    if end > (size := os.path.getsize(file)):
        raise InputError(f"{path}: {what} would end at byte {end} of {file}, which has {size}; {AGAIN}")
