"""An HDF5 file behind an address, of which only the bytes that are asked for are fetched."""

import hashlib
import io
from collections import OrderedDict
from typing import Any

import h5py
import requests

from tokenunify.config import FileSource
from tokenunify.data import retry
from tokenunify.data.download.http import Throttle
from tokenunify.data.download.remote_array import Remote
from tokenunify.data.formats import hdf5
from tokenunify.data.read_errors import naming
from tokenunify.errors import InputError

PAGE_BYTES = 2**20
"""Unit of a request."""
KEPT_PAGES = 128


class RangedFile(io.RawIOBase):
    """A file behind an http(s) address, read in pages; the last ones used are kept.

    Raises InputError where the server does not answer for ranges, or the file changes while it is read.
    """

    def __init__(self, url: str, throttle: Throttle):
        self.url, self.throttle, self.session = url, throttle, requests.Session()
        self.pages: OrderedDict[int, bytes] = OrderedDict()
        self.position, self.length, self.identity = 0, 0, ""
        self._page(0)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.length}[whence]
        return self.position

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer from the pages; fewer bytes are read at the end of a page."""
        number, start = divmod(self.position, PAGE_BYTES)
        if self.position >= self.length:
            return 0
        piece = self._page(number)[start : start + len(buffer)]
        buffer[: len(piece)] = piece
        self.position += len(piece)
        return len(piece)

    def _page(self, number: int) -> bytes:
        if number not in self.pages:
            self.pages[number] = self._fetch(number)
            if len(self.pages) > KEPT_PAGES:
                self.pages.popitem(last=False)
        self.pages.move_to_end(number)
        return self.pages[number]

    def _fetch(self, number: int) -> bytes:
        attempts = retry.Attempts(self.url, "read", str)
        while True:
            try:
                return self._ask(number)
            except requests.RequestException as error:
                attempts.failed(error)

    def _ask(self, number: int) -> bytes:
        first = number * PAGE_BYTES
        last = first + PAGE_BYTES - 1
        headers = {"Range": f"bytes={first}-{last}", "Accept-Encoding": "identity"}
        with self.session.get(self.url, headers=headers, timeout=retry.TIMEOUT_SECONDS, stream=True) as response:
            response.raise_for_status()
            told = response.headers.get("Content-Range", "")
            length = told.rpartition("/")[2]
            if response.status_code != 206 or not told.startswith(f"bytes {first}-") or not length.isdigit():
                raise InputError(
                    f"{self.url}: the server does not answer for ranges of bytes; remove partial: the whole file is "
                    "fetched then"
                )
            self._check_version(int(length), response)
            content = response.content
        if len(content) != min(PAGE_BYTES, self.length - first):
            raise requests.ConnectionError(f"{len(content)} bytes arrived, not {min(PAGE_BYTES, self.length - first)}")
        self.throttle.spend(len(content))
        return content

    def _check_version(self, length: int, response: requests.Response) -> None:
        told = [str(length), *(response.headers.get(name, "") for name in ("ETag", "Last-Modified"))]
        identity = hashlib.sha256("\n".join(told).encode()).hexdigest()
        if self.identity not in ("", identity):
            raise InputError(f"{self.url} changed while it was read; run snakemake again")
        self.length, self.identity = length, identity


def open_ranged(file: FileSource, throttle: Throttle) -> Remote:
    """Open the dataset of an HDF5 file; InputError tells why it cannot be."""
    assert file.url is not None
    ranged = RangedFile(file.url, throttle)
    with naming(file.url):
        array = hdf5.open_dataset(file.url, h5py.File(io.BufferedReader(ranged, PAGE_BYTES), "r"), file.dataset)
    size, identity = array.voxel_size_nm, ranged.identity
    return Remote(file.url, array, array.shape, array.dtype, size, identity, array.absence)
