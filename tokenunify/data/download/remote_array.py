"""Chunked volumes (zarr, n5, neuroglancer precomputed) at an address, to be copied from."""

import hashlib
from collections.abc import Iterator
from math import isclose
from typing import Any, NamedTuple

import numpy as np

from tokenunify.config import FileSource
from tokenunify.data.download.throttle import Throttle
from tokenunify.data.formats import metadata, tensorstore, tensorstore_access
from tokenunify.data.formats.absent import Absence
from tokenunify.data.formats.source_array import ArrayLike, Stated, product, turned
from tokenunify.data.read_errors import UNREADABLE, naming
from tokenunify.errors import InputError
from tokenunify.geometry import Coordinate, VoxelSize

SIZE_TOLERANCE = 0.01
"""Relative difference of voxel sizes that passes for rounding."""
FAULTS = UNREADABLE
"""What reading a box may raise."""
DESCRIPTIONS = {"precomputed": ("info",), "n5": ("attributes.json",), "zarr": ("zarr.json", ".zarray", ".zattrs")}
"""The files that describe a volume of the format."""


class Remote(NamedTuple):
    """A remote array (z, y, x) that is read in boxes; its first voxel is number 0."""

    address: str
    data: ArrayLike
    shape: Coordinate
    dtype: np.dtype
    voxel_size_nm: Stated | None
    """What the source states."""
    identity: str
    """Changes when the source does, as far as it tells."""
    absence: Absence | None = None
    """What it does not store, where its format allows that."""


def open_remote(file: FileSource, voxel_size_nm: VoxelSize | None, throttle: Throttle) -> Remote:
    """Open the array; nothing but what describes it is read. InputError tells why it cannot be."""
    file = _moved(file)
    assert file.url is not None
    dataset, names = _dataset(file, voxel_size_nm), DESCRIPTIONS[file.format]
    inside = "" if file.format == "precomputed" or not dataset else f"{dataset.strip('/')}/"
    address = f"{file.url}/{inside}"
    with naming(file.url):
        texts = [tensorstore_access.read(address, name) or b"" for name in names]
        refusal = None if any(texts) else tensorstore_access.refusal(address, names[0])
        if refusal:
            raise InputError(
                f"{address}: the server answers {refusal}: no such volume, or no access; correct the address"
            )
        array = tensorstore.open_chunked(file.url, file.format, dataset)
    identity = hashlib.sha256(b"\n".join(texts)).hexdigest()
    data = _Paced(array.data, throttle)
    return Remote(file.url, data, array.shape, array.dtype, array.voxel_size_nm, identity, array.absence)


def open_coarser(file: FileSource, voxel_size_nm: VoxelSize | None, throttle: Throttle) -> Iterator[Remote]:
    """The coarser levels of the same image, the coarsest first."""
    file = _moved(file)
    assert file.url is not None
    for dataset in tensorstore.coarser(file.url, file.format, _dataset(file, voxel_size_nm)):
        yield open_remote(file.model_copy(update={"dataset": dataset}), None, throttle)


def _moved(file: FileSource) -> FileSource:
    """The source at the address that its server redirects to."""
    assert file.url is not None
    inside = file.dataset.strip("/") if file.dataset and file.format != "precomputed" else ""
    names = tuple(f"{inside}/{name}".lstrip("/") for name in DESCRIPTIONS[file.format])
    return file.model_copy(update={"url": tensorstore_access.moved(file.url.rstrip("/"), names)})


def _dataset(file: FileSource, wanted: VoxelSize | None) -> str | None:
    """The dataset given, or of precomputed the key of the scale that has the wanted voxel size."""
    if file.format != "precomputed" or file.dataset is not None:
        return file.dataset
    url = file.url
    assert url is not None
    with naming(url):
        if not metadata.read(url, "info").get("scales"):
            return None  # which is told when it is opened
        sizes = ((scale["key"], scale.get("resolution")) for scale in tensorstore.scales_of(url))
        scales = {key: product([1.0] * 3, turned(size, "xyz")) for key, size in sizes}
        if wanted is not None:
            for key, size in scales.items():
                if size and all(isclose(a, b, rel_tol=SIZE_TOLERANCE) for a, b in zip(size, wanted, strict=True)):
                    return key
        if not scales:
            return None
        known = ", ".join(f"{key}: {size and list(size)}" for key, size in scales.items())
        raise InputError(
            f"{url} has no scale of voxel_size_nm {wanted and list(wanted)}; its scales, with z, y, x in nm, are "
            f"{known}; correct voxel_size_nm, or give the scale's key as dataset"
        )


class _Paced:
    """An array whose reader waits for the throttle, by the bytes that were read for it."""

    def __init__(self, array: ArrayLike, throttle: Throttle):
        self.array, self.throttle = array, throttle
        self.shape, self.dtype = array.shape, array.dtype

    def __getitem__(self, index: Any) -> np.ndarray:
        before = tensorstore_access.bytes_read()
        values = self.array[index]
        self.throttle.spend(tensorstore_access.bytes_read() - before)
        return values
