"""Arrays whose axes are stored in another order than z, y, x, or beside axes of size 1: read as z, y, x.

The order is stated by the formats' own fields, which the readers pass on, and by the attributes in ATTRIBUTES.
"""

import json
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from tokenunify.data.formats.source_array import ArrayLike
from tokenunify.errors import InputError

SPACE = {"depth": "z", "plane": "z", "section": "z", "slice": "z", "height": "y", "row": "y", "width": "x"}
SPACE |= {"column": "x", "col": "x", "z": "z", "y": "y", "x": "x"}
OTHERS = {"time": "t", "channel": "c", "channels": "c", "t": "t", "c": "c"}
KNOWN = SPACE | OTHERS
"""Names in use, in lower case, and the names that this module has for them."""


class Stated(NamedTuple):
    """The names of an array's axes, in its order, and what states them."""

    by: str
    names: list[str]


def _listed(value: Any) -> list | None:
    """The names in a list, in a text with a letter for each axis, or in the objects of OME and N5."""
    value = _name(value)
    if isinstance(value, str):
        return list(value.replace(",", ""))
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if not isinstance(value, list):
        return None
    return [_name(item) for item in value]


def _name(item: Any) -> Any:
    if isinstance(item, bytes):
        return item.decode(errors="replace")
    return item.get("name", item.get("label")) if isinstance(item, dict) else item


ATTRIBUTES = {
    "_ARRAY_DIMENSIONS": True,  # xarray
    "axis_names": False,  # funlib.persistence
    "axes": False,  # n5 of neuroglancer and tensorstore, BigStitcher
    "axistags": True,  # vigra, ilastik
    "transform": True,  # COSEM, CellMap
    "dimension_names": False,  # as zarr 3, among the attributes
    "DIMENSION_LABELS": False,  # HDF5
}
"""Attributes that name the axes, and whether n5, whose axes run backwards, has the names in the order of zarr."""


def of_attributes(attributes: dict, *, backwards: bool = False) -> list[Stated]:
    """The names that the attributes of an array, or of n5 (`backwards`), give its axes, in the order of its shape."""
    found = []
    for key, as_in_zarr in ATTRIBUTES.items():
        if key not in attributes:
            continue
        value, names = attributes[key], None
        try:
            if key == "axistags":
                tags = json.loads(value) if isinstance(value, (str, bytes)) else value
                names = [axis["key"] for axis in tags["axes"]]
            elif key == "transform":  # names z, y, x as numpy has them, unless its `order` is F
                names = _listed(value.get("axes")) if isinstance(value, dict) else None
                names = names[::-1] if names and value.get("order") == "F" else names
            else:
                names = _listed(value)
        except (IndexError, KeyError, TypeError, ValueError):
            continue  # the attribute is about something else than axes
        if names:
            found.append(Stated(key, names[::-1] if backwards and as_in_zarr else names))
    return found


def agreed(path: str, stated: Iterable[Stated], num_axes: int) -> list[str] | None:
    """The names of the axes, by which z, y and x are known; None where no statement names any of them.

    Where names are unknown, they are taken for the missing ones of z, y, x, if the axes are then in this order or only
    one was missing. Raises InputError where two statements differ, or one has another number of axes than the array.
    """
    agreed_on: tuple[str, list[str], list[str]] | None = None
    for by, names in stated:
        plain = [_plain_name(name) for name in names]
        if not set(plain) & set("zyx"):
            continue
        if len(names) != num_axes:
            raise InputError(f"{path}: {by} names {len(names)} axes, {names}, of an array of {num_axes}; correct it")
        missing = [axis for axis in "zyx" if axis not in plain]
        unknown = [number for number, name in enumerate(plain) if name not in KNOWN.values()]
        if len(missing) == len(unknown):
            guesses = dict(zip(unknown, missing, strict=True))
            guessed = [guesses.get(number, name) for number, name in enumerate(plain)]
            in_order = [name for name in guessed if name in "zyx"] == ["z", "y", "x"]
            plain = guessed if in_order or len(missing) == 1 else plain
        agreed_on = agreed_on or (by, names, plain)
        first_by, first_names, first = agreed_on
        if [name if name in "zyx" else "" for name in plain] != [name if name in "zyx" else "" for name in first]:
            raise InputError(
                f"{path}: {first_by} says that the axes are {first_names}, {by} that they are {names}; correct the one "
                "that is wrong, or remove it"
            )
    return agreed_on[2] if agreed_on else None


def _plain_name(name: Any) -> str:
    """The name that this module has for an axis; funlib.persistence marks axes that are not of space by ^."""
    lower = str(name).strip(" ^").lower()
    return KNOWN.get(lower, lower)


def order(path: str, names: Sequence[str], shape: Sequence[int]) -> tuple[int, int, int]:
    """Positions of z, y and x among the named axes; InputError where one is missing or another has several entries."""
    plain = [_plain_name(name) for name in names]
    others = [(name, size) for name, known, size in zip(names, plain, shape, strict=True) if known not in SPACE]
    several = [f", but {name} has {size} entries" for name, size in others if size > 1]
    if all(plain.count(axis) == 1 for axis in "zyx") and not several:
        return plain.index("z"), plain.index("y"), plain.index("x")
    raise InputError(
        f"{path} has axes {list(names)}, shape {list(shape)}: expected z, y, x in any order and at most t and c of "
        f"size 1{''.join(several)}; store one channel of one time point"
    )


class Ordered:
    """A view of an array whose axes at the positions `order` are z, y, x; along the others it has the first entry."""

    def __init__(self, array: ArrayLike, order: tuple[int, int, int]):
        self.array, self.order, self.ndim = array, order, len(array.shape)
        self.shape, self.dtype = tuple(array.shape[axis] for axis in order), array.dtype
        chunks = getattr(array, "chunks", None)
        self.chunks = chunks and tuple(chunks[axis] for axis in order)

    def __getitem__(self, index: Any) -> np.ndarray:
        given = index if isinstance(index, tuple) else (index,)
        wanted = dict(zip(self.order, [*given, *[slice(None)] * (3 - len(given))], strict=True))
        box = np.asarray(self.array[tuple(wanted.get(axis, 0) for axis in range(self.ndim))])
        left = [axis for axis in self.order if isinstance(wanted[axis], slice)]
        return box.transpose([sorted(left).index(axis) for axis in left])

    def unwritten(self, box: Sequence[slice]) -> int:
        """Number of voxels of a box that the file does not have; 0 where the array does not tell."""
        count = getattr(self.array, "unwritten", None)
        wanted = dict(zip(self.order, box, strict=True))
        return count([wanted.get(axis, slice(0, 1)) for axis in range(self.ndim)]) if count else 0


def ordered(path: str, array: ArrayLike, names: Sequence[str]) -> tuple[ArrayLike, tuple[int, int, int]]:
    """The array as z, y, x, and the positions of these axes in the file."""
    if len(names) != len(array.shape):
        raise InputError(f"{path} has {len(array.shape)} axes, shape {list(array.shape)}, but names {list(names)}")
    places = order(path, names, array.shape)
    return (array if places == (0, 1, 2) and len(names) == 3 else Ordered(array, places)), places
