"""Training samples: sample i is a function of (seed, i) alone, whatever was drawn before it and on which machine."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Literal

import numpy as np

from tokenunify import affinities
from tokenunify.config import Augment
from tokenunify.errors import InputError
from tokenunify.geometry import Coordinate, centre
from tokenunify.learning import augment
from tokenunify.store import arrays

CACHE_BYTES = 2**31  # volumes are held in memory up to this size together, larger ones are read crop by crop
ATTEMPTS = 10  # draws of a position before a crop without any known affinity is accepted


@dataclass(frozen=True)
class Labelled:
    """A labelled volume, or a range of its sections, to take crops from."""

    name: str
    raw: arrays.Store | np.ndarray
    labels: arrays.Store | np.ndarray
    mask: arrays.Store | np.ndarray | None
    """Where it is 0 labels count as unknown; None: known everywhere."""
    first: int
    """First section used."""
    shape: Coordinate
    """Extent of the part that is used."""
    voxel_size_nm: tuple[float, float, float]
    zero: Literal["background", "unlabelled"]


def open_labelled(volume: arrays.Volume, sections: tuple[int, int] | None = None) -> Labelled:
    """The labelled part of a volume; `sections` is the first and one past the last section used, None takes all."""
    if volume.labels is None:
        raise InputError(
            f"volume {volume.name} has no labels, which training and validation need: give its labels source"
        )
    depth, height, width = volume.raw.shape
    first, last = sections or (0, depth)
    if first >= min(last, depth):
        raise InputError(
            f"sections of training volume {volume.name} must lie within its {depth} sections, "
            f"got {list(sections or ())}; correct datasets.*.train"
        )
    shape = (min(last, depth) - first, height, width)
    zero: Literal["background", "unlabelled"] = "background" if volume.zero == "background" else "unlabelled"
    return Labelled(volume.name, volume.raw, volume.labels, volume.mask, first, shape, volume.voxel_size_nm, zero)


def cached(volumes: Sequence[Labelled]) -> list[Labelled]:
    """The volumes, those that fit into the cache held in memory."""
    result, room = [], CACHE_BYTES
    for v in volumes:
        held = {name: array for name in ("raw", "labels", "mask") if (array := getattr(v, name)) is not None}
        size = prod(v.shape) * sum(array.dtype.itemsize for array in held.values())
        if size <= room:
            room -= size
            sections = slice(v.first, v.first + v.shape[0])
            v = replace(v, first=0, **{name: array[sections] for name, array in held.items()})
        result.append(v)
    return result


Sample = dict[str, np.ndarray]
"""One training example: raw (1, z, y, x) float32 in [0, 1]; targets and mask (c, z, y, x), float32 and bool.

Where the network's output is smaller than the crop, targets and mask are those of the middle of the raw.
"""


@dataclass(frozen=True)
class Crops:
    """Random crops of labelled volumes, uniform over their voxels; smaller volumes are mirrored at their faces."""

    volumes: Sequence[Labelled]
    crop: Coordinate
    offsets: Sequence[Coordinate]
    erode: bool | str
    augment: Augment | None
    """None: crops as they are."""
    seed: int
    output: Coordinate | None = None
    """Extent of targets and mask, in the middle of the crop; None: all of it."""

    def __getitem__(self, index: int) -> Sample:
        """Sample number `index`."""
        rng = np.random.default_rng((self.seed, index))
        sizes = np.array([prod(v.shape) for v in self.volumes], float)
        v = self.volumes[int(rng.choice(len(sizes), p=sizes / sizes.sum()))]
        for _ in range(ATTEMPTS):
            order, steps = augment.choose_axes(rng, self.augment or NO_AUGMENTATION, v.voxel_size_nm)
            extent = augment.shape_before(self.crop, order)
            if any(e > n for e, n in zip(extent, v.shape, strict=True)):
                order, extent = (0, 1, 2), self.crop
            start = [int(rng.integers(max(0, n - e) + 1)) for n, e in zip(v.shape, extent, strict=True)]
            raw, labels = (augment.reorient(a, order, steps) for a in read(v, start, extent))
            raw = raw.astype(np.float32) / np.float32(np.iinfo(raw.dtype).max)
            if self.augment:
                raw, labels = augment.deform(rng, self.augment, raw, labels, v.voxel_size_nm)
                raw = augment.degrade(rng, self.augment, raw, v.voxel_size_nm)
            targets, mask = affinities.targets(labels, self.offsets, v.zero, erode=self.erode)
            middle = (slice(None), *centre(self.crop, self.output or self.crop))
            if mask[middle].any():
                break
        return {"raw": np.ascontiguousarray(raw, np.float32)[None], "targets": targets[middle], "mask": mask[middle]}


NO_AUGMENTATION = Augment(**dict.fromkeys(Augment.model_fields, 0.0))


def read(v: Labelled, start: Sequence[int], extent: Coordinate) -> tuple[np.ndarray, np.ndarray]:
    """Raw and labels of a box of the used part, unknown outside the mask; what lacks at the far faces is mirrored."""
    z, y, x = (slice(s, min(s + e, n)) for s, e, n in zip(start, extent, v.shape, strict=True))
    box = (slice(z.start + v.first, z.stop + v.first), y, x)
    lacking = [(0, s + e - min(s + e, n)) for s, e, n in zip(start, extent, v.shape, strict=True)]
    raw = v.raw[box]
    labels = affinities.outside_unknown(v.labels[box], None if v.mask is None else v.mask[box])
    if any(after for _, after in lacking):
        raw, labels = np.pad(raw, lacking, mode="reflect"), np.pad(labels, lacking, mode="reflect")
    return raw, labels
