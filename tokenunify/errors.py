"""The one exception for what a user can mend; the command line prints it without a traceback."""

BAD_INPUT = "bad input: "
"""What the command line says in front of an InputError."""


class InputError(ValueError):
    """Bad configuration, file or store: the message names it, what was expected, what was found and what to do."""
