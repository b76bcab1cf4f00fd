"""How a virtual HDF5 data set says which voxels of which sources it takes."""

import re
from collections.abc import Iterable
from math import prod
from typing import Any

from h5py import h5s

FIELD = re.compile("%[b%]")
"""In names of sources: %b is the number of a block, %% a percent sign."""


def numbered(text: str) -> bool:
    """Whether a name has the number of a block in it."""
    return "%b" in FIELD.findall(text)


def filled(text: str, block: int) -> str:
    """The name of a block's source."""
    return FIELD.sub(lambda field: str(block) if field[0] == "%b" else "%", text)


def numbers(text: str, names: Iterable[str]) -> list[int]:
    """The rising numbers of the blocks whose names, by the name `text` with %b in it, are among `names`."""
    words = [re.escape(filled(word, 0)) for word in re.split("(?<!%)%b", text)]
    first = r"(0|[1-9]\d*)".join(words[:2])
    pattern = re.compile(first + "".join(rf"\1{word}" for word in words[2:]))
    return sorted(int(match[1]) for match in map(pattern.fullmatch, names) if match)


def fits(shape: tuple[int, ...], taken: Any, target: Any) -> bool:
    """Whether a source of that shape has the voxels `taken` of it, for the selection `target` of the virtual data set.

    Of a source that is taken whole nothing else is known; it may have grown along its first axis.
    """
    if taken.get_select_type() != h5s.SEL_ALL:
        try:
            needed = tuple(int(last) + 1 for last in taken.get_select_bounds()[1])
        except RuntimeError:  # it is unlimited along some axes, where the source may be of any length
            axes = zip(*taken.get_regular_hyperslab(), strict=True)
            needed = tuple(
                0 if h5s.UNLIMITED in (count, block) else start + (count - 1) * stride + block
                for start, stride, count, block in axes
            )
        return len(shape) == len(needed) and all(n <= m for n, m in zip(needed, shape, strict=True))
    try:
        num_voxels = target.get_select_npoints()
    except RuntimeError:  # it repeats blocks without an end: the source has one of them
        _, _, counts, blocks = target.get_regular_hyperslab()
        num_voxels = prod(blocks) * prod(count for count in counts if count != h5s.UNLIMITED)
    if prod(shape) == num_voxels:
        return True
    if target.get_select_type() == h5s.SEL_ALL:
        counts, blocks = (1,), target.get_simple_extent_dims()
    elif target.is_regular_hyperslab():
        _, _, counts, blocks = target.get_regular_hyperslab()
    else:
        return False
    (length, *sides), (first, *others) = ([n for n in lengths if n > 1] or [1] for lengths in (shape, blocks))
    return set(counts) <= {1, h5s.UNLIMITED} and sides == others and length >= first
