"""Fetch and verify source files, of a volume or of published weights; the first of the sources that works is used."""

import logging
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlparse

import pooch
import requests
from filelock import FileLock
from tqdm import tqdm

from tokenunify import manifest, stages
from tokenunify.config import FileSource, Source, WeightsSource
from tokenunify.data import hub, sources
from tokenunify.errors import InputError

logger = logging.getLogger(__name__)

ATTEMPTS = 5
BACKOFF_SECONDS = 2.0
"""Pause after the first failed attempt; it doubles each time."""
TIMEOUT_SECONDS = 60
CHUNK_BYTES = 2**14
PARALLEL = 8
"""Files of an image sequence fetched at a time."""
LASTING = (400, 401, 403, 404, 405, 410)
"""Answers of a server that trying again does not change."""
REFUSED = (401, 403)


def run(section: stages.Download, plain: dict, *, downloads: Path, output: Path) -> None:
    """Write the manifest of the first source that works; InputError lists why none did."""
    reasons = []
    for index, source in enumerate(section.sources):
        try:
            content, paths = obtain(source, downloads)
        except InputError as error:
            logger.warning("source %d cannot be used: %s", index, error)
            reasons.append(f"  source {index}: {error}")
            continue
        manifest.write(output, {"source": index, **content}, paths)
        return
    raise InputError("none of the sources works:\n" + "\n".join(reasons))


def obtain(source: Source | WeightsSource, downloads: Path) -> tuple[dict, dict]:
    """What the files of a source are (hashed downstream), and where they are on this machine."""
    if isinstance(source, WeightsSource):
        path, sha256 = _obtain_weights(source, downloads)
        return {"weights": {"sha256": sha256}}, {"weights": path}
    if source.phantom is not None:
        return {"phantom": source.phantom.model_dump(mode="json"), "labels": None}, {}
    content: dict = {"labels": None}
    paths: dict = {}
    for role, file in (("raw", source.raw), ("labels", source.labels), ("mask", source.mask)):
        if file is not None:
            paths[role], sha256 = _obtain_file(file, downloads)
            content[role] = {"sha256": sha256, "format": file.format, "dataset": file.dataset}
    return content, paths


def _obtain_file(file: FileSource, downloads: Path) -> tuple[str, str]:
    if file.path is not None:
        return _find_and_verify(file.path, file.format, file.sha256)
    assert file.url is not None
    if file.indices is not None:
        folder = _sequence(file.url, file.indices, downloads)
        return str(folder), sources.verify(folder, "images", file.sha256)
    return _obtain_url(file.url, file.sha256, downloads)


def _obtain_weights(source: WeightsSource, downloads: Path) -> tuple[str, str]:
    if source.path is not None:
        return _find_and_verify(source.path, "weights", source.sha256)
    if source.url is not None:
        return _obtain_url(source.url, source.sha256, downloads)
    file = source.huggingface
    assert file is not None
    target = downloads / f"{manifest.digest(hub.address(file))[:8]}-{PurePosixPath(file.file).name}"
    return str(target), _once(hub.address(file), target, source.sha256, lambda _: hub.fetch(file, target))


def _obtain_url(url: str, sha256: str | None, downloads: Path) -> tuple[str, str]:
    target = downloads / f"{manifest.digest(url)[:8]}-{_name(url)}"
    return str(target), fetch(url, target, sha256)


def _find_and_verify(text: str, format: str, sha256: str | None) -> tuple[str, str]:
    try:
        path = sources.find(text, format)
        return path, sources.verify(path, format, sha256)
    except OSError as error:
        if error.errno in sources.DISK_FULL:
            raise
        raise InputError(f"{text} cannot be read ({error}); correct its permissions or the path") from None


def _name(url: str) -> str:
    return PurePosixPath(unquote(urlparse(url).path)).name or "index"


def _sequence(url: str, indices: tuple[int, int], downloads: Path) -> Path:
    """Fetch one file per index into one folder; a file is named by its index."""
    suffix = PurePosixPath(_name(url)).suffix
    folder = downloads / f"{manifest.digest([url, indices])[:8]}-sequence"
    with ThreadPoolExecutor(PARALLEL) as pool:

        def one(index: int) -> str:
            return fetch(url.format(index=index), folder / f"{index:06d}{suffix}", None, progress=False)

        for _ in tqdm(pool.map(one, range(*indices)), total=indices[1] - indices[0], unit="file", mininterval=5):
            pass
    return folder


def fetch(url: str, target: Path, sha256: str | None, *, progress: bool = True) -> str:
    """Fetch `url` to `target` unless it is there, and return its SHA-256, which must be the one given."""
    return _once(url, target, sha256, lambda verified: _fetch(url, target, verified, progress))


def _once(address: str, target: Path, sha256: str | None, get: Callable[[bool], None]) -> str:
    """Call `get(whether a checksum is known)`, which makes `target`, unless it is there; return its SHA-256.

    Several processes may ask for the same file: one fetches it. Without `sha256` the first download's value is kept
    beside the file and holds from then on. A file with another checksum is moved aside and never used.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    record = target.with_name(target.name + ".sha256")
    aside = target.with_name(target.name + ".wrong-sha256")
    with FileLock(target.with_name(f".{target.name}.lock")):
        expected = sha256 or (record.read_text().split()[0] if record.exists() else None)
        if not target.exists() and aside.exists() and manifest.file_sha256(aside) == expected:
            os.replace(aside, target)
        if not target.exists():
            get(expected is not None)
        found = manifest.file_sha256(target)
        if expected is not None and found != expected:
            os.replace(target, aside)
            recorded = f"the first download had the expected one: if this file is the right one, delete {record}"
            mend = "correct the address or sha256" if sha256 else recorded
            raise InputError(
                f"{address} is not the expected file: expected sha256 {expected}, found {found}; the file is kept "
                f"aside as {aside} and not used; {mend} and run snakemake again"
            )
        manifest.write_text(record, f"{found}  {target.name}\n")
        return found


def _fetch(url: str, target: Path, verified: bool, progress: bool) -> None:
    part = target.with_name(target.name + ".part")
    for attempt in range(1, ATTEMPTS + 1):
        try:
            _transfer(url, part, verified, progress)
            os.replace(part, target)
            return
        except requests.RequestException as error:
            answer = getattr(error.response, "status_code", None)
            if answer in LASTING or attempt == ATTEMPTS:
                mend = "check the address and the network, then run snakemake again: what has arrived is kept"
                if answer in REFUSED:
                    mend = "it needs a login or an accepted licence: download it by hand and give it as `path`"
                raise InputError(f"{url} cannot be fetched after {attempt} attempts ({error}); {mend}") from None
            pause = BACKOFF_SECONDS * 2 ** (attempt - 1)
            logger.warning("%s: attempt %d failed (%s), again in %g s", url, attempt, error, pause)
            time.sleep(pause)


def _transfer(url: str, part: Path, verified: bool, progress: bool) -> None:
    """Append what is missing to `part`; start anew where the server cannot continue the same file."""
    validator = part.with_name(part.name + ".validator")
    known = validator.read_text() if validator.exists() else ""
    start = part.stat().st_size if part.exists() and (known or verified) else 0
    headers = {"Accept-Encoding": "identity"}
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
        fetcher(url, file, None)
        arrived = file.tell()
    if arrived < expected:
        raise requests.ConnectionError(f"the connection ended after {arrived} of {expected} bytes")
    validator.unlink()
