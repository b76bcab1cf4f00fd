"""Bring one file over http(s): continued where it ended, tried again after passing faults, at a limited rate."""

import os
import re
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO

import pooch
import requests

from tokenunify.data import retry
from tokenunify.errors import InputError

CHUNK_BYTES = 2**14
RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")
"""Content-Range: first byte, last byte, and the length of the whole file where it is known."""


class Throttle:
    """Makes all threads that share it wait, so that no more than so many bytes per second arrive together."""

    def __init__(self, max_mb_per_second: float | None = None):
        self.rate = None if max_mb_per_second is None else max_mb_per_second * 1e6
        self.free, self.turn = 0.0, threading.Lock()

    def spend(self, num_bytes: int) -> None:
        """Wait until this many bytes may have arrived."""
        if self.rate is None:
            return
        with self.turn:
            now = time.monotonic()
            self.free = max(self.free, now) + num_bytes / self.rate
            pause = self.free - now
        time.sleep(pause)


class _Paced:
    """A file whose writer waits for the throttle."""

    def __init__(self, file: BinaryIO, throttle: Throttle):
        self.file, self.throttle = file, throttle

    def write(self, data: bytes) -> None:
        self.file.write(data)
        self.throttle.spend(len(data))

    def flush(self) -> None:
        self.file.flush()


def fetch(
    url: str,
    target: Path,
    *,
    verified: bool,
    check: Callable[[Path], None],
    throttle: Throttle,
    progress: bool = True,
    headers: Mapping[str, str] | None = None,
) -> None:
    """Fetch `url` to `target`; what has arrived lies beside it as `.part` and is continued by the next attempt.

    Bytes are kept as they are sent: what the server calls Content-Encoding stays in the file, because ranges, lengths
    and published checksums count these bytes. A part without the server's mark of the file's version is continued only
    where its checksum is `verified` later. Attempts are counted anew when more has arrived than ever before.
    `check(part)` may raise for content that cannot be right: such a part is removed. InputError tells why the file
    cannot be had.
    """
    part = target.with_name(target.name + ".part")
    attempts, most = retry.Attempts(url, "fetched"), 0
    while True:
        try:
            _transfer(url, part, verified, progress, throttle, dict(headers or {}))
            break
        except requests.RequestException as error:
            arrived = part.stat().st_size
            attempts.failed(error, progress=arrived > most)
            most = max(most, arrived)
    try:
        check(part)
    except InputError:
        part.unlink()
        raise
    os.replace(part, target)


def _transfer(url: str, part: Path, verified: bool, progress: bool, throttle: Throttle, headers: dict) -> None:
    """Append what is missing to `part`; start anew where the server cannot continue the same file."""
    validator = part.with_name(part.name + ".validator")
    known = validator.read_text(encoding="utf-8") if validator.exists() else ""
    start = part.stat().st_size if part.exists() and (known or verified) else 0
    headers |= {"Accept-Encoding": "identity"}
    if start:
        headers |= {"Range": f"bytes={start}-"} | ({"If-Range": known} if known else {})
    expected: int | None = None
    with open(part, "r+b" if start else "wb") as file:
        file.seek(start)

        def answered(response: requests.Response, *_args, **_kwargs) -> None:
            nonlocal expected
            if response.is_redirect or not (response.ok or response.status_code == 416):
                return
            response.raw.headers.pop("Content-Encoding", None)  # else requests decodes
            if response.status_code == 206:
                expected = _continued(response, start, known)
                if expected is None:
                    file.truncate(0)
                    raise requests.ConnectionError(f"the server does not continue this version at byte {start}")
                return
            file.seek(0)
            file.truncate()
            validator.write_text(_mark(response), encoding="utf-8")
            length = response.headers.get("Content-Length")
            expected = None if length is None else int(length)

        fetcher = pooch.HTTPDownloader(
            progressbar=progress,
            chunk_size=CHUNK_BYTES,
            timeout=retry.TIMEOUT_SECONDS,
            headers=headers,
            hooks={"response": answered},
        )
        fetcher(url, _Paced(file, throttle), None)
        arrived = file.tell()
    if expected not in (None, arrived):
        raise requests.ConnectionError(f"{arrived} of {expected} bytes have arrived")
    validator.unlink(missing_ok=True)


def _mark(response: requests.Response) -> str:
    """The mark of the file's version that If-Range may name: a strong ETag, or else the date of the last change."""
    tag = response.headers.get("ETag", "")
    return tag if tag.startswith('"') else response.headers.get("Last-Modified", "")


def _continued(response: requests.Response, start: int, known: str) -> int | None:
    """Bytes of the whole file, by an answer that continues this version of it at `start`; None for any other."""
    parts = RANGE.fullmatch(response.headers.get("Content-Range", ""))
    header = "ETag" if known.startswith('"') else "Last-Modified"
    changed = known and response.headers.get(header, known) != known
    if changed or parts is None or int(parts[1]) != start:
        return None
    return int(parts[2]) + 1 if parts[3] == "*" else int(parts[3])
