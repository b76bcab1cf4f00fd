"""How loops over voxels and edges are compiled."""

from typing import Any

from numba import njit

OPTIONS: dict[str, Any] = {"cache": True, "nogil": True}

loop: Any = njit(**OPTIONS)
"""For functions that Python calls; threads run them side by side."""

inner: Any = njit(**OPTIONS | {"_nrt": False})
"""For functions that loops call, and that make no array. References to the arrays passed to them are not counted: done
atomically, array by array, this took several times as long as the work itself."""
