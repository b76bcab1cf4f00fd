"""Files of the Hugging Face Hub: their addresses and commits; endpoint and token are what the environment gives."""

import os
from pathlib import Path, PurePosixPath

from huggingface_hub import HfApi, get_hf_file_metadata, hf_hub_url
from huggingface_hub.errors import HFValidationError, HTTPError
from huggingface_hub.utils import build_hf_headers

from tokenunify.config import HubFile
from tokenunify.data.formats import image_files
from tokenunify.errors import InputError
from tokenunify.store import manifest


def url(file: HubFile, revision: str, name: str | None = None) -> str:
    """Address of the file, or of another of its repository."""
    return hf_hub_url(file.repo, name or file.file, repo_type=_type(file), revision=revision)


def headers() -> dict[str, str]:
    """The token, where the environment has one."""
    return build_hf_headers()


def address(file: HubFile) -> str:
    """How messages name the file."""
    return f"huggingface {file.repo}@{file.revision or 'newest'}:{file.file}"


def revision(file: HubFile, record: Path) -> str:
    """The revision to fetch: the one given, or the commit that `record` names, written at the first call."""
    if file.revision is not None:
        return file.revision
    if not record.exists():
        manifest.write_text(record, _newest(file) + "\n")
    return record.read_text(encoding="utf-8").strip()


def _newest(file: HubFile) -> str:
    try:
        if is_glob(file):
            commit = HfApi().repo_info(file.repo, repo_type=_type(file)).sha
        else:
            commit = get_hf_file_metadata(url(file, "main")).commit_hash
    except (HTTPError, OSError, HFValidationError) as error:
        raise unreachable(file, error) from None
    if commit is None:
        raise InputError(f"{address(file)}: the server names no commit; give the revision in the configuration")
    return commit


def matching(file: HubFile, revision: str) -> list[str]:
    """Files of the repository that the glob `file` matches."""
    try:
        names = HfApi().list_repo_files(file.repo, repo_type=_type(file), revision=revision)
    except (HTTPError, OSError, HFValidationError) as error:
        raise unreachable(file, error) from None
    pattern = image_files.meant(names, file.file)
    if found := sorted(name for name in names if image_files.matches(name, pattern)):
        return found
    raise InputError(f"{address(file)} matches none of the {len(names)} files of the repository; correct file")


def places(names: list[str]) -> list[str]:
    """Where the files belong in the folder of images: as in the repository, below the folder they have in common.

    Raises InputError for a path out of the folder.
    """
    for name in names:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise InputError(f"the hub lists the file {name!r}, which lies outside the folder; do not use it")
    root = os.path.commonpath([PurePosixPath(name).parent for name in names])
    return [str(PurePosixPath(name).relative_to(root)) for name in names]


def is_glob(file: HubFile) -> bool:
    """Whether `file` is a pattern for many files."""
    return image_files.is_glob(file.file)


def unreachable(file: HubFile, error: object) -> InputError:
    """What to do about a file that cannot be had."""
    return InputError(
        f"{address(file)} cannot be fetched ({error}); check repo, file and revision, the network, and that the token "
        "in HF_TOKEN may read it, then run snakemake again"
    )


def _type(file: HubFile) -> str:
    return getattr(file, "repo_type", "model")
