"""Files on this machine: they are found and verified, and left where they are."""

from tokenunify.data import local_files
from tokenunify.data.download.job import Fetched, File, Job, format_of
from tokenunify.errors import InputError


def fetch(file: File, job: Job) -> Fetched:
    """The file, folder or glob of images at `path`; InputError tells why it cannot be used."""
    assert file.path is not None
    try:
        path = local_files.find(file.path, format_of(file))
        return Fetched(path, local_files.verify(path, format_of(file), file.sha256))
    except OSError as error:
        if error.errno in local_files.DISK_FULL:
            raise
        raise InputError(f"{file.path} cannot be read ({error}); correct its permissions or the path") from None
