"""How many of the pairs of voxels that train a network are negative: one that sees none learns to join everything."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product

import numpy as np

from tokenunify import affinities
from tokenunify.config import NEAREST
from tokenunify.errors import InputError
from tokenunify.geometry import crop_starts
from tokenunify.learning import crops

logger = logging.getLogger(__name__)

CROPS, SEED = 64, 0
"""Crops that the share is taken from; they are the same for every seed."""
FEW = 1e-3
"""Share of negative pairs below which a network learns little of them."""
OVERLAP = 2
"""Voxels that tiles share, so that each pair is in one of them and each border is eroded."""


def check(samples: crops.Crops) -> float:
    """Share of negative pairs among the known ones of nearest neighbours, which is told in the log.

    Raises InputError where the volumes have no negative pair at all.
    """
    plain = replace(samples, augment=None, seed=SEED)
    known, negative = total(plain[index] for index in range(CROPS))
    if not negative:
        logger.info("no negative pair in %d crops: counting those of the whole training volumes", CROPS)
        known, negative = total(tiles(samples))
    if not negative:
        what = "is negative (known not to be in one neuron)" if known else "has ground truth"
        raise InputError(
            "no pair of neighbouring voxels in the training volumes "
            f"{', '.join(dict.fromkeys(v.name for v in samples.volumes))} {what}, and the network would learn to join "
            "everything: label membrane as 0 and set the volume's zero: background, mark voxels without ground truth "
            "by label 2^64-1 or 0 in a mask, and give neurons that touch different labels"
        )
    share = float(negative / known)
    logger.info("%.3g %% of the known pairs of neighbours in the training volumes are negative", 100 * share)
    if share < FEW:
        logger.warning(
            "that is very few, and the network may join everything: label membrane as 0 with zero: background, and "
            "voxels without ground truth as 2^64-1 (or 0 in a mask)"
        )
    return share


def tiles(samples: crops.Crops) -> Iterator[crops.Sample]:
    """Targets and mask of the whole volumes, tile by tile: random crops may miss all of few known voxels."""
    for v in samples.volumes:
        sizes = zip(v.shape, samples.crop, strict=True)
        axes = [crop_starts(n, padding=0, crop=c, stride=max(1, c - OVERLAP)) for n, c in sizes]
        for start in product(*axes):
            _, labels = crops.read(v, start, samples.crop)
            targets, mask = affinities.targets(labels, NEAREST, v.zero, erode=samples.erode)
            yield {"targets": targets, "mask": mask}


def check_validation(samples: Sequence[Mapping[str, np.ndarray]]) -> None:
    """Refuse validation crops without a known pair, and warn of those without a negative one."""
    known, negative = total(samples)
    if not known:
        raise InputError(
            f"the {len(samples)} validation crops hold no pair of known voxels: raise finetune.validation_crops, or "
            "give validation volumes with more labels inside of their masks"
        )
    if not negative:
        logger.warning("no pair in the validation crops is negative: their loss does not tell a network that joins all")


def total(samples: Iterable[Mapping[str, np.ndarray]]) -> np.ndarray:
    """Numbers of known and of negative pairs of nearest neighbours in samples, int64."""
    counts = np.zeros(2, np.int64)
    for sample in samples:
        targets, mask = (sample[name][: len(NEAREST)] for name in ("targets", "mask"))
        counts += int(mask.sum()), int((mask & (targets == 0)).sum())
    return counts
