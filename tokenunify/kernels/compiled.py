"""How loops over voxels and edges are compiled, and where numba keeps what it compiled."""

import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba

_numba: Any = numba  # untyped: options that its stubs lack are passed on


def kept(*signature: Any, **options: Any) -> Callable[[Callable], Any]:
    """Numba's njit, whose machine code is kept on disk for later processes.

    It lies beside the source, else in the user's cache folder, else (a checkout and a home that cannot be written, as
    in containers) in a folder of the user's among the temporary files; where none can be written nothing is kept.
    """

    def decorate(function: Callable) -> Any:
        try:
            return _njit(function, *signature, **options, cache=True)
        except RuntimeError:  # numba found no folder
            _numba.config.CACHE_DIR = _temporary_folder()
            return _njit(function, *signature, **options, cache=bool(_numba.config.CACHE_DIR))

    return decorate


def _njit(function: Callable, *signature: Any, cache: bool, **options: Any) -> Any:
    """The compiled function; what was kept of types whose module has moved since is compiled again.

    Numba reads the types before it compares the source's age, so that code kept before an update would stop a run.
    """
    if signature:
        return _numba.njit(*signature, **options, cache=cache)(function)
    compiled = _numba.njit(**options, cache=cache)(function)
    if cache:
        index = compiled._cache._cache_file
        read = index._load_index

        def read_or_forget() -> dict:
            try:
                return read()
            except (ImportError, AttributeError):
                return {}

        index._load_index = read_or_forget
    return compiled


def _temporary_folder() -> str:
    """A folder that nobody else may write to, since code is run from it; empty where there is none."""
    try:
        folder = Path(tempfile.gettempdir(), f"tokenunify-{os.getuid()}")
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        with tempfile.TemporaryFile(dir=folder):
            is_mine = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
            return str(folder) if is_mine and not found.st_mode & 0o077 else ""
    except OSError:
        return ""


loop: Any = kept(nogil=True)
"""For functions that Python calls; threads run them side by side."""

inner: Any = kept(nogil=True, _nrt=False)
"""For functions that loops call, and that make no array. References to the arrays passed to them are not counted: done
atomically, array by array, this took several times as long as the work itself."""
