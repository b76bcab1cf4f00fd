"""Crops of unlabelled raw: crop i is a function of (seed, i) alone."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tokenunify.config import RawAugment
from tokenunify.errors import InputError
from tokenunify.geometry import Coordinate, Roi, free_starts
from tokenunify.learning import augment, crops
from tokenunify.stages import sections
from tokenunify.store import arrays

STATISTICS_CROPS, STATISTICS_SEED = 64, 0
AS_IT_IS = RawAugment(flip=0.0, rotate=0.0)


@dataclass(frozen=True)
class Region:
    """A box of a volume from which crops are taken that touch none of the boxes to avoid."""

    name: str
    """Name of the volume."""
    raw: arrays.Store | np.ndarray
    box: Roi
    avoid: tuple[Roi, ...]
    voxel_size_nm: tuple[float, float, float]

    def starts(self, extent: Coordinate) -> tuple[Roi, ...]:
        """Boxes of the first voxels of all crops that may be taken."""
        return free_starts(self.box, extent, self.avoid)


@dataclass(frozen=True)
class Corpus:
    """Random crops: of each data set as many, of each of its regions as many, everywhere in a region as many."""

    datasets: Sequence[Sequence[Region]]
    crop: Coordinate
    augment: RawAugment
    seed: int

    def __post_init__(self) -> None:
        for region in (region for dataset in self.datasets for region in dataset):
            if not region.starts(self.crop):
                raise InputError(
                    f"a crop of {list(self.crop)} does not fit into volume {region.name}, of which the box of offset "
                    f"{list(region.box.offset)} and shape {list(region.box.shape)} is used, without "
                    f"{len(region.avoid)} excluded boxes; use a smaller crop or correct the corpus"
                )

    @classmethod
    def open(cls, section: sections.Pretrain, volumes: Sequence[Path], seed: int) -> "Corpus":
        """The corpus of a pre-training, of ingested volumes; those that fit into the cache are held in memory."""
        opened = {path.stem: arrays.open_volume(path) for path in volumes}
        raws = dict(zip(opened, cached([volume.raw for volume in opened.values()]), strict=True))
        datasets: list[list[Region]] = [[] for _ in section.datasets]
        for dataset, part in ((dataset, p) for dataset, ps in zip(datasets, section.datasets, strict=True) for p in ps):
            volume, raw = opened[part.volume], raws[part.volume]
            whole = Roi((0, 0, 0), volume.raw.shape)
            box = Roi(part.box.offset, part.box.shape) if part.box else whole
            if box.overlap(whole) != box:
                raise InputError(
                    f"a region of volume {volume.name} must end inside its shape {list(whole.shape)}, got an end of "
                    f"{list(box.end)}; correct the corpus's regions"
                )
            avoid = tuple(Roi(hole.offset, hole.shape) for hole in part.avoid)
            dataset.append(Region(volume.name, raw, box, avoid, volume.voxel_size_nm))
        return cls(datasets, section.crop, section.augment, seed)

    def __getitem__(self, index: int) -> np.ndarray:
        """Crop number `index`, (1, z, y, x) float32 in [0, 1]."""
        rng = np.random.default_rng((self.seed, index))
        dataset = self.datasets[int(rng.integers(len(self.datasets)))]
        region = dataset[int(rng.integers(len(dataset)))]
        order, steps = augment.choose_axes(rng, self.augment, region.voxel_size_nm)
        extent = augment.shape_before(self.crop, order)
        if not region.starts(extent):
            order, extent = (0, 1, 2), self.crop
        starts = region.starts(extent)
        number = int(rng.integers(sum(box.num_voxels for box in starts)))  # of the first voxel, in all disjoint boxes
        for box in starts:
            if number < box.num_voxels:
                break
            number -= box.num_voxels
        raw = augment.reorient(region.raw[Roi(box.voxel(number), extent).slices], order, steps)
        raw = raw.astype(np.float32) / np.float32(np.iinfo(raw.dtype).max)
        if rng.random() < self.augment.intensity:
            raw = np.clip(augment.intensity(rng, raw), 0, 1)
        return np.ascontiguousarray(raw, np.float32)[None]

    def statistics(self) -> tuple[float, float]:
        """Mean and standard deviation of the intensities in [0, 1], from crops that are the same for every seed."""
        fixed = replace(self, seed=STATISTICS_SEED, augment=AS_IT_IS)
        drawn = [fixed[index].astype(np.float64) for index in range(STATISTICS_CROPS)]
        mean = np.mean([crop.mean() for crop in drawn])
        return float(mean), float(np.sqrt(np.mean([np.square(crop - mean).mean() for crop in drawn])))


def cached(raws: Sequence[arrays.Store]) -> list[arrays.Store | np.ndarray]:
    """The arrays, those that fit into the cache held in memory."""
    result: list[arrays.Store | np.ndarray] = []
    room = crops.CACHE_BYTES
    for raw in raws:
        fits = raw.array.nbytes <= room
        room -= raw.array.nbytes if fits else 0
        result.append(raw[:] if fits else raw)
    return result
