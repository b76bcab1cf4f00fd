"""The one exception for what a user can mend; the command line prints it without a traceback."""

from pathlib import Path

BAD_INPUT = "bad input: "
"""What the command line says in front of an InputError."""


class InputError(ValueError):
    """Bad configuration, file or store: the message names it, what was expected, what was found and what to do."""


def tells_bad_input(log: str | Path) -> bool:
    """Whether a stage's log tells of an InputError: the stage would end with it again."""
    try:
        return f" ERROR tokenunify.cli: {BAD_INPUT}".encode() in Path(log).read_bytes()
    except FileNotFoundError:
        return False
