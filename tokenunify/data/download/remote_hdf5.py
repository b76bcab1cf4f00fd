"""An HDF5 file behind an address, of which only the bytes that are asked for are fetched."""

import hashlib
import io
from collections import OrderedDict
from typing import Any

import h5py
import requests

from tokenunify.config import FileSource
from tokenunify.data import retry
from tokenunify.data.download.remote_array import Remote
from tokenunify.data.download.throttle import Throttle
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
        self.position, self.length, self.identity = 0, 0, ""
        self.pages = OrderedDict({0: self._fetch(0)})

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
        if number not in self.pages:
            self.pages[number] = self._fetch(number)
            if len(self.pages) > KEPT_PAGES:
                self.pages.popitem(last=False)
        self.pages.move_to_end(number)
        piece = self.pages[number][start : start + len(buffer)]
        buffer[: len(piece)] = piece
        self.position += len(piece)
        return len(piece)

    def _fetch(self, number: int) -> bytes:
        """Ask for a page, again after passing faults."""
        first = number * PAGE_BYTES
        headers = {"Range": f"bytes={first}-{first + PAGE_BYTES - 1}", "Accept-Encoding": "identity"}
        options: Any = {"headers": headers, "timeout": retry.TIMEOUT_SECONDS, "stream": True}
        attempts = retry.Attempts(self.url, "read", str)
        while True:
            try:
                with self.session.get(self.url, **options) as response:
                    response.raise_for_status()
                    told = response.headers
                    answered = told.get("Content-Range", "")
                    length = answered.rpartition("/")[2]
                    if response.status_code != 206 or not (answered.startswith(f"bytes {first}-") and length.isdigit()):
                        raise InputError(
                            f"{self.url}: the server does not answer for ranges of bytes; remove partial: the whole "
                            "file is fetched then"
                        )
                    version = "\n".join([str(int(length)), told.get("ETag", ""), told.get("Last-Modified", "")])
                    identity = hashlib.sha256(version.encode()).hexdigest()
                    if self.identity not in ("", identity):
                        raise InputError(f"{self.url} changed while it was read; run snakemake again")
                    self.length, self.identity = int(length), identity
                    content = response.content
                if len(content) != (expected := min(PAGE_BYTES, self.length - first)):
                    raise requests.ConnectionError(f"{len(content)} bytes arrived, not {expected}")
                self.throttle.spend(len(content))
                return content
            except requests.RequestException as error:
                attempts.failed(error)


def open_ranged(file: FileSource, throttle: Throttle) -> Remote:
    """Open the dataset of an HDF5 file; InputError tells why it cannot be."""
    assert file.url is not None
    ranged = RangedFile(file.url, throttle)
    with naming(file.url):
        array = hdf5.open_dataset(file.url, h5py.File(io.BufferedReader(ranged, PAGE_BYTES), "r"), file.dataset)
    size, identity = array.voxel_size_nm, ranged.identity
    return Remote(file.url, array, array.shape, array.dtype, size, identity, array.absence)
