"""Open source files as arrays that are read in boxes, whatever their format."""

import gzip
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import tifffile
from PIL import Image

from tokenunify.data.chunked import open_chunked
from tokenunify.data.faults import naming
from tokenunify.data.flat import open_npy
from tokenunify.data.hdf5 import open_hdf5, open_neuroproof
from tokenunify.data.headed import open_mrc, open_nifti, open_nrrd
from tokenunify.data.ome_zarr import open_zarr
from tokenunify.data.source_array import Sections, SourceArray
from tokenunify.data.sources import image_files
from tokenunify.data.tiff import open_tiff
from tokenunify.data.webknossos import open_wkw

Image.MAX_IMAGE_PIXELS = None  # sections of EM exceed what Pillow takes for an attack
GZIP_MAGIC = b"\x1f\x8b"
Reader = Callable[[str, str | None, Path], SourceArray]
"""From path, dataset, and a folder for what has to be unpacked."""


def open_array(path: str | Path, format: str, dataset: str | None = None, scratch: Path | None = None) -> SourceArray:
    """Open a file, folder or glob of the given format; gzip files are unpacked into the folder `scratch` first.

    Raises InputError for an unreadable file, a dataset that is not there, and arrays that are not 3D.
    """
    path, scratch = str(path), scratch or Path(tempfile.gettempdir(), f"tokenunify-{os.getpid()}")
    with naming(path):
        if is_packed(path):
            path = str(_unpacked(Path(path), scratch))
        return READERS[format](path, dataset, scratch)


def is_packed(path: str) -> bool:
    """Whether a file is gzip-compressed, by its content: an address need not end like the file behind it."""
    if not os.path.isfile(path):
        return False
    with open(path, "rb") as file:
        return file.read(len(GZIP_MAGIC)) == GZIP_MAGIC


def _unpacked(path: Path, scratch: Path) -> Path:
    scratch.mkdir(parents=True, exist_ok=True)
    target = scratch / path.name.removesuffix(".gz")
    if not target.exists():
        temporary = scratch / f".{target.name}.{os.getpid()}"
        with gzip.open(path) as packed, open(temporary, "wb") as file:
            shutil.copyfileobj(packed, file, 2**20)
        os.replace(temporary, target)
    return target


def _images(path: str, dataset: str | None, scratch: Path) -> SourceArray:
    files = image_files(path)

    def read(z: int) -> np.ndarray:
        with naming(str(files[z])):
            return tifffile.imread(files[z]) if files[z].suffix.lower().startswith(".tif") else imageio.imread(files[z])

    return SourceArray(path, Sections(path, read, len(files)))


def _chunked(format: str) -> Reader:
    return lambda path, dataset, scratch: open_chunked(path, format, dataset)


READERS: dict[str, Reader] = {
    "hdf5": open_hdf5,
    "images": _images,
    "mrc": open_mrc,
    "n5": _chunked("n5"),
    "neuroproof": open_neuroproof,
    "nifti": open_nifti,
    "npy": open_npy,
    "nrrd": open_nrrd,
    "precomputed": _chunked("precomputed"),
    "tiff": open_tiff,
    "wkw": open_wkw,
    "zarr": lambda path, dataset, scratch: open_zarr(path, dataset),
}
