"""Bring one file over http(s): continued where it ended, tried again after passing faults, at a limited rate."""

import email.utils
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

import pooch
import requests

from tokenunify.errors import InputError

logger = logging.getLogger(__name__)

ATTEMPTS = 5
BACKOFF_SECONDS = 2.0
"""Pause after the first failed attempt; it doubles each time."""
LONGEST_PAUSE_SECONDS = 900.0
"""A server that asks for a longer pause is asked again after this one."""
TIMEOUT_SECONDS = 60
CHUNK_BYTES = 2**14
LASTING = (400, 401, 403, 404, 405, 410)
"""Answers of a server that trying again does not change."""
BUSY = (429, 503)
"""Answers that may tell when to come back."""
RETRY = "check the address and the network, then run snakemake again: what has arrived is kept"
ADVICE = {
    401: "it needs a login or an accepted licence: download it by hand and give it as `path`",
    403: "it needs a login or an accepted licence: download it by hand and give it as `path`",
    404: "the server has nothing at this address: correct it",
    410: "the server has nothing at this address any more: find the new one",
    429: "the server asks for fewer requests: set download.max_mb_per_second, or run snakemake again later",
    500: "the server has a fault of its own: run snakemake again later, what has arrived is kept",
    503: "the server is busy: run snakemake again later, what has arrived is kept",
}


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

    A part without the server's mark of the file's version is continued only where its checksum is `verified` later.
    `check(part)` may raise for content that cannot be right: such a part is removed. InputError tells why the file
    cannot be had.
    """
    part = target.with_name(target.name + ".part")
    for attempt in range(1, ATTEMPTS + 1):
        try:
            _transfer(url, part, verified, progress, throttle, dict(headers or {}))
            break
        except requests.RequestException as error:
            answer = getattr(error.response, "status_code", None)
            if answer in LASTING or attempt == ATTEMPTS:
                mend = ADVICE.get(answer or 0, RETRY)
                raise InputError(f"{url} cannot be fetched after {attempt} attempts ({error}); {mend}") from None
            seconds = pause(error.response, attempt)
            logger.warning("%s: attempt %d failed (%s), again in %g s", url, attempt, error, seconds)
            time.sleep(seconds)
    try:
        check(part)
    except InputError:
        part.unlink()
        raise
    os.replace(part, target)


def pause(response: requests.Response | None, attempt: int) -> float:
    """Seconds until the next attempt: what a busy server asks for, or longer each time."""
    default = BACKOFF_SECONDS * 2 ** (attempt - 1)
    if response is None or response.status_code not in BUSY:
        return default
    asked = response.headers.get("Retry-After", "")
    if asked.isdigit():
        seconds = float(asked)
    else:
        try:
            seconds = (email.utils.parsedate_to_datetime(asked) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):
            return default
    return min(max(seconds, 0.0), LONGEST_PAUSE_SECONDS)


def _transfer(url: str, part: Path, verified: bool, progress: bool, throttle: Throttle, headers: dict) -> None:
    """Append what is missing to `part`; start anew where the server cannot continue the same file."""
    validator = part.with_name(part.name + ".validator")
    known = validator.read_text() if validator.exists() else ""
    start = part.stat().st_size if part.exists() and (known or verified) else 0
    headers |= {"Accept-Encoding": "identity"}
    if start:
        headers |= {"Range": f"bytes={start}-"} | ({"If-Range": known} if known else {})
    expected = 0
    with open(part, "r+b" if start else "wb") as file:
        file.seek(start)

        def answered(response: requests.Response, *_args, **_kwargs) -> None:
            nonlocal expected
            if response.is_redirect or not (response.ok or response.status_code == 416):
                return
            if response.status_code != 206:
                file.seek(0)
                file.truncate()
            elif not response.headers.get("Content-Range", f"bytes {start}-").startswith(f"bytes {start}-"):
                raise requests.ConnectionError(f"asked for bytes from {start}, got {response.headers['Content-Range']}")
            tag = response.headers.get("ETag", "")
            validator.write_text("" if tag.startswith("W/") else tag)
            expected = file.tell() + int(response.headers.get("Content-Length", 0))

        fetcher = pooch.HTTPDownloader(
            progressbar=progress,
            chunk_size=CHUNK_BYTES,
            timeout=TIMEOUT_SECONDS,
            headers=headers,
            hooks={"response": answered},
        )
        fetcher(url, _Paced(file, throttle), None)
        arrived = file.tell()
    if arrived < expected:
        raise requests.ConnectionError(f"the connection ended after {arrived} of {expected} bytes")
    validator.unlink()
