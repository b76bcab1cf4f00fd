"""TIFF: one page per section, or tiles; ImageJ, OME-TIFF and plain files, also with a pyramid."""

import logging
import threading
from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
import tifffile
import zarr

from tokenunify.data.formats import tiff_checks, tiff_set, tiff_values
from tokenunify.data.formats.axes import ordered
from tokenunify.data.formats.source_array import ArrayLike, Opening, Sections, SourceArray
from tokenunify.errors import InputError

logger = logging.getLogger(__name__)

MOST_CHANNELS = 4
"""More are sections, which ImageJ files call channels where the program that wrote them named no axes."""


@tiff_checks.bad_tags()
def open_tiff(path: str, dataset: str | None, opening: Opening) -> SourceArray:
    """A file's images at full resolution, one after another; pages are decoded whole, tiles as far as needed."""
    tiff_set.check(path)
    file = tifffile.TiffFile(path)
    tiff_checks.check_whole(path, file)
    first, *others = file.series
    images = [first, *(series for series in others if not series.keyframe.is_reduced)]
    tiff_values.tell(path, first.keyframe)
    for series in images:
        tiff_checks.check_series(path, series, opening)
    if len(images) > 1:
        data: ArrayLike = _joined(path, images, opening.is_grey)
    elif len(first.shape) == 3 and _is_stack(first) and not first.keyframe.is_tiled:
        data = _sections(path, [(first, z) for z in range(first.shape[0])], opening.is_grey)
    else:
        data, axes = zarr.open_array(first.aszarr(level=0), mode="r"), first.axes
        if axes in ("CYX", "SYX") and data.shape[0] <= MOST_CHANNELS:
            raise InputError(
                f"{path} has axes {axes}, that is several channels: store one channel; if they are sections, save them "
                "as z (ImageJ: Image > Hyperstacks > Re-order Hyperstack)"
            )
        if len(data.shape) < 3:
            raise InputError(
                f"{path}: expected an array of 3 axes z, y, x, found axes {axes}; give a stack, or format images for a "
                "folder with one file per section"
            )
        if len(data.shape) == 3 and axes.endswith("YX"):
            axes = f"Z{axes[1:]}"  # the first axis of a stack is z, also where it is named I, Q (unknown) or T
        shown = tiff_values.shown(path, first.keyframe) if opening.is_grey else None
        data, _ = ordered(path, _Shown(data, shown) if shown else data, axes)
    return SourceArray(path, data, tiff_values.voxel_size(file))


def _joined(path: str, images: list[tifffile.TiffPageSeries], is_grey: bool) -> Sections:
    """Equal images as one volume: programs that write a file piece by piece make an image of each piece."""
    kinds = {(series.shape[-2:], series.dtype) for series in images}
    if len(kinds) > 1 or not all(len(series.shape) <= 3 and _is_stack(series) for series in images):
        found = sorted({f"{series.axes} {list(series.shape)} {series.dtype}" for series in images})
        raise InputError(
            f"{path} has {len(images)} images, no sections of one volume: {', '.join(found)}; save the volume "
            "alone in a file"
        )
    logger.warning("%s: its %d images of one size are read one after another as one volume", path, len(images))
    pages = [(series, key) for series in images for key in range(len(series.pages))]
    if images[0].kind == "generic":  # which sorts pages by how they are packed
        pages.sort(key=lambda page: page[0][page[1]].index)  # type: ignore[union-attr]
    return _sections(path, pages, is_grey)


class _Shown:
    """The grey values of an array of stored ones."""

    def __init__(self, array: ArrayLike, shown: Callable[[np.ndarray], np.ndarray]):
        self.array, self.shown, self.shape = array, shown, array.shape
        self.chunks = getattr(array, "chunks", None)
        self.dtype = shown(np.zeros(1, array.dtype)).dtype

    def __getitem__(self, index: Any) -> np.ndarray:
        return self.shown(np.asarray(self.array[index]))


def _is_stack(series: tifffile.TiffPageSeries) -> bool:
    """Whether each page is a section."""
    channels = series.axes[0] in "CS" and series.shape[0] <= MOST_CHANNELS
    return series.axes.endswith("YX") and not channels and len(series.pages) == prod(series.shape[:-2])


def _sections(path: str, pages: list[tuple[tifffile.TiffPageSeries, int]], is_grey: bool) -> Sections:
    """The pages, each a number in its series, as the sections of a volume, read one at a time."""
    turn = threading.Lock()
    shown = {id(series): tiff_values.shown(path, series.keyframe) if is_grey else None for series, _ in pages}

    def read(z: int) -> np.ndarray:
        series, key = pages[z]
        with turn, tiff_checks.bad_tags():
            values = series.asarray(key=key)
        convert = shown[id(series)]
        return convert(values) if convert else values

    return Sections(path, read, len(pages))
