"""Block-wise prediction: a block is the blend of every crop of the whole volume that touches it.

Any blocks, parts and processes give the same bytes: crops lie where the volume's shape puts them, one crop's affinities
do not depend on what is computed beside or before it (see CropPredictor), they and their sums wait in full precision,
and a voxel adds up its crops in the order of their numbers (see Schedule). `threads` and the processor do matter.
"""

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from itertools import chain, islice, product
from pathlib import Path
from shutil import rmtree
from tempfile import TemporaryDirectory
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from tokenunify.errors import InputError
from tokenunify.geometry import Blocks, Coordinate, Roi
from tokenunify.learning import checkpoint
from tokenunify.learning.crop_schedule import Schedule
from tokenunify.learning.elu_table import MOST_THREADS, use_tables
from tokenunify.learning.networks.base import Network, output_extent
from tokenunify.learning.tiling import Tiling, blending_weight, read_mirrored
from tokenunify.learning.waiting_crops import Waiting
from tokenunify.stages.sections import Predict
from tokenunify.store import arrays, blockwise

Item = TypeVar("Item")
Result = TypeVar("Result")

SUMS = -1
"""Number, beside those of crops, under which a block's sums wait."""
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
    """Write the affinities of one part's blocks, uint8 (c, z, y, x), into the prepared store."""
    network, trained = checkpoint.rebuild(weights)
    known = trained["finetune"]["offsets"]
    if [tuple(offset) for offset in known[: len(section.offsets)]] != list(section.offsets):
        raise InputError(
            f"{weights}: the network must have been trained with offsets that begin with "
            f"{list(map(list, section.offsets))}, got {list(map(list, known))}: train it again, or correct "
            "finetune.offsets"
        )
    predict = CropPredictor(network, section, choose_device(device), threads)
    volume = arrays.open_volume(raw).raw
    blocks = Blocks(volume.shape, section.block_shape)
    tiling = Tiling(volume.shape, predict.output, section.stride, section.padding)
    store = arrays.prepared_store(prepared).parent
    weight = blending_weight(predict.output, section.sigma)
    crops = Crops(volume, tiling, blocks, predict, weight, mine=blocks.part(*part), store=store)

    def compute(index: int, roi: Roi) -> np.ndarray:
        return arrays.to_uint8(crops.blend(index, roi))

    def facts() -> dict:
        counts = {"crops_computed": predict.computed, "crops_unique": crops.unique}
        return {**counts, "forward_seconds": round(predict.seconds, 3), "device": str(predict.device)}

    inputs = [raw, weights]
    blockwise.fill(prepared, output, compute, part=part, plain=plain, inputs=inputs, facts=facts, context=crops.started)


def choose_device(device: str) -> torch.device:
    """The GPU where one is visible (auto), or what is asked for."""
    visible = torch.cuda.is_available()
    if device == "cuda" and not visible:
        raise InputError("device is cuda, but no GPU is visible to torch: use device auto or cpu, or mend the driver")
    return torch.device("cuda" if visible and device != "cpu" else "cpu")


class CropPredictor:
    """Affinities of crops; a crop's result does not depend on what else is predicted with it.

    Valid convolutions make the `output` smaller than the `crop` of raw, whose middle it is. It counts the crops that
    were `computed` and the `seconds` of the network, the way to the device and back included.
    """

    def __init__(self, network: Network, section: Predict, device: torch.device, threads: int):
        torch.set_num_threads(threads)
        self.device, self.flips, self.precision = device, section.flips, section.precision
        self.dtype = DTYPES[section.precision]
        self.offsets = section.offsets
        self.crop, self.output = section.crop, output_extent(network.config, section.crop)
        # One by one on the CPU, where a batch saves nothing; on a GPU always one shape, for which kernels are the same.
        self.batch_size = 1 if device.type == "cpu" else section.batch_size
        layout = network.MEMORY_FORMAT
        self.network = network.to(device, memory_format=layout)  # type: ignore[call-overload]  # torch's types lack it
        if device.type == "cpu" and threads <= MOST_THREADS:
            use_tables(self.network)
        self.computed, self.seconds = 0, 0.0

    @torch.inference_mode()
    def __call__(self, crops: np.ndarray) -> np.ndarray:
        """Affinities (b, c, *output), float32 in [0, 1], of at most batch_size raw crops (b, z, y, x), float32."""
        started = time.perf_counter()
        padding = (0, 0) * 3 + (0, self.batch_size - len(crops))
        batch = functional.pad(torch.from_numpy(crops), padding)[:, None].to(self.device)
        affinities = average_flips(self.forward, batch, self.offsets) if self.flips else self.forward(batch)
        results = affinities[: len(crops)].contiguous().cpu().numpy()
        if not np.isfinite(results).all():
            raise InputError(
                f"the network's affinities are not finite in precision {self.precision}: set predict.precision to "
                "bf16-mixed or 32-true, or train the network again"
            )
        self.computed += len(crops)
        self.seconds += time.perf_counter() - started
        return results

    def forward(self, raw: Tensor) -> Tensor:
        mixed = self.dtype != torch.float32
        with torch.autocast(self.device.type, self.dtype, enabled=mixed):
            logits = self.network.logits(raw)[:, : len(self.offsets)]
        return torch.sigmoid(logits.float())


