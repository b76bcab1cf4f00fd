"""Images as the sections of a volume: one channel of each, equal in size and type, decoded one by one."""

import logging
import os
from collections import Counter
from math import prod
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tifffile
from PIL import Image

from tokenunify.data.formats import tiff_values
from tokenunify.data.formats.image_files import FEW, gaps, image_files
from tokenunify.data.formats.source_array import Opening, Sections, SourceArray
from tokenunify.data.formats.tiff_checks import bad_tags, check_page
from tokenunify.data.read_errors import naming
from tokenunify.errors import InputError

logger = logging.getLogger(__name__)

Image.MAX_IMAGE_PIXELS = None  # sections of EM exceed what Pillow takes for an attack; `_kind` has the limits
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
MODES = {
    "1": "bool",
    "L": "uint8",
    "LA": "uint8, 2 samples",
    "P": "uint8, colour table",
    "RGB": "uint8, 3 samples",
    "RGBA": "uint8, 4 samples",
    "I": "int32",
    "I;16": "uint16",
    "I;16B": "uint16",
    "F": "float32",
}
"""Pillow's names of the kinds of pixels, and their type and samples."""
MOST_EXPANSION = 1032
"""Deflate cannot make more of a byte."""
ORIENTATION = 274


class Kind(NamedTuple):
    """What all images of a sequence have in common."""

    shape: tuple[int, ...]
    """(y, x)"""
    samples: str

    def __str__(self) -> str:
        return f"{self.samples} {list(self.shape)}"


def open_images(path: str, dataset: str | None, opening: Opening) -> SourceArray:
    """Images of a folder or pattern, in their order; InputError names those that differ from most."""
    files = image_files(path)
    kinds = [_kind(file, opening) for file in files]
    (common, number), *_ = Counter(kinds).most_common()
    if odd := [f"{file} ({kind})" for file, kind in zip(files, kinds, strict=True) if kind != common]:
        more = f" and {len(odd) - FEW} more" if len(odd) > FEW else ""
        raise InputError(
            f"{path}: sections differ: {number} of {len(files)} images are {common}, but {', '.join(odd[:FEW])}{more}; "
            "make them equal"
        )
    if _is_tiff(files[0]):
        with tifffile.TiffFile(files[0]) as tiff:  # all have the same
            tiff_values.tell(path, tiff.pages.first)
    if left_out := gaps(files):
        shown = ", ".join(left_out[:FEW]) + (", ..." if len(left_out) > FEW else "")
        logger.warning("%s: the numbers of its images leave out %s; see whether sections are missing", path, shown)
    return SourceArray(path, Sections(path, lambda z: read_image(files[z], opening.is_grey), len(files)))


def _is_tiff(file: Path) -> bool:
    with open(file, "rb") as opened:
        return opened.read(4) in TIFF


def _kind(file: Path, opening: Opening) -> Kind:
    """The kind of an image by its header alone; InputError where it is no single section or fills the memory.

    Whether colours are grey is seen when they are decoded.
    """
    with naming(str(file)):
        if _is_tiff(file):
            with bad_tags(), tifffile.TiffFile(file) as tiff:
                pages = [page for page in tiff.pages if isinstance(page, tifffile.TiffPage) and not page.is_reduced]
                if len(pages) > 1:
                    raise InputError(
                        f"{file} has {len(pages)} images in it: expected one section; give a file of each, or this one "
                        "alone with format tiff"
                    )
                first = tiff.pages.first
                check_page(str(file), first, opening)
                return Kind((first.imagelength, first.imagewidth), tiff_values.described(first))
        with Image.open(file) as image:
            num_bytes = prod(image.size) * len(image.getbands())
            opening.check(str(file), num_bytes)
            if image.format == "PNG" and num_bytes > 8 * MOST_EXPANSION * os.path.getsize(file):
                raise InputError(f"{file}: its header tells of {num_bytes} bytes, which it cannot hold; get it again")
            if (number := getattr(image, "n_frames", 1)) > 1:
                raise InputError(f"{file} has {number} images in it: expected one section; give a file of each")
            has_exif = "exif" in image.info  # without, PNG would be decoded to look for them
            turned = image.getexif().get(ORIENTATION, 1) if has_exif else 1
            if turned > 1:
                raise InputError(
                    f"{file} is to be turned when shown (orientation {turned}): turn its pixels (ImageMagick: mogrify "
                    "-auto-orient) or remove this mark from all images"
                )
            if image.mode not in MODES or (";16" in str(image.tile) and len(image.getbands()) > 1):
                raise InputError(f"{file}: expected a grey image, found mode {image.mode}; save it as grey")
            return Kind(image.size[::-1], MODES[image.mode])


def read_image(file: Path, is_grey: bool) -> np.ndarray:
    """The section (y, x): grey values as a viewer shows them, or else the numbers that are stored."""
    with naming(str(file)):
        if _is_tiff(file):
            with bad_tags(), tifffile.TiffFile(file) as tiff:
                page = tiff.pages.first
                values = page.asarray() if page.axes != "SYX" else np.moveaxis(page.asarray(), 0, -1)
                shown = tiff_values.shown(str(file), page) if is_grey else None
                return _grey(file, shown(values) if shown else values)
        with Image.open(file) as image:
            if image.mode != "P":
                return _grey(file, np.asarray(image))
            return _grey(file, np.asarray(image.convert("RGBA"))) if is_grey else np.asarray(image)


def _grey(file: Path, values: np.ndarray) -> np.ndarray:
    """One of several equal channels; an alpha channel must be opaque."""
    if values.ndim == 2:
        return values
    if values.ndim != 3 or values.shape[2] > 4:
        raise InputError(f"{file}: expected a grey image of 2 axes y, x, found shape {list(values.shape)}")
    colours, alpha = (values, None) if values.shape[2] in (1, 3) else (values[..., :-1], values[..., -1])
    if (colours != colours[..., :1]).any():
        raise InputError(f"{file}: expected a grey image, found colours; save it as grey, or one channel of it")
    if alpha is not None and (alpha != np.iinfo(alpha.dtype).max).any():
        raise InputError(f"{file}: expected a grey image, found transparent pixels; save it without an alpha channel")
    return np.ascontiguousarray(colours[..., 0])
