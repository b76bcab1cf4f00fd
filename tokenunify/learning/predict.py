"""Block-wise prediction: a block is the blend of every crop of the whole volume that touches it."""

import logging
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tokenunify import arrays, blockwise
from tokenunify.errors import InputError
from tokenunify.geometry import Blocks, Coordinate, Roi
from tokenunify.learning import checkpoint
from tokenunify.learning.networks.base import Network, output_extent
from tokenunify.learning.tiling import Tiling, blending_weight, read_mirrored
from tokenunify.stages import Predict

logger = logging.getLogger(__name__)

CHANNELS = 3
"""Nearest-neighbour affinities z, y, x; further channels of a network only help its training."""
CACHE_BYTES = 2**31
"""Predicted crops kept for later blocks; beyond this those needed last are predicted again when their block comes."""
DTYPES = {"32-true": torch.float32, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


def run(
    section: Predict,
    plain: dict,
    *,
    raw: Path,
    weights: Path,
    prepared: Path,
    output: Path,
    part: tuple[int, int],
    threads: int,
    device: str,
) -> None:
    """Write the affinities of one part's blocks, uint8 (3, z, y, x), into the prepared store."""
    network, _ = checkpoint.rebuild(weights)
    predict = CropPredictor(network, section, choose_device(device), threads)
    volume = arrays.open_volume(raw).raw
    blocks = Blocks(volume.shape, section.block_shape)
    tiling = Tiling(volume.shape, predict.output, section.stride, section.padding)
    crops = CropCache(volume, tiling, blocks, predict, mine=blocks.part(*part))
    weight = blending_weight(predict.output, section.sigma)

    def compute(index: int, roi: Roi) -> np.ndarray:
        return arrays.to_uint8(blend(crops.of_block(index), tiling, roi, weight))

    def facts() -> dict:
        return {"crops_computed": crops.computed, "crops_unique": len(crops.unique), "device": str(predict.device)}

    blockwise.fill(prepared, output, compute, part=part, plain=plain, inputs=[raw, weights], facts=facts)


def choose_device(device: str) -> torch.device:
    """The GPU where one is visible (auto), or what is asked for."""
    visible = torch.cuda.is_available()
    if device == "cuda" and not visible:
        raise InputError("device is cuda, but no GPU is visible to torch: use device auto or cpu, or mend the driver")
    return torch.device("cuda" if visible and device != "cpu" else "cpu")


def blend(crops: Iterator[tuple[int, np.ndarray]], tiling: Tiling, roi: Roi, weight: np.ndarray) -> np.ndarray:
    """Weighted mean of crops (number, (c, z, y, x)) over the box, float32; they are summed as they come."""
    total, sums = np.zeros(roi.shape, np.float32), np.float32(0)
    for number, affinities in crops:
        in_crop, in_roi = tiling.overlap(number, roi)
        if np.ndim(sums) == 0:
            sums = np.zeros((len(affinities), *roi.shape), np.float32)
        sums[(slice(None), *in_roi)] += weight[in_crop] * affinities[(slice(None), *in_crop)]
        total[in_roi] += weight[in_crop]
    return sums / total


class CropPredictor:
    """Affinities of crops; a crop's result does not depend on what else is predicted with it.

    Valid convolutions make the `output` smaller than the `crop` of raw, whose middle it is.
    """

    def __init__(self, network: Network, section: Predict, device: torch.device, threads: int):
        torch.set_num_threads(threads)
        self.device, self.dtype, self.flips = device, DTYPES[section.precision], section.flips
        self.crop, self.output = section.crop, output_extent(network.config, section.crop)
        # One by one on the CPU, where a batch saves nothing; on a GPU always one shape, for which kernels are the same.
        self.batch_size = 1 if device.type == "cpu" else section.batch_size
        self.network = network.to(device, memory_format=network.MEMORY_FORMAT)

    @torch.inference_mode()
    def __call__(self, crops: list[np.ndarray]) -> list[np.ndarray]:
        """(c, *output) float32 in [0, 1] for each raw crop (z, y, x) float32 in [0, 1]."""
        padded = crops + crops[-1:] * (-len(crops) % self.batch_size)
        results = []
        for first in range(0, len(padded), self.batch_size):
            batch = torch.from_numpy(np.stack(padded[first : first + self.batch_size]))[:, None].to(self.device)
            affinities = average_flips(self._forward, batch) if self.flips else self._forward(batch)
            results.extend(crop.copy() for crop in affinities.cpu().numpy())  # a view would hold the whole batch
        return results[: len(crops)]

    def _forward(self, raw: Tensor) -> Tensor:
        mixed = self.dtype != torch.float32
        with torch.autocast(self.device.type, self.dtype, enabled=mixed):
            logits = self.network.logits(raw)[:, :CHANNELS]
        return torch.sigmoid(logits.float())


def average_flips(forward: Callable[[Tensor], Tensor], raw: Tensor) -> Tensor:
    """Mean of the predictions (b, 3, z, y, x) for the eight flips of raw (b, 1, z, y, x).

    Seen from a flipped axis the pair (v - 1, v) of that axis' channel is found at v - 1: it is moved up by one, and
    the first plane, for which no flipped prediction exists, averages the others.
    """
    total = count = None
    for flipped in product((False, True), repeat=3):
        axes = [2 + axis for axis in range(3) if flipped[axis]]
        affinities = forward(raw.flip(axes)).flip(axes)
        known = torch.ones_like(affinities)
        for axis in axes:
            channel = axis - 2
            affinities[:, channel] = affinities[:, channel].roll(1, axis - 1)
            known[:, channel].select(axis - 1, 0).zero_()
        total = affinities * known if total is None else total + affinities * known
        count = known if count is None else count + known
    return total / count


class CropCache:
    """Predicted crops of a part, computed when a block first needs them and kept while a later block does."""

    def __init__(self, raw, tiling: Tiling, blocks: Blocks, predict: CropPredictor, *, mine: range):
        self.raw, self.tiling, self.blocks, self.predict, self.mine = raw, tiling, blocks, predict, mine
        self.kept: dict[int, np.ndarray] = {}
        self.computed = 0
        self.unique: set[int] = set()
        self.scale = np.float32(1 / np.iinfo(raw.dtype).max)

    def of_block(self, index: int) -> Iterator[tuple[int, np.ndarray]]:
        """(number, affinities) of every crop that touches the block, in the order of their numbers."""
        needed = self.tiling.touching(self.blocks.roi(index))
        self.unique.update(needed)
        for first in range(0, len(needed), self.predict.batch_size):
            numbers = needed[first : first + self.predict.batch_size]
            self._compute([number for number in numbers if number not in self.kept])
            for number in numbers:
                yield number, self.kept[number]
                if self._next_use(number, index) is None:
                    del self.kept[number]
            self._shrink(index, keep=needed[first + self.predict.batch_size :])

    def _compute(self, numbers: list[int]) -> None:
        if not numbers:
            return
        raw = [read_mirrored(self.raw, self._raw_start(n), self.predict.crop) for n in numbers]
        results = self.predict([crop.astype(np.float32) * self.scale for crop in raw])
        self.kept.update(zip(numbers, results, strict=True))
        self.computed += len(numbers)

    def _raw_start(self, number: int) -> Coordinate:
        """First voxel of the raw around an output."""
        start, crop, output = self.tiling.start(number), self.predict.crop, self.predict.output
        z, y, x = (s - (c - o) // 2 for s, c, o in zip(start, crop, output, strict=True))
        return z, y, x

    def _next_use(self, number: int, index: int) -> int | None:
        later = (b for b in self.tiling.blocks(number, self.blocks) if index < b < self.mine.stop)
        return next(later, None)

    def _shrink(self, index: int, keep: list[int]) -> None:
        """When the kept crops outgrow the limit, drop those whose next block is farthest."""
        size = sum(crop.nbytes for crop in self.kept.values())
        if size <= CACHE_BYTES:
            return
        spare = sorted(set(self.kept) - set(keep), key=lambda number: (self._next_use(number, index) or 0, number))
        while spare and size > 0.9 * CACHE_BYTES:
            size -= self.kept.pop(spare.pop()).nbytes