def average_flips(forward: Callable[[Tensor], Tensor], raw: Tensor, offsets: Sequence[Coordinate]) -> Tensor:
    """Mean of the predictions (b, c, z, y, x), one channel per offset, for the eight flips of raw (b, 1, z, y, x).

    From flipped axes the pair (v, v + offset) is found at v + offset: the channel is moved by -offset. If the offset is
    diagonal and not all its axes are flipped, the channel holds pairs along another diagonal. Planes of a channel for
    which some flipped predictions do not exist average the others.
    """
    sums: list[Tensor] = []
    for flipped in product((False, True), repeat=3):
        axes = [2 + axis for axis in range(3) if flipped[axis]]
        affinities = forward(raw.flip(axes)).flip(axes)
        known = torch.ones_like(affinities)
        for channel, offset in enumerate(offsets):
            along = [axis for axis in range(3) if offset[axis]]
            turned = [axis for axis in along if flipped[axis]]
            if turned and turned != along:
                known[:, channel] = 0
            elif turned:
                moved, there = affinities[:, channel], known[:, channel]  # (b, z, y, x)
                moved.copy_(moved.roll([-offset[axis] for axis in along], [1 + axis for axis in along]))
                for axis in along:
                    extent = there.shape[1 + axis]
                    width = min(abs(offset[axis]), extent)
                    there.narrow(1 + axis, 0 if offset[axis] < 0 else extent - width, width).zero_()
        new = [affinities * known, known]
        sums = [a + b for a, b in zip(sums, new, strict=True)] if sums else new
    total, count = sums
    return total / count


class Crops:
    """The predicted crops of a part, each computed when a block first needs it, and blended.

    What later blocks need of them waits (see Waiting), so that memory is bounded whatever the volume's size; it holds
    the raw of two blocks: the next one's is read while the network runs.
    """

    def __init__(
        self,
        raw: arrays.Store,
        tiling: Tiling,
        blocks: Blocks,
        predict: CropPredictor,
        weight: np.ndarray,
        *,
        mine: range,
        store: Path,
    ):
        self.raw, self.tiling, self.blocks, self.predict, self.weight = raw, tiling, blocks, predict, weight
        self.mine, self.store = mine, store
        self.scale = np.float32(1 / np.iinfo(raw.dtype).max)
        self.unique = 0

    @contextmanager
    def started(self, todo: list[int]) -> Iterator[None]:
        """Be ready for these blocks, in this order; the part's blocks are locked."""
        for left in self.store.glob("crops-*-*-*"):
            _, start, stop, _ = left.name.split("-", 3)
            if int(start) < self.mine.stop and self.mine.start < int(stop):
                rmtree(left, ignore_errors=True)  # its process was killed: else it would hold some of our blocks
        self.schedule = Schedule(self.tiling, self.blocks, todo)
        prefix = f"crops-{self.mine.start}-{self.mine.stop}-"
        with TemporaryDirectory(prefix=prefix, dir=self.store) as folder, closing(ahead(self._read, todo)) as read:
            self.waiting = Waiting(Path(folder))
            crops = chain.from_iterable(read)
            batches = iter(lambda: list(islice(crops, self.predict.batch_size)), [])
            raws = (np.stack(batch).astype(np.float32) * self.scale for batch in batches)
            self.predicted = chain.from_iterable(map(self.predict, raws))  # in the order of their first blocks
            yield

    def blend(self, index: int, roi: Roi) -> np.ndarray:
        """Weighted mean of all crops that touch the block, float32 (c, z, y, x)."""
        box = self.schedule.box(index)
        sums = np.zeros((len(self.predict.offsets), *box.shape), np.float32)
        if index in self.schedule.above:
            handed = self.waiting.take(index, SUMS)
            sums[:, : handed.shape[1]] = handed
        for number in self.tiling.touching(roi):  # in the order of their numbers
            users = self.schedule.users(number)
            if index not in users:
                continue  # a block above has added it
            if index == users[0]:
                affinities = next(self.predicted)
                self.unique += 1
                for user in users:
                    in_crop, _ = self.tiling.overlap(number, self.schedule.box(user))
                    self.waiting.put(user, number, affinities[(slice(None), *in_crop)])
            self.tiling.add(sums, number, self.waiting.take(index, number), self.weight, box)
        if below := self.schedule.below.get(index):
            depth = self.blocks.roi(below).offset[0] - roi.offset[0]
            self.waiting.put(below, SUMS, sums[:, depth:])
        means = sums[:, : roi.shape[0]]
        means /= self.tiling.total_weight(roi, self.weight)
        return means

    def _read(self, index: int) -> list[np.ndarray]:
        """Raw (z, y, x) of the crops that this block is the first to need, from one read of the box around them."""
        numbers = [n for n in self.tiling.touching(self.blocks.roi(index)) if self.schedule.users(n)[0] == index]
        if not numbers:
            return []
        crop, output = self.predict.crop, self.predict.output
        before = [(c - o) // 2 for c, o in zip(crop, output, strict=True)]  # raw around an output
        starts = np.array([self.tiling.start(number) for number in numbers]) - before
        low = starts.min(0)
        box = read_mirrored(self.raw, low.tolist(), (np.ptp(starts, 0) + crop).tolist())
        return [box[tuple(slice(s, s + c) for s, c in zip(start - low, crop, strict=True))] for start in starts]


def ahead(function: Callable[[Item], Result], items: Iterable[Item]) -> Generator[Result, None, None]:
    """As map, but the next result is made in a thread while the last one is used."""
    with ThreadPoolExecutor(1) as thread:
        waiting: deque[Future] = deque()
        for item in items:
            waiting.append(thread.submit(function, item))
            if len(waiting) > 1:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
