"""Fetch and verify source files, of a volume or of published weights; the first of the sources that works is used."""

import logging
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlparse

from tqdm import tqdm

from tokenunify import config as c
from tokenunify.config import FileSource, HubFile, Source, WeightsSource
from tokenunify.data import local_files
from tokenunify.data.download import (
    archives,
    checksum,
    google_drive,
    http,
    hugging_face,
    magic_bytes,
    remote_array,
    remote_box,
    remote_hdf5,
    sampled_region,
)
from tokenunify.data.formats import absent, hdf5_references, image_files, tensorstore_access
from tokenunify.data.formats.absent import Count
from tokenunify.errors import InputError
from tokenunify.stages import sections
from tokenunify.store import manifest

logger = logging.getLogger(__name__)

PARALLEL = 8
"""Files of an image sequence fetched at a time."""


@dataclass(frozen=True)
class Job:
    """Where files go, and what the stage was told beside the sources."""

    downloads: Path
    section: sections.Download
    permit: sections.Permit
    throttle: http.Throttle

    def place(self, identity: object, name: str) -> Path:
        """Where to keep what `identity` tells apart."""
        return self.downloads / f"{manifest.digest(identity)[:8]}-{name}"


def run(section: sections.Download, plain: dict, *, downloads: Path, output: Path) -> None:
    """Write the manifest of the first source that works; InputError lists why none did."""
    permit = sections.permit()
    job = Job(downloads, section, permit, http.Throttle(permit.max_mb_per_second))
    reasons = []
    for index, source in enumerate(section.sources):
        try:
            content, paths = obtain(source, job)
        except InputError as error:
            logger.warning("source %d cannot be used: %s", index, error)
            reasons.append(f"  source {index}: {error}")
            continue
        manifest.write(output, content, {**paths, **_allowances(source), "source": index, "section": plain})
        return
    raise InputError("none of the sources works:\n" + "\n".join(reasons))


def _allowances(source: Source | WeightsSource) -> dict:
    """What ingest is to know of the files beside their content, which the hash of a volume must not depend on."""
    files = {} if isinstance(source, WeightsSource) else source.files
    return {"allow_missing": {role: file.allow_missing for role, file in files.items()}} if files else {}


def obtain(source: Source | WeightsSource, job: Job) -> tuple[dict, dict]:
    """What the files of a source are (hashed downstream), and where they are on this machine."""
    if isinstance(source, WeightsSource):
        path, sha256 = _obtain_place(source, "weights", job)
        return {"weights": {"sha256": sha256}}, {"weights": path}
    if source.phantom is not None:
        return {"phantom": source.phantom.model_dump(mode="json"), "labels": None}, {}
    content: dict = {"labels": None}
    paths: dict = {}
    for role, file in source.files.items():
        paths[role], content[role] = _obtain_file(file, job)
    return content, paths


def _obtain_file(file: FileSource, job: Job) -> tuple[str, dict]:
    if file.is_box:
        sample = job.section.sample
        if sample is None:
            return _obtain_box(file, job.section.roi, job, file.allow_missing)
        return _obtain_box(file, _choose(file, sample, job), job)  # which has judged how much of it is blank
    format = file.format if file.member is None else "archive"
    path, sha256 = _obtain_place(file, format, job)
    if file.member is not None:
        path, sha256 = _obtain_member(path, sha256, file, job)
    alone = file.path is None or file.member is not None
    others = hdf5_references.referred(path, file.format, file.dataset, alone=alone)
    content = {"sha256": sha256, "format": file.format, "dataset": file.dataset}
    return path, {**content, "refers_to": others} if others else content


