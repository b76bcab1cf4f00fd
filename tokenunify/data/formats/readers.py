"""Open source files as arrays that are read in boxes, whatever their format."""

import os
import tempfile
from collections.abc import Callable
from math import inf
from pathlib import Path

from tokenunify.data.formats import compressed
from tokenunify.data.formats.hdf5 import open_hdf5, open_neuroproof
from tokenunify.data.formats.images import open_images
from tokenunify.data.formats.npy import open_npy
from tokenunify.data.formats.nrrd_mrc_nifti import open_mrc, open_nifti, open_nrrd
from tokenunify.data.formats.ome_zarr import open_zarr
from tokenunify.data.formats.source_array import Opening, SourceArray
from tokenunify.data.formats.tensorstore import open_chunked
from tokenunify.data.formats.tiff import open_tiff
from tokenunify.data.formats.webknossos import open_wkw
from tokenunify.data.read_errors import naming

Reader = Callable[[str, str | None, Opening], SourceArray]
"""From path, dataset, and how to open it."""


def open_array(
    path: str | Path,
    format: str,
    dataset: str | None = None,
    scratch: Path | None = None,
    *,
    max_bytes: float = inf,
    is_grey: bool = True,
) -> SourceArray:
    """Open a file, folder or glob of the given format; gzip files are unpacked into the folder `scratch` first.

    Labels and masks are not grey: what tags say of how values are shown does not hold for them. Raises InputError for
    an unreadable file, a dataset that is not there, arrays that are not 3D, and what takes more than `max_bytes`
    unpacked.
    """
    path = str(path)
    opening = Opening(scratch or Path(tempfile.gettempdir(), f"tokenunify-{os.getpid()}"), max_bytes, is_grey)
    with naming(path):
        if compressed.is_gzip(path):
            path = str(compressed.unpacked(Path(path), opening))
        return READERS[format](path, dataset, opening)


def _chunked(format: str) -> Reader:
    return lambda path, dataset, opening: open_chunked(path, format, dataset)


READERS: dict[str, Reader] = {
    "hdf5": open_hdf5,
    "images": open_images,
    "mrc": open_mrc,
    "n5": _chunked("n5"),
    "neuroproof": open_neuroproof,
    "nifti": open_nifti,
    "npy": open_npy,
    "nrrd": open_nrrd,
    "precomputed": _chunked("precomputed"),
    "tiff": open_tiff,
    "wkw": open_wkw,
    "zarr": lambda path, dataset, opening: open_zarr(path, dataset),
}
