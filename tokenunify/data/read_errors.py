"""What the libraries raise on a file that cannot be read, and what is said of it: the true reason, and what to do."""

import contextlib
import errno
import re
import struct
import zlib
from collections.abc import Iterator

import tifffile

from tokenunify.data.local_files import DISK_FULL
from tokenunify.errors import InputError

BAD_BYTES = (EOFError, SyntaxError, struct.error, zlib.error, tifffile.TiffFileError)
UNREADABLE = (OSError, ValueError, KeyError, IndexError, RuntimeError, *BAD_BYTES)
"""What the libraries raise on a bad file; Pillow raises SyntaxError."""
SENT_PAGE = re.compile(r" \[(?:http_response_body|tensorstore_spec)='.*?'\]", re.DOTALL)
"""How tensorstore's errors quote it, and what was to be opened."""
FORBIDDEN = "this user may not read it: correct its permissions or the path"
MACHINE = "that is a fault of this machine or its file system, not of the file: run snakemake again when it is mended"
BY_NUMBER = {
    errno.EACCES: FORBIDDEN,
    errno.EPERM: FORBIDDEN,
    errno.ENOENT: "a file of it is not there: put it back or correct the path",
    errno.EISDIR: "it is a folder where the format has a file: correct the path or format",
    errno.ENOTDIR: "it is a file where the format has a folder: correct the path or format",
    errno.EAGAIN: "another program has it open for writing: run snakemake again when that has closed it",
    errno.EMFILE: "too many files are open: raise the limit (ulimit -n) and run snakemake again",
    errno.ENFILE: "too many files are open: close other programs and run snakemake again",
    errno.ENOMEM: MACHINE,
    errno.EIO: MACHINE,
    errno.ESTALE: MACHINE,
    errno.ETIMEDOUT: MACHINE,
}
NO_CODEC = (
    "nothing that is installed unpacks it: install the codec that is named, or save the file again without packing or "
    "with gzip"
)
NO_NUMBERS = "its values are no numbers: save it again as integers or floats"
BY_TEXT = {
    r"PERMISSION_DENIED": FORBIDDEN,
    r"UNAVAILABLE|DEADLINE_EXCEEDED": "the server does not answer: check the network, then run snakemake again",
    r"requires the .* package|COMPRESSION.* not supported|not a known COMPRESSION": NO_CODEC,
    r"[Cc]odec.* not available|[Uu]nknown ?[Cc]odec|is not registered": NO_CODEC,
    r"Python objects in dtype|Object arrays cannot be loaded|Unsupported data type": NO_NUMBERS,
    r"may use <?h5clear": "the program that wrote it did not close it: see whether it is whole, run `h5clear -s` on "
    "it, or get it again",
}
"""By what their text has, where errors of several kinds are one type."""
DAMAGED = "it may be incomplete or of another format than the configuration says: get it again or correct format"


@contextlib.contextmanager
def naming(path: str) -> Iterator[None]:
    """Turn whatever a library raises on a bad file into an InputError that names the file."""
    try:
        yield
    except InputError:
        raise
    except UNREADABLE as error:
        if getattr(error, "errno", None) in DISK_FULL:
            raise
        raise InputError(f"{path} cannot be read ({told(error)}); {advice(error)}") from error


def told(error: Exception) -> str:
    """What an error says, in a line and without the page that a server sent with it."""
    return f"{type(error).__name__}: {' '.join(SENT_PAGE.sub('', str(error)).split())}"


def advice(error: Exception) -> str:
    """What to do; that the file may be damaged is said where nothing else explains the error."""
    number = getattr(error, "errno", None)
    if number in BY_NUMBER:
        return BY_NUMBER[number]
    return next((mend for sign, mend in BY_TEXT.items() if re.search(sign, str(error))), DAMAGED)