def _obtain_place(file: FileSource | WeightsSource, format: str, job: Job) -> tuple[str, str]:
    """Path and checksum of the file, folder or archive that the source names."""
    if file.path is not None:
        return _find_and_verify(file.path, format, file.sha256)
    _check_terms(job)
    if file.huggingface is not None:
        return _obtain_hub(file.huggingface, format, file.sha256, job)
    if isinstance(file, FileSource) and file.drive is not None:
        return _obtain_drive(file.drive, format, file.sha256, job)
    assert file.url is not None
    if isinstance(file, FileSource) and file.indices is not None:
        names = ((url, f"{i:06d}{PurePosixPath(_name(url)).suffix}") for i, url in _numbered(file.url, file.indices))
        folder = job.place([file.url, file.indices], "sequence")
        return _sequence(folder, names, file.indices[1] - file.indices[0], file.sha256, job)
    return _obtain_url(file.url, format, file.sha256, job)


def _check_terms(job: Job) -> None:
    """Refuse to download what its owner gives only to those who accept the terms."""
    terms = job.section.terms
    if terms is None or not terms.ask or terms.name in job.permit.accept_licenses:
        return
    accepted = ", ".join([*job.permit.accept_licenses, terms.name])
    where = f" ({terms.url})" if terms.url else ""
    raise InputError(
        f"the terms {terms.name}{where} are not accepted, so nothing is downloaded. They say: {terms.text}\n"
        f"If you keep to them, put this line at the top level of the configuration: accept_licenses: [{accepted}]"
    )


def _obtain_url(url: str, format: str, sha256: str | None, job: Job) -> tuple[str, str]:
    target = job.place(url, _name(url))
    return str(target), fetch(url, target, sha256, throttle=job.throttle, check=magic_bytes.checker(url, format))


def _obtain_hub(file: HubFile, format: str, sha256: str | None, job: Job) -> tuple[str, str]:
    """The file, or the folder of those that a glob matches, at the revision given or first seen."""
    address, is_sequence = hugging_face.address(file), format == "images" and hugging_face.is_glob(file)
    target = job.place(address, "sequence" if is_sequence else PurePosixPath(file.file).name)
    revision = hugging_face.revision(file, target.with_name(target.name + ".revision"))
    if not is_sequence:
        check = magic_bytes.checker(address, format)

        def get(verified: bool) -> None:
            _fetch_hub(file, revision, target, verified, check, job)

        return str(target), checksum.once(address, target, sha256, get)
    listed = target.with_name(target.name + ".files")
    if not listed.exists():
        manifest.write_text(listed, "\n".join(hugging_face.matching(file, revision)) + "\n")
    names = listed.read_text(encoding="utf-8").split("\n")[:-1]
    places = hugging_face.places(names)
    folder = target / "paths" if any("/" in place for place in places) else target
    addresses = ((hugging_face.url(file, revision, name), place) for name, place in zip(names, places, strict=True))
    return _sequence(folder, addresses, len(names), sha256, job, hugging_face.headers())


def _fetch_hub(
    file: HubFile, revision: str, target: Path, verified: bool, check: Callable[[Path], None], job: Job
) -> None:
    url, headers, throttle = hugging_face.url(file, revision), hugging_face.headers(), job.throttle
    try:
        http.fetch(url, target, verified=verified, check=check, throttle=throttle, headers=headers)
    except InputError as error:
        raise hugging_face.unreachable(file, error) from None


def _obtain_drive(file: c.DriveFile, format: str, sha256: str | None, job: Job) -> tuple[str, str]:
    address = google_drive.address(file)
    target = job.place(address, PurePosixPath(file.file).name)
    check = magic_bytes.checker(address, format)

    def get(verified: bool) -> None:
        google_drive.fetch(file, target, verified=verified, check=check, throttle=job.throttle)

    return str(target), checksum.once(address, target, sha256, get)


def _obtain_member(path: str, sha256: str, file: FileSource, job: Job) -> tuple[str, str]:
    assert file.member is not None
    wanted, max_bytes = file.member, job.permit.max_unpacked_bytes
    layout = ["paths"] if image_files.is_glob(wanted) else []  # earlier ones had the files of all folders in one
    name = PurePosixPath(wanted).name.translate(str.maketrans("*?[]", "----"))
    target = job.place([sha256, wanted, *layout], name)

    def get(_: bool) -> None:
        archives.unpack(path, wanted, target, max_bytes)

    def place(made: Path) -> str:
        return image_files.nested(made) if image_files.is_glob(wanted) and made.is_dir() else str(made)

    found = checksum.once(
        f"{path}:{wanted}", target, None, get, lambda made: local_files.checksum(place(made), file.format)
    )
    return place(target), found


