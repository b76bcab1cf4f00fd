"""How loops over voxels and edges are compiled, and where numba keeps what it compiled."""

import os
import stat
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numba

_numba: Any = numba  # untyped: options that its stubs lack are passed on


def kept(*signature: Any, counted: bool = True, **options: Any) -> Callable[[Callable], Any]:
    """Numba's njit, whose machine code is kept on disk for later processes; `counted` as in `_njit`.

    It lies beside the source, else in the user's cache folder, else (a checkout and a home that cannot be written, as
    in containers) in a folder of the user's among the temporary files; where none can be written nothing is kept.
    """

    def decorate(function: Callable) -> Any:
        try:
            return _njit(function, *signature, counted=counted, **options, cache=True)
        except RuntimeError:  # numba found no folder
            _numba.config.CACHE_DIR = ""
            with suppress(OSError):
                folder = Path(tempfile.gettempdir(), f"tokenunify-{os.getuid()}")
                folder.mkdir(mode=0o700, exist_ok=True)
                found = folder.lstat()
                tempfile.TemporaryFile(dir=folder).close()
                # Code is run from it: nobody else may write to it.
                if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077:
                    _numba.config.CACHE_DIR = str(folder)
            kept_there = bool(_numba.config.CACHE_DIR)
            return _njit(function, *signature, counted=counted, **options, cache=kept_there)

    return decorate


def _njit(function: Callable, *signature: Any, counted: bool, cache: bool, **options: Any) -> Any:
    """The compiled function. Only here are private parts of numba (0.68) used; those that a version lacks are left out.

    The option `_nrt` turns the counting of references to arrays off, which no public option does. Without it they are
    counted: loops are slower, results the same.

    `_load_index`, of the file that lists the kept code, unpickles types before it compares the source's age: code kept
    before an update would stop a run when the module of a type has moved. Such code is forgotten here, and compiled
    again; without it the user has to delete the code. Functions with a `signature` are read at once, before that, but
    their types are numba's own.
    """
    with suppress(AttributeError):
        if not counted and hasattr(_numba.core.cpu.CPUTargetOptions, "_nrt"):
            options["_nrt"] = False
    compiled = _numba.njit(*signature, **options, cache=cache)(function)
    with suppress(AttributeError):  # also where nothing is kept
        index = compiled._cache._cache_file
        read = index._load_index

        def read_or_forget() -> dict:
            try:
                return read()
            except (ImportError, AttributeError):
                return {}

        index._load_index = read_or_forget
    return compiled


loop: Any = kept(nogil=True)
"""For functions that Python calls; threads run them side by side."""

inner: Any = kept(nogil=True, counted=False)
"""For functions that loops call, and that make no array. References to the arrays passed to them are not counted: done
atomically, array by array, this took several times as long as the work itself."""
