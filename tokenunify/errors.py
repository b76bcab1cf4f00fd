"""The one exception for what a user can mend; the command line prints it without a traceback."""


class InputError(ValueError):
    """Bad configuration, file or store: the message names it, what was expected, what was found and what to do."""
