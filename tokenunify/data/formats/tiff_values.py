"""Grey values and voxel size by the tags of a TIFF file; zero may be white, and values may be places in a table."""

import logging
from collections.abc import Callable
from xml.etree import ElementTree

import numpy as np
from tifffile import PHOTOMETRIC, TiffFile, TiffPage

from tokenunify.data.formats.source_array import NM, Stated, product
from tokenunify.errors import InputError

logger = logging.getLogger(__name__)

WHITE_IS_ZERO = PHOTOMETRIC.MINISWHITE
COLOUR_TABLE = PHOTOMETRIC.PALETTE
ORIENTATION = 274
NODATA = 42113
"""GDAL's tag of the value that stands for no data."""
RESOLUTION_UNITS = {2: 2.54e7, 3: 1e7}
"""nm of an inch and of a centimetre."""
FINE = 1e4
"""A resolution of finer pixels (nm) than any printer's is the specimen's; others are a program's default."""


def described(page: TiffPage) -> str:
    """Type, samples and what the values mean, in words."""
    words = [str(page.dtype)]
    if page.samplesperpixel > 1:
        words.append(f"{page.samplesperpixel} samples")
    if (turned := page.tags.valueof(ORIENTATION, 1)) > 1:
        words.append(f"orientation {turned}")
    named: dict[int, str] = {WHITE_IS_ZERO: "white is zero", COLOUR_TABLE: "colour table"}
    return ", ".join([*words, *filter(None, [named.get(page.photometric)])])


def tell(path: str, page: TiffPage) -> None:
    """Log what the tags say and the values do not show."""
    if (turned := page.tags.valueof(ORIENTATION, 1)) > 1:
        logger.warning("%s: its tag says that it is to be turned when shown (orientation %d): it is not", path, turned)
    if (value := page.tags.valueof(NODATA)) is not None:
        logger.warning("%s: its tag says that %s means no data: it is read as a value", path, value)
    if page.photometric == WHITE_IS_ZERO:
        logger.warning("%s: its tag says that white is zero: grey values are inverted, ids and masks are not", path)


def shown(path: str, page: TiffPage) -> Callable[[np.ndarray], np.ndarray] | None:
    """The function from stored values to grey values; None where they are the same.

    Raises InputError where the tags give no grey value.
    """
    if page.photometric == WHITE_IS_ZERO:
        if page.dtype == np.bool_:
            return np.logical_not
        if page.dtype is None or page.dtype.kind != "u":
            raise InputError(
                f"{path}: its tag says that white is zero, which has no meaning for values of {page.dtype}; save it "
                "with photometric interpretation black is zero"
            )
        most = page.dtype.type((1 << page.bitspersample) - 1)
        return lambda values: most - values
    if page.photometric != COLOUR_TABLE:
        return None
    table = np.asarray(page.colormap)
    if (table != table[:1]).any():
        raise InputError(
            f"{path}: expected grey values, found a table of colours; save it as grey (ImageJ: Image > Lookup Tables > "
            "Grays)"
        )
    grey = table[0] if table.max() < 256 else table[0] >> 8  # some programs write values of 8 bits
    is_same = np.array_equal(grey, np.arange(len(grey)))
    return None if is_same else lambda values: grey.astype(np.uint8)[values]


def voxel_size(file: TiffFile) -> Stated | None:
    """By OME's PhysicalSize, by ImageJ's spacing and unit, or by the tags of the first page, which say only y and x."""
    if file.is_ome and file.ome_metadata:
        pixels = ElementTree.fromstring(file.ome_metadata).find(".//{*}Pixels")
        if pixels is not None:
            units = [NM.get(pixels.get(f"PhysicalSize{axis}Unit", "um")) for axis in "ZYX"]
            if size := product(units, [pixels.get(f"PhysicalSize{axis}") for axis in "ZYX"]):
                return size
    imagej, tags = file.imagej_metadata, file.pages.first.tags
    if file.is_imagej and not imagej:
        return None
    ratios = [tags.valueof(f"{axis}Resolution", (0, 1)) for axis in "YX"]
    lengths = [units / pixels if pixels else 0 for pixels, units in ratios]
    if imagej:
        return product([NM.get(str(imagej.get("unit")))] * 3, [imagej.get("spacing"), *lengths])
    unit = RESOLUTION_UNITS.get(int(tags.valueof("ResolutionUnit", 1)), 0)
    y, x = (length * unit for length in lengths)
    return (None, y, x) if 0 < max(y, x) < FINE else None
