"""All that a TIFF says it has must be there: its pages, and their tiles and strips."""

import contextlib
import os
from collections.abc import Iterator
from math import prod

from tifffile import TiffFile, TiffFileError, TiffFrame, TiffPage, TiffPageSeries
from tifffile.tifffile import shaped_description_metadata

from tokenunify.data.formats.source_array import Opening
from tokenunify.errors import InputError

Page = TiffPage | TiffFrame
AGAIN = "get the file again, or write it again with all of its pages"


@contextlib.contextmanager
def bad_tags() -> Iterator[None]:
    """Turn what tifffile raises on tags of impossible values into its own error."""
    try:
        yield
    except (ArithmeticError, AssertionError, AttributeError, MemoryError, TypeError) as error:
        raise TiffFileError(f"its tags make no sense ({type(error).__name__}: {error})") from error


def check_whole(path: str, file: TiffFile) -> None:
    """Raise InputError where the file has fewer pages or values than it says."""
    number = len(file.pages)
    file.filehandle.seek(file.pages.next_page_offset or 0)
    following = int.from_bytes(file.filehandle.read(file.tiff.offsetsize), "little" if file.byteorder == "<" else "big")
    if following and not file.is_ndpi:
        raise InputError(f"{path}: after page {number - 1} it refers to another one, which cannot be read; {AGAIN}")
    declared, first = 0, file.pages.first  # values of the first image, as ImageJ or tifffile wrote about it
    if file.is_imagej and (told := file.imagej_metadata):
        counted = [int(told[key]) for key in ("channels", "slices", "frames") if key in told]
        declared = prod(counted or [int(told.get("images", 1))]) * prod(first.shape[:2])
    elif file.is_shaped and first.shaped_description:
        declared = prod(shaped_description_metadata(first.shaped_description)["shape"])
    found = number * prod(first.shape)
    if declared > found:
        assert first.dtype is not None
        end = first.dataoffsets[0] + declared * first.dtype.itemsize
        if not first.is_contiguous or end > file.filehandle.size:  # else they follow the only page with a header
            raise InputError(
                f"{path}: its description tells of {declared} values, its {number} pages hold {found}; {AGAIN}"
            )


def check_series(path: str, series: TiffPageSeries, opening: Opening) -> None:
    """Raise InputError that names a page which is too large, or of which a part is not in its file."""
    if not series.keyframe.is_tiled:
        opening.check(f"{path}: a page", series.keyframe.nbytes)
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
    held = prod(keyframe.tile or ()) * keyframe.bitspersample // 8 if keyframe.is_tiled else keyframe.nbytes
    opening.check(f"{path}: page {page.index}", held)
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
