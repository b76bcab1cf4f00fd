"""The types that are stored: raw as uint8, labels as the smallest unsigned integer that holds them, mask as 0 and 1."""

import logging
from collections.abc import Callable
from math import ceil, prod
from typing import Any

import numpy as np

from tokenunify.affinities import IGNORE
from tokenunify.config import Intensity, Percentile, Rescale
from tokenunify.data.formats.source_array import SourceArray
from tokenunify.errors import InputError
from tokenunify.geometry import Blocks, Coordinate, Roi

logger = logging.getLogger(__name__)

MANY_VALUES = 0.05
"""Share of a block's raw values beyond 0..255 that passes for a slight excess and is clipped."""
SAMPLES = 256
"""Boxes, at most, of which percentiles are taken."""
SAMPLED_VALUES = 2**24
"""Values, at most, that are kept of these boxes: of larger ones each second, each third..."""
MANY_IDS = 2**26
"""Ids up to here are looked up in a table of all ids."""
Convert = Callable[[np.ndarray], np.ndarray]


def raw(source: SourceArray, ends: tuple[float, float] | None) -> Convert:
    """The function that makes uint8 of a block of a raw array: `ends` become 0 and 255; None takes what fits."""
    kind = source.dtype.kind
    if kind not in "iuf":
        raise InputError(f"{source.path}: raw must be of an integer or float type, found {source.dtype}")
    if ends is not None:
        return Rescaled(source.path, *ends)
    if source.dtype == np.uint8:
        return np.asarray
    if kind == "f":
        return lambda block: _from_unit_interval(block, source.path)
    return lambda block: _clip(block, source.path)


def ends(intensity: Intensity | None, source: SourceArray, roi: Roi, sample: Coordinate) -> tuple[float, float] | None:
    """The values that become 0 and 255; percentiles are those of boxes of the shape `sample`, evenly spread."""
    if isinstance(intensity, Rescale):
        return intensity.rescale
    if not isinstance(intensity, Percentile):
        return (0.0, 255.0) if intensity else None
    grid = Blocks(roi.shape, sample)
    numbers = np.unique(np.linspace(0, len(grid) - 1, SAMPLES).round().astype(int))
    step = ceil(min(prod(roi.shape), len(numbers) * prod(sample)) / SAMPLED_VALUES)
    boxes = [source.read(grid.roi(int(number)).moved(roi.offset)).ravel()[::step].copy() for number in numbers]
    found = np.percentile(np.concatenate(boxes), intensity.percentile, overwrite_input=True)
    low, high = (float(value) for value in found)
    if not low < high:
        raise InputError(
            f"{source.path}: percentiles {list(intensity.percentile)} of the raw are {low:g} and {high:g}, which leave "
            "no grey values between them; set intensity to {rescale: [low, high]}"
        )
    return low, high


class Rescaled:
    """Grey values from `low` to `high` as 0 to 255; counts those beyond, which are clipped."""

    def __init__(self, path: str, low: float, high: float):
        self.path, self.low, self.high = path, low, high
        self.clipped = self.voxels = 0

    def __call__(self, block: np.ndarray) -> np.ndarray:
        values: np.ndarray[Any, np.dtype[np.floating]] = block.astype(
            np.float64 if block.dtype.itemsize > 2 else np.float32
        )
        if not np.isfinite(values).all():
            raise InputError(
                f"{self.path}: raw has values that are not finite (NaN or infinity); replace them in the source"
            )
        self.voxels += values.size
        self.clipped += int(np.count_nonzero((values < self.low) | (values > self.high)))
        values -= self.low
        values *= 255 / (self.high - self.low)
        return np.rint(np.clip(values, 0, 255, out=values), out=values).astype(np.uint8)

    def warn(self) -> None:
        """Tell the share of the values converted so far that was clipped."""
        if self.clipped:
            share = 100 * self.clipped / self.voxels
            logger.warning("%s: %.3g %% of the raw values are clipped to %g..%g", self.path, share, self.low, self.high)


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


def check_labels(source: SourceArray) -> None:
    """Refuse what cannot be labels."""
    if source.dtype.kind not in "iu":
        raise InputError(f"{source.path}: labels must be integers, found {source.dtype}; store the ids as integers")


def check_ids(path: str, ids: np.ndarray) -> None:
    """Refuse ids of labels that are negative."""
    if (least := ids.min()) < 0:
        raise InputError(f"{path}: labels must not be negative, found {least}; give unlabelled voxels the id 0")


def distinct(block: np.ndarray) -> np.ndarray:
    """The ids of a block, rising; runs of one id along x are looked at once."""
    flat = block.ravel()
    return np.unique(flat[np.flatnonzero(np.r_[True, flat[1:] != flat[:-1]])])


def labels(path: str, ids: np.ndarray, dense: bool) -> tuple[str, Convert]:
    """Smallest type for labels of these ids (all of them, rising), or for their `numbers`; and the conversion."""
    check_ids(path, ids)
    if not dense:
        dtype = np.min_scalar_type(int(ids[-1]))
        return dtype.name, lambda block: block.astype(dtype, copy=False)
    anew = numbers(ids)
    if ids[-1] >= MANY_IDS:
        return anew.dtype.name, lambda block: anew[np.searchsorted(ids, block)]
    of_id = np.zeros(int(ids[-1]) + 1, anew.dtype)
    of_id[ids.astype(np.intp)] = anew
    return anew.dtype.name, lambda block: of_id[block]


def numbers(ids: np.ndarray) -> np.ndarray:
    """0, 1, ... for ids in their order, in the smallest type; that of voxels that nobody has labelled stays 2^64-1."""
    unknown = ids == IGNORE
    if not unknown.any():
        return np.arange(len(ids), dtype=np.min_scalar_type(len(ids) - 1))
    return np.where(unknown, np.uint64(IGNORE), np.cumsum(~unknown, dtype=np.uint64) - np.uint64(1))


def mask(source: SourceArray) -> Convert:
    """The function that makes 1 of what is not 0, and uint8 of it."""
    if source.dtype.kind not in "biu":
        raise InputError(f"{source.path}: mask must be boolean or integers, found {source.dtype}; store 0 and 1")
    return lambda block: (block != 0).astype(np.uint8)
