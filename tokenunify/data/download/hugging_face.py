"""Files of the Hugging Face Hub, at one commit; endpoint and token are what the environment gives."""

import os
from pathlib import Path, PurePosixPath

from huggingface_hub import HfApi, get_hf_file_metadata, hf_hub_url
from huggingface_hub.errors import HFValidationError, HTTPError
from huggingface_hub.utils import build_hf_headers

from tokenunify.config import HubFile
from tokenunify.data.download import checksum, http, magic_bytes
from tokenunify.data.download.job import Fetched, File, Job, format_of
from tokenunify.data.formats import image_files
from tokenunify.errors import InputError
from tokenunify.store import manifest

FAILURES = (HTTPError, OSError, HFValidationError)
"""What asking the Hub may raise."""


def fetch(file: File, job: Job) -> Fetched:
    """The file, or the folder of the images that a glob matches, at the revision given or first seen."""
    hub, format = file.huggingface, format_of(file)
    assert hub is not None
    address, is_sequence = _address(hub), format == "images" and image_files.is_glob(hub.file)
    target = job.target(address, "sequence" if is_sequence else PurePosixPath(hub.file).name)
    commit = revision(hub, target.with_name(target.name + ".revision"))
    if is_sequence:
        listed = target.with_name(target.name + ".files")
        if not listed.exists():
            manifest.write_text(listed, "\n".join(matching(hub, commit)) + "\n")
        names = listed.read_text(encoding="utf-8").split("\n")[:-1]
        inside = places(names)
        folder = target / "paths" if any("/" in place for place in inside) else target
        addresses = [(_url(hub, commit, name), place) for name, place in zip(names, inside, strict=True)]
        return http.fetch_images(addresses, folder, file.sha256, job, build_hf_headers())
    with checksum.once(address, target, file.sha256) as kept:
        if kept.missing:
            url, headers = _url(hub, commit, hub.file), build_hf_headers()
            try:
                part = http.transfer(url, target, job.throttle, verified=kept.verified, headers=headers)
                magic_bytes.accept(part, target, address, format)
            except InputError as error:
                raise _unreachable(hub, error) from None
    return Fetched(str(target), kept.sha256)


def revision(file: HubFile, record: Path) -> str:
    """The revision to fetch: the one given, or the newest commit, which `record` keeps from the first call on."""
    if file.revision is not None:
        return file.revision
    if not record.exists():
        try:
            if image_files.is_glob(file.file):
                commit = HfApi().repo_info(file.repo, repo_type=_type(file)).sha
            else:
                commit = get_hf_file_metadata(_url(file, "main", file.file)).commit_hash
        except FAILURES as error:
            raise _unreachable(file, error) from None
        if commit is None:
            raise InputError(f"{_address(file)}: the server names no commit; give the revision in the configuration")
        manifest.write_text(record, commit + "\n")
    return record.read_text(encoding="utf-8").strip()


def matching(file: HubFile, revision: str) -> list[str]:
    """Files of the repository that the glob `file` matches."""
    try:
        names = HfApi().list_repo_files(file.repo, repo_type=_type(file), revision=revision)
    except FAILURES as error:
        raise _unreachable(file, error) from None
    pattern = image_files.meant(names, file.file)
    if found := sorted(name for name in names if image_files.matches(name, pattern)):
        return found
    raise InputError(f"{_address(file)} matches none of the {len(names)} files of the repository; correct file")


def places(names: list[str]) -> list[str]:
    """Where the files belong in the folder of images: as in the repository, below the folder they have in common.

    Raises InputError for a path out of the folder.
    """
    for name in names:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise InputError(f"the hub lists the file {name!r}, which lies outside the folder; do not use it")
    root = os.path.commonpath([PurePosixPath(name).parent for name in names])
    return [str(PurePosixPath(name).relative_to(root)) for name in names]


def _url(file: HubFile, revision: str, name: str) -> str:
    return hf_hub_url(file.repo, name, repo_type=_type(file), revision=revision)


def _address(file: HubFile) -> str:
    """How messages name the file."""
    return f"huggingface {file.repo}@{file.revision or 'newest'}:{file.file}"


def _unreachable(file: HubFile, error: object) -> InputError:
    """What to do about a file that cannot be had."""
    return InputError(
        f"{_address(file)} cannot be fetched ({error}); check repo, file and revision, the network, and that the token "
        "in HF_TOKEN may read it, then run snakemake again"
    )


def _type(file: HubFile) -> str:
    return getattr(file, "repo_type", "model")
