"""Files of the Hugging Face Hub, through its own client: endpoint and token are what the environment gives it."""

import os
import shutil
from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HFValidationError, HTTPError

from tokenunify.config import HubFile
from tokenunify.data.sources import DISK_FULL
from tokenunify.errors import InputError


def fetch(file: HubFile, target: Path) -> None:
    """Fetch the file to `target`; what a killed process has got is kept beside it and used by the next.

    Raises InputError for a file that cannot be had.
    """
    folder = target.with_name(target.name + ".hub")
    try:
        path = hf_hub_download(file.repo, file.file, revision=file.revision, local_dir=folder)
    except (HTTPError, OSError, HFValidationError) as error:
        if getattr(error, "errno", None) in DISK_FULL:
            raise
        raise InputError(
            f"{address(file)} cannot be fetched ({error.__cause__ or error}); check repo, file and revision, the "
            "network, and that the token in HF_TOKEN may read it, then run snakemake again"
        ) from None
    os.replace(path, target)
    shutil.rmtree(folder)


def address(file: HubFile) -> str:
    """How messages name the file."""
    return f"huggingface {file.repo}@{file.revision}:{file.file}"
