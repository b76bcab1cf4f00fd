"""Files over http(s): continued where they ended, tried again after passing faults, at a limited rate."""

import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlparse

import requests
from tqdm import tqdm

from tokenunify.config import FileSource
from tokenunify.data import local_files, retry
from tokenunify.data.download import checksum, magic_bytes
from tokenunify.data.download.job import Fetched, File, Job, format_of
from tokenunify.data.download.throttle import Throttle
from tokenunify.data.formats import image_files

CHUNK_BYTES = 2**14
PARALLEL = 8
"""Files of an image sequence fetched at a time."""
RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")
"""Content-Range: first byte, last byte, and the length of the whole file where it is known."""


def fetch(file: File, job: Job) -> Fetched:
    """The file at `url`, or a folder of the images that `indices` number there."""
    assert file.url is not None
    if isinstance(file, FileSource) and file.indices is not None:
        urls = [(index, file.url.format(index=index)) for index in range(*file.indices)]
        addresses = [(url, f"{index:06d}{PurePosixPath(_name(url)).suffix}") for index, url in urls]
        return fetch_images(addresses, job.target([file.url, file.indices], "sequence"), file.sha256, job)
    target = job.target(file.url, _name(file.url))
    with checksum.once(file.url, target, file.sha256) as kept:
        if kept.missing:
            part = transfer(file.url, target, job.throttle, verified=kept.verified)
            magic_bytes.accept(part, target, file.url, format_of(file))
    return Fetched(str(target), kept.sha256)


def _name(url: str) -> str:
    return PurePosixPath(unquote(urlparse(url).path)).name or "index"


def fetch_images(
    addresses: list[tuple[str, str]],
    folder: Path,
    sha256: str | None,
    job: Job,
    headers: Mapping[str, str] | None = None,
) -> Fetched:
    """Fetch the images at `addresses`, pairs of a url and a place in `folder`; `sha256` is that of all together."""

    def fetch_one(address: tuple[str, str]) -> None:
        url, target = address[0], folder / address[1]
        with checksum.once(url, target, None) as kept:
            if kept.missing:
                part = transfer(url, target, job.throttle, verified=kept.verified, progress=False, headers=headers)
                magic_bytes.accept(part, target, url, "images")

    with ThreadPoolExecutor(PARALLEL) as pool:
        for _ in tqdm(pool.map(fetch_one, addresses), total=len(addresses), unit="file", mininterval=5):
            pass
    images = image_files.nested(folder)
    return Fetched(images, local_files.verify(images, "images", sha256))


def transfer(
    url: str,
    target: Path,
    throttle: Throttle,
    *,
    verified: bool,
    progress: bool = True,
    headers: Mapping[str, str] | None = None,
) -> Path:
    """Bring the bytes of `url` to a file beside `target`, its `.part`, and return that; a later call continues it.

    Bytes are kept as they are sent: what the server calls Content-Encoding stays in the file, because ranges, lengths
    and published checksums count these bytes. A part without the server's mark of the file's version is continued only
    where its checksum is `verified` later. Attempts are counted anew when more has arrived than ever before. InputError
    tells why the file cannot be had.
    """
    part = target.with_name(target.name + ".part")
    attempts, most = retry.Attempts(url, "fetched"), 0
    while True:
        try:
            _attempt(url, part, throttle, verified, progress, headers)
            return part
        except requests.RequestException as error:
            arrived = part.stat().st_size
            attempts.failed(error, progress=arrived > most)
            most = max(most, arrived)


def _attempt(
    url: str, part: Path, throttle: Throttle, verified: bool, progress: bool, headers: Mapping[str, str] | None
) -> None:
    """Append what is missing to `part`; start anew where the server cannot continue the same file."""
    validator = part.with_name(part.name + ".validator")
    known = validator.read_text(encoding="utf-8") if validator.exists() else ""
    start = part.stat().st_size if part.exists() and (known or verified) else 0
    asked = {**(headers or {}), "Accept-Encoding": "identity"}
    if start:
        asked |= {"Range": f"bytes={start}-"} | ({"If-Range": known} if known else {})
    with (
        open(part, "r+b" if start else "wb") as file,
        requests.get(url, headers=asked, timeout=retry.TIMEOUT_SECONDS, stream=True) as response,
    ):
        told = response.headers
        if response.status_code == 416:  # no such range: the next attempt starts anew
            file.truncate(0)
        response.raise_for_status()
        if response.status_code == 206:
            continued = RANGE.fullmatch(told.get("Content-Range", ""))
            changed = known and told.get("ETag" if known.startswith('"') else "Last-Modified", known) != known
            if changed or continued is None or int(continued[1]) != start:
                file.truncate(0)
                raise requests.ConnectionError(f"the server does not continue this version at byte {start}")
            expected: int | None = int(continued[2]) + 1 if continued[3] == "*" else int(continued[3])
            file.seek(start)
        else:
            file.truncate(0)  # before the new mark is written, so that it never stands beside old bytes
            tag = told.get("ETag", "")  # If-Range may name a strong one, or else the date of the last change
            validator.write_text(tag if tag.startswith('"') else told.get("Last-Modified", ""), encoding="utf-8")
            expected = int(told["Content-Length"]) if "Content-Length" in told else None
        response.raw.headers.pop("Content-Encoding", None)  # else requests decodes
        total = int(told.get("Content-Length", 0))
        with tqdm(total=total, unit="B", unit_scale=True, ncols=79, disable=not progress) as bar:
            for data in response.iter_content(CHUNK_BYTES):
                file.write(data)
                file.flush()
                throttle.spend(len(data))
                bar.update(len(data))
        arrived = file.tell()
    if expected not in (None, arrived):
        raise requests.ConnectionError(f"{arrived} of {expected} bytes have arrived")
    validator.unlink(missing_ok=True)