def _obtain_box(file: FileSource, roi: c.RoiConfig | None, job: Job, allow_missing: float = 1.0) -> tuple[str, dict]:
    """A zarr that holds a box of a remote array, and which box of it that is."""
    _check_terms(job)
    assert file.url is not None
    target = job.place({**_array(file, job), "roi": roi and roi.model_dump()}, "box.zarr")

    def get(_: bool) -> None:
        local_files.check_links(tensorstore_access.local(file.url or ""))
        remote_box.fetch(target, roi, lambda: _open(file, job), allow_missing)

    sha256 = checksum.once(file.url, target, file.sha256, get, lambda made: local_files.checksum(made, "zarr"))
    place = remote_box.described(target)
    absent.check(file.url, Count(*place.get("absent", (0, 0))), allow_missing)
    return str(target), {"sha256": sha256, "format": "zarr", "dataset": None, "box": place}


def _choose(file: FileSource, sample: sections.Sample, job: Job) -> c.RoiConfig:
    """Where in the remote array the sampled region is."""
    _check_terms(job)

    def open_preview() -> sampled_region.Preview | None:
        coarser = () if file.partial else remote_array.open_coarser(file, job.section.voxel_size_nm, job.throttle)
        return sampled_region.find_preview(_open(file, job), coarser, sample.shape)

    record = job.place({**_array(file, job), "sample": sample.model_dump()}, "places.json")
    return sampled_region.choose(sample, record, open_preview, lambda roi: Path(_obtain_box(file, roi, job)[0]))


def _open(file: FileSource, job: Job) -> remote_array.Remote:
    if file.partial:
        return remote_hdf5.open_ranged(file, job.throttle)
    return remote_array.open_remote(file, job.section.voxel_size_nm, job.throttle)


def _array(file: FileSource, job: Job) -> dict:
    """What tells a remote array apart."""
    array = {"url": file.url, "dataset": file.dataset, "format": file.format}
    return {**array, "size": None if file.dataset else job.section.voxel_size_nm}


def _find_and_verify(text: str, format: str, sha256: str | None) -> tuple[str, str]:
    try:
        path = local_files.find(text, format)
        return path, local_files.verify(path, format, sha256)
    except OSError as error:
        if error.errno in local_files.DISK_FULL:
            raise
        raise InputError(f"{text} cannot be read ({error}); correct its permissions or the path") from None


def _name(url: str) -> str:
    return PurePosixPath(unquote(urlparse(url).path)).name or "index"


def _numbered(url: str, indices: tuple[int, int]) -> Iterable[tuple[int, str]]:
    return ((index, url.format(index=index)) for index in range(*indices))


def _sequence(
    folder: Path,
    addresses: Iterable[tuple[str, str]],
    count: int,
    sha256: str | None,
    job: Job,
    headers: Mapping[str, str] | None = None,
) -> tuple[str, str]:
    """Fetch images, each to the place in the folder that follows its address."""

    def one(pair: tuple[str, str]) -> str:
        url, place = pair
        check = magic_bytes.checker(url, "images")
        return fetch(url, folder / place, None, throttle=job.throttle, check=check, progress=False, headers=headers)

    with ThreadPoolExecutor(PARALLEL) as pool:
        for _ in tqdm(pool.map(one, addresses), total=count, unit="file", mininterval=5):
            pass
    images = image_files.nested(folder)
    return images, local_files.verify(images, "images", sha256)


def fetch(url: str, target: Path, sha256: str | None, **options) -> str:
    """Fetch `url` to `target` unless it is there, and return its SHA-256, which must be the one given."""
    return checksum.once(url, target, sha256, lambda verified: http.fetch(url, target, verified=verified, **options))
