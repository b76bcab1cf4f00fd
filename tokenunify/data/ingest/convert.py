"""Raw and mask as they are stored: grey values as uint8, and 0 and 1."""

import logging
from collections.abc import Callable
from math import ceil, prod
from typing import Any, NamedTuple

import numpy as np

from tokenunify.config import Intensity, Percentile, Rescale
from tokenunify.data.formats.source_array import SourceArray
from tokenunify.data.ingest.streaming import Compute
from tokenunify.errors import InputError
from tokenunify.geometry import Blocks, Coordinate, Roi

logger = logging.getLogger(__name__)

MANY_VALUES = 0.05
"""Share of a block's raw values beyond 0..255 that passes for a slight excess and is clipped."""
SAMPLES = 256
"""Boxes, at most, of which percentiles are taken."""
SAMPLED_VALUES = 2**24
"""Values, at most, that are kept of these boxes: of larger ones each second, each third..."""
Convert = Callable[[np.ndarray], np.ndarray]


class Converted(NamedTuple):
    """What is stored of a role."""

    dtype: str
    compute: Compute
    """A box of it, in voxels of the roi."""
    depth: int
    """Sections that are cheapest read together."""
    original_ids: np.ndarray | None = None
    """The source's id of each label, where they are numbered anew."""
    warn: Callable[[], None] = lambda: None
    """Tell what was lost on the way."""


def converted(role: str, source: SourceArray, roi: Roi, ends: tuple[float, float] | None) -> Converted:
    """Raw or mask of a box of the source."""
    function = raw(source, ends) if role == "raw" else mask(source)
    warn = getattr(function, "warn", lambda: None)
    return Converted("uint8", lambda box: function(source.read(box.moved(roi.offset))), source.depth, warn=warn)


def raw(source: SourceArray, ends: tuple[float, float] | None) -> Convert:
    """The function that makes uint8 of a block of a raw array: `ends` become 0 and 255; None takes what fits."""
    path = source.path
    if source.dtype.kind not in "iuf":
        raise InputError(f"{path}: raw must be of an integer or float type, found {source.dtype}")
    if ends is not None:
        return Rescaled(path, *ends)
    if source.dtype == np.uint8:
        return np.asarray

    def as_uint8(block: np.ndarray) -> np.ndarray:
        """Floats from 0 to 1 as 0 to 255, integers as they are: a few that lie beyond 0..255 are clipped."""
        if block.dtype.kind == "f":
            _check_finite(block, path)
            low, high = float(block.min()), float(block.max())
            if low < 0 or high > 1:
                raise InputError(
                    f"{path}: float raw must lie in 0..1, found {low:g}..{high:g}; rescale it or store it as uint8"
                )
            return np.rint(block * 255).astype(np.uint8)
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

    return as_uint8


def _check_finite(values: np.ndarray, path: str) -> None:
    if not np.isfinite(values).all():
        raise InputError(f"{path}: raw has values that are not finite (NaN or infinity); replace them in the source")


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
        _check_finite(values, self.path)
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


def mask(source: SourceArray) -> Convert:
    """The function that makes 1 of what is not 0, and uint8 of it."""
    if source.dtype.kind not in "biu":
        raise InputError(f"{source.path}: mask must be boolean or integers, found {source.dtype}; store 0 and 1")
    return lambda block: (block != 0).astype(np.uint8)


class Watched:
    """Boxes as they are computed; tells where all of them hold one value."""

    def __init__(self, compute: Compute):
        self.compute = compute
        self.value: np.generic | None = None
        self.voxels = 0
        """That hold the value; those after the first other one are not looked at."""
        self.others = False

    def __call__(self, box: Roi) -> np.ndarray:
        values = self.compute(box)
        if not self.others:
            self.value = values.flat[0] if self.value is None else self.value
            self.others = bool((values != self.value).any())
            self.voxels += values.size
        return values

    def warn(self, role: str, source: SourceArray, roi: Roi) -> None:
        """Warn if raw or labels have one value only, unless a killed run has written some of them."""
        if role != "mask" and not self.others and self.voxels == prod(roi.shape):
            logger.warning(
                "%s: all voxels of %s are %s in the volume; see whether the source and roi are the right ones",
                source.path,
                role,
                self.value,
            )
