"""What the description of every network tells, and the checks that several share."""

from contextlib import suppress
from itertools import product
from math import prod
from typing import ClassVar

from tokenunify.config.base import Strict
from tokenunify.geometry import Coordinate


class Architecture(Strict):
    """What every network's description can tell without building it."""

    CROP: ClassVar[Coordinate]
    """A crop that suits the defaults: the published one where there is one."""

    @property
    def unit(self) -> Coordinate:
        """The step between legal crops: what strides, poolings and patches divide."""
        raise NotImplementedError

    @property
    def smallest(self) -> Coordinate:
        """The smallest crop, from which the steps count."""
        return self.unit

    @property
    def legal_crops(self) -> str:
        """Which crops the network takes, in words."""
        return f"multiples of {list(self.unit)}"

    PARTS: ClassVar[tuple[str, ...]] = ("encoder", "decoder")
    """Parts that can be trained by themselves."""

    def output_extent(self, crop: Coordinate) -> Coordinate:
        """Extent (z, y, x) of the affinities that a crop gives: its own, or smaller where convolutions are valid.

        Raises ValueError, with the rule that it breaks, for a crop that the network cannot take.
        """
        unit = self.unit
        if any(n % u for n, u in zip(crop, unit, strict=True)):
            raise ValueError(
                f"must be a multiple of {list(unit)}, which the network's strides and poolings divide, got {list(crop)}"
            )
        return crop

    def smaller_crop(self, crop: Coordinate, shape: Coordinate) -> str:
        """What to do about a training crop that does not fit into a volume of `shape`: the largest crop that does."""
        axes = zip(self.smallest, map(min, crop, shape), self.unit, strict=True)
        steps = product(*(range(least, most + 1, step) for least, most, step in axes))
        for z, y, x in sorted(steps, key=prod, reverse=True):
            with suppress(ValueError):
                self.output_extent((z, y, x))
                return f"use {[z, y, x]}, the largest that fits, or more sections"
        return f"none that fits is legal ({self.legal_crops}): use more sections or another network"


def check_lengths(key: str, levels: int, lists: dict[str, tuple[tuple, int]]) -> None:
    """Refuse lists (values, expected length) that do not go with the levels that `key` gives."""
    for name, (values, expected) in lists.items():
        if len(values) != expected:
            raise ValueError(
                f"{name} must have {expected} entries for {levels} {key}, got {len(values)}; "
                "add or remove some of either"
            )


def check_normalisable(crop: Coordinate, unit: Coordinate) -> None:
    """Refuse a crop of which one voxel is left at the coarsest level: instance normalisation needs two."""
    if crop == unit:
        raise ValueError(f"must be larger than {list(unit)}, of which one voxel is left to normalise, got it")
