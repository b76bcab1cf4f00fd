"""Arrays whose axes are stored in another order than z, y, x, or beside axes of size 1: read as z, y, x.

What states the order: the formats' own fields, given by the readers, and the attributes of ATTRIBUTES.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from tokenunify.data.formats.source_array import ArrayLike
from tokenunify.errors import InputError

SPACE = {"depth": "z", "plane": "z", "section": "z", "slice": "z", "height": "y", "row": "y", "width": "x"}
SPACE |= {"column": "x", "col": "x", "z": "z", "y": "y", "x": "x"}
OTHERS = {"time": "t", "channel": "c", "channels": "c", "t": "t", "c": "c"}
KNOWN = SPACE | OTHERS
"""Names in use, in lower case, and what they are here."""


class Stated(NamedTuple):
    """The names of an array's axes, in its order, and what states them."""

    by: str
    names: list[str]


def _listed(value: Any) -> list | None:
    """Names in a list, in a text of one letter each, or in OME's or N5's objects."""
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


def _vigra(value: Any) -> list | None:
    tags = json.loads(value) if isinstance(value, (str, bytes)) else value
    return [axis["key"] for axis in tags["axes"]]


def _transform(value: Any) -> list | None:
    """COSEM's: of z, y, x as numpy has them, unless its `order` is F."""
    names = _listed(value.get("axes")) if isinstance(value, dict) else None
    return names[::-1] if names and value.get("order") == "F" else names


ATTRIBUTES: dict[str, tuple[Callable[[Any], list | None], bool]] = {
    "_ARRAY_DIMENSIONS": (_listed, True),  # xarray
    "axis_names": (_listed, False),  # funlib.persistence
    "axes": (_listed, False),  # n5 of neuroglancer and tensorstore, BigStitcher
    "axistags": (_vigra, True),  # vigra, ilastik
    "transform": (_transform, True),  # COSEM, CellMap
    "dimension_names": (_listed, False),  # as zarr 3, among the attributes
    "DIMENSION_LABELS": (_listed, False),  # HDF5
}
"""Attributes that name the axes, how to read each, and whether in n5, whose axes run backwards, it is as in zarr."""


def of_attributes(attributes: dict, *, backwards: bool = False) -> list[Stated]:
    """What the attributes of an array, or of n5 (`backwards`), say of its axes, in the order of its shape."""
    found = []
    for key, (read, as_in_zarr) in ATTRIBUTES.items():
        try:
            names = read(attributes[key]) if key in attributes else None
        except (IndexError, KeyError, TypeError, ValueError):
            continue  # of something else than axes
        if names:
            found.append(Stated(key, names[::-1] if backwards and as_in_zarr else names))
    return found


def agreed(path: str, stated: Iterable[Stated], num_axes: int) -> list[str] | None:
    """The names that are stated, z, y and x as such; None where z, y, x is to be assumed, as none is known.

    Raises InputError where two statements differ, or one is of another number of axes.
    """
    known = [(by, names, _plain(names)) for by, names in stated if set(map(_plain_name, names)) & set("zyx")]
    for by, names, plain in known:
        if len(names) != num_axes:
            raise InputError(f"{path}: {by} names {len(names)} axes, {names}, of an array of {num_axes}; correct it")
        first_by, first_names, first = known[0]
        if [name if name in "zyx" else "" for name in plain] != [name if name in "zyx" else "" for name in first]:
            raise InputError(
                f"{path}: {first_by} says that the axes are {first_names}, {by} that they are {names}; correct the one "
                "that is wrong, or remove it"
            )
    return known[0][2] if known else None


def _plain_name(name: Any) -> str:
    """A name as it is here; funlib.persistence marks axes that are not of space by ^."""
    lower = str(name).strip(" ^").lower()
    return KNOWN.get(lower, lower)


def _plain(names: Sequence[Any]) -> list[str]:
    """Names as they are here; those unknown are z, y, x in this order where that leaves all of them in it, or one."""
    plain = [_plain_name(name) for name in names]
    missing = [axis for axis in "zyx" if axis not in plain]
    unknown = [number for number, name in enumerate(plain) if name not in KNOWN.values()]
    if not missing or len(missing) != len(unknown):
        return plain
    filled = list(plain)
    for number, axis in zip(unknown, missing, strict=True):
        filled[number] = axis
    in_order = [name for name in filled if name in "zyx"] == ["z", "y", "x"]
    return filled if in_order or len(missing) == 1 else plain


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
    """The axes at the positions `order` of an array, as z, y, x; of the others the first entry. Nothing is copied."""

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
        """Voxels of a box that the file does not have, where the array tells."""
        count = getattr(self.array, "unwritten", None)
        wanted = dict(zip(self.order, box, strict=True))
        return count([wanted.get(axis, slice(0, 1)) for axis in range(self.ndim)]) if count else 0


def ordered(path: str, array: ArrayLike, names: Sequence[str]) -> tuple[ArrayLike, tuple[int, int, int]]:
    """The array as z, y, x, and where these axes are in the file, for its other facts of each axis."""
    if len(names) != len(array.shape):
        raise InputError(f"{path} has {len(array.shape)} axes, shape {list(array.shape)}, but names {list(names)}")
    places = order(path, names, array.shape)
    return (array if places == (0, 1, 2) and len(names) == 3 else Ordered(array, places)), places
