"""The types that are stored: raw as uint8, labels as the smallest unsigned integer that holds them, mask as 0 and 1."""

import logging
from collections.abc import Callable

import dask
import dask.array as da
import numpy as np

from tokenunify.data.source_array import SourceArray
from tokenunify.errors import InputError

logger = logging.getLogger(__name__)

MANY_VALUES = 0.05
"""Share of a block's raw values beyond 0..255 that passes for a slight excess and is clipped."""
Convert = Callable[[np.ndarray], np.ndarray]


def raw(source: SourceArray) -> tuple[str, Convert]:
    """Stored type of a raw array and the function that converts a block of it."""
    kind = source.dtype.kind
    if source.dtype == np.uint8:
        return "uint8", np.asarray
    if kind in "iu":
        return "uint8", lambda block: _clip(block, source.path)
    if kind == "f":
        return "uint8", lambda block: _from_unit_interval(block, source.path)
    raise InputError(f"{source.path}: raw must be of an integer or float type, found {source.dtype}")


def _clip(block: np.ndarray, path: str) -> np.ndarray:
    outside = np.mean((block < 0) | (block > 255))
    if outside > MANY_VALUES:
        low, high = block.min(), block.max()
        shift = "shift it so that its smallest value is 0 and " if low < 0 else ""
        raise InputError(
            f"{path}: raw must lie in 0..255, found {block.dtype} values {low}..{high}, {100 * outside:.3g} % of a "
            f"block beyond; {shift}rescale it to uint8"
        )
    if outside > 0:
        logger.warning("%s: %.3g %% of the raw values of a block are clipped to 0..255", path, 100 * outside)
    return np.clip(block, 0, 255).astype(np.uint8)


def _from_unit_interval(block: np.ndarray, path: str) -> np.ndarray:
    if not np.isfinite(block).all():
        raise InputError(f"{path}: raw has values that are not finite (NaN or infinity); replace them in the source")
    low, high = float(block.min()), float(block.max())
    if low < 0 or high > 1:
        raise InputError(
            f"{path}: float raw must lie in 0..1, found {low:g}..{high:g}; rescale it or store it as uint8"
        )
    return np.rint(block * 255).astype(np.uint8)


def labels(source: SourceArray, lazy: da.Array) -> tuple[str, Convert]:
    """Smallest type that holds all labels of the box `lazy` (which is read for it), and the conversion."""
    if source.dtype.kind not in "iu":
        raise InputError(f"{source.path}: labels must be integers, found {source.dtype}; store the ids as integers")
    low, high = dask.compute(lazy.min(), lazy.max())
    if low < 0:
        raise InputError(f"{source.path}: labels must not be negative, found {low}; give unlabelled voxels the id 0")
    dtype = np.min_scalar_type(int(high)).name
    return dtype, lambda block: block.astype(dtype)


def mask(source: SourceArray) -> tuple[str, Convert]:
    """uint8, and the function that makes 1 of what is not 0."""
    if source.dtype.kind not in "biu":
        raise InputError(f"{source.path}: mask must be boolean or integers, found {source.dtype}; store 0 and 1")
    return "uint8", lambda block: (block != 0).astype(np.uint8)
