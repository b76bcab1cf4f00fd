"""What the command line says when a command ends with an error: one line that names the file and what to do."""

import errno
import re
import traceback
from pathlib import Path

from tokenunify.errors import BAD_INPUT, InputError

AGAIN = "free space and run snakemake again, finished blocks are kept"
ADVICE = {
    errno.ENOSPC: f"the disk is full: {AGAIN}",
    errno.EDQUOT: f"the disk quota is used up: {AGAIN}",
    errno.EACCES: "no permission: make it readable or, for results, writable, "
    "or choose another folder with --directory",
    errno.EROFS: "the file system is read-only: choose another folder with --directory",
}
WORDS_OF_A_FULL_DISK = re.compile(
    r"PytorchStreamWriter failed writing|unexpected pos \d+ vs \d+|\d+ requested and \d+ written"
    r"|No space left on device|os error 28\b",
    re.IGNORECASE,
)
"""Messages of libraries that hide the system's error: torch, numpy, safetensors, tensorstore."""
SMALLER = (
    "choose smaller blocks or crops, or fewer threads, or give the job more memory (resources in the configuration)"
)
PACKAGE = Path(__file__).parent


def explain(error: Exception) -> str:
    """The message of an error that ends a command."""
    if isinstance(error, InputError):
        return f"{BAD_INPUT}{error}"
    # Another error may hide that of a full disk, as when an archive cannot be closed then.
    hidden: BaseException | None = error
    while hidden is not None:
        if isinstance(hidden, OSError) and hidden.errno is not None:
            if hidden.errno in (errno.ENOSPC, errno.EDQUOT):
                return f"{_words(hidden)}; {ADVICE[hidden.errno]}"
        elif not isinstance(hidden, InputError) and WORDS_OF_A_FULL_DISK.search(str(hidden)):
            return f"{_words(hidden)}; {ADVICE[errno.ENOSPC]}"
        hidden = hidden.__cause__ or hidden.__context__
    if isinstance(error, OSError) and error.errno is not None:
        return f"{_words(error)}; {ADVICE.get(error.errno, 'see the file system, then run snakemake again')}"
    if isinstance(error, MemoryError):
        return f"not enough memory ({_words(error)}): {SMALLER}"
    # Where our code was, from the command to the error; and the last place of a library's.
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if Path(frame.filename).is_relative_to(PACKAGE)]
    last = frames[-1:] if frames and frames[-1] not in ours else []
    places = [f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in [*ours, *last]]
    return (
        f"unexpected {type(error).__name__}: {_words(error)} ({' > '.join(places)}). A file that is damaged, or of "
        "another program, may be the reason: delete it and make it again; else please report this line"
    )


def _words(error: BaseException) -> str:
    """What the error says, and the files that were being worked on, in one line."""
    return ", ".join(" ".join(str(part).split()) for part in (error, *getattr(error, "__notes__", ())))
