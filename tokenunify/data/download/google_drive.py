"""One file of a folder that is shared on Google Drive, through gdown."""

from glob import escape
from pathlib import PurePosixPath
from typing import Any

import gdown
import requests
from gdown.exceptions import DownloadError

from tokenunify.config import FileSource
from tokenunify.data import retry
from tokenunify.data.download import checksum, magic_bytes
from tokenunify.data.download.job import Fetched, File, Job, format_of
from tokenunify.errors import InputError


def fetch(file: File, job: Job) -> Fetched:
    """The file; what has arrived lies beside it and is continued by the next attempt.

    A later run continues it only where its checksum is verified later: gdown keeps no mark of the file's version.
    """
    assert isinstance(file, FileSource) and file.drive is not None
    folder, name = file.drive.folder, file.drive.file
    address = f"drive {folder}:{name}"
    target = job.target(address, PurePosixPath(name).name)
    whole = target.with_name(target.name + ".whole")
    options: Any = {"quiet": True, "use_cookies": False, "timeout": retry.TIMEOUT_SECONDS}
    more: Any = {"speed": job.throttle.rate, "retries": retry.ATTEMPTS - 1, **options}
    with checksum.once(address, target, file.sha256) as kept:
        if kept.missing:
            if not kept.verified:
                for part in target.parent.glob(f"{escape(whole.name)}*.part"):
                    part.unlink()
            try:
                listed: Any = gdown.download_folder(id=folder, skip_download=True, **options)
                known = {entry.path: entry.id for entry in listed}
                if name not in known:
                    raise InputError(f"{address} is not in the folder, which has {sorted(known)}; correct file")
                gdown.download(id=known[name], output=str(whole), resume=kept.verified, **more)
            except (DownloadError, requests.RequestException) as error:
                raise InputError(
                    f"{address} cannot be fetched ({error}); check that the folder is shared with anyone who has the "
                    "link, or download the file by hand and give it as `path`; what has arrived is kept where sha256 "
                    "is given"
                ) from None
            magic_bytes.accept(whole, target, address, format_of(file))
    return Fetched(str(target), kept.sha256)
