"""One file of a folder that is shared on Google Drive, through gdown."""

import os
from collections.abc import Callable
from glob import escape
from pathlib import Path
from typing import Any

import gdown
import requests
from gdown.exceptions import DownloadError

from tokenunify.config import DriveFile
from tokenunify.data import retry
from tokenunify.data.download.http import Throttle
from tokenunify.errors import InputError


def fetch(file: DriveFile, target: Path, *, verified: bool, check: Callable[[Path], None], throttle: Throttle) -> None:
    """Fetch the file to `target`; what has arrived lies beside it and is continued by the next attempt.

    A later run continues it only where its checksum is `verified` later: gdown keeps no mark of the file's version.
    `check` may raise for content that cannot be right. InputError tells why the file cannot be had.
    """
    whole = target.with_name(target.name + ".whole")
    options: Any = {"quiet": True, "use_cookies": False, "timeout": retry.TIMEOUT_SECONDS}
    if not verified:
        for part in target.parent.glob(f"{escape(whole.name)}*.part"):
            part.unlink()
    try:
        number = _number(file, gdown.download_folder(id=file.folder, skip_download=True, **options))
        more: Any = {"speed": throttle.rate, "resume": verified, "retries": retry.ATTEMPTS - 1, **options}
        gdown.download(id=number, output=str(whole), **more)
    except (DownloadError, requests.RequestException) as error:
        raise InputError(
            f"{address(file)} cannot be fetched ({error}); check that the folder is shared with anyone who has the "
            "link, or download the file by hand and give it as `path`; what has arrived is kept where sha256 is given"
        ) from None
    try:
        check(whole)
    except InputError:
        whole.unlink()
        raise
    os.replace(whole, target)


def _number(file: DriveFile, listed: list) -> str:
    known = {entry.path: entry.id for entry in listed}
    if file.file not in known:
        raise InputError(f"{address(file)} is not in the folder, which has {sorted(known)}; correct file")
    return known[file.file]


def address(file: DriveFile) -> str:
    """How messages name the file."""
    return f"drive {file.folder}:{file.file}"
