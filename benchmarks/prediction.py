"""Block-wise prediction next to MONAI's sliding_window_inference: the same network, threads and crops in one run.

Ours is the stage: it reads the raw from a zarr store, writes the store of the affinities and computes ELUs by table.
MONAI's has the network as torch runs it, the volume in memory, and leaves its result there. Nothing is padded, so that
both have the same crops. Best run on an idle machine.
"""

import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.inferers import sliding_window_inference

from tokenunify import config as c
from tokenunify.data.phantom import phantom
from tokenunify.learning import checkpoint, networks, predict
from tokenunify.stages import sections
from tokenunify.store import arrays, manifest, prepare

THREADS = 2
ISOTROPIC = {"embed_kernel": (3, 3, 3), "embed_stride": (2, 2, 2), "first_kernel": (3, 3, 3), "pooling": (2, 2, 2)}
TINY = c.Superhuman(filters=(2, 2), **ISOTROPIC)
"""Costs next to nothing, so that large volumes take seconds."""
GRID = {"chunk_shape": (32, 64, 64), "shard_shape": (32, 128, 128), "block_shape": (64, 128, 128)}
SMALL = sections.Predict(crop=(64, 64, 64), stride=(32, 32, 32), padding=(0, 0, 0), precision="bf16-mixed", **GRID)
MEMORY_SHAPE = (128, 128, 128)


class Case(NamedTuple):
    """What is predicted with which network."""

    name: str
    network: c.Superhuman
    section: sections.Predict
    shape: tuple[int, int, int]
    overlap: tuple[float, float, float]
    """The stride as MONAI is told it: it rounds crop x (1 - overlap) down."""
    repeats: int


CASES = (
    Case(
        "superhuman, crop and stride of config/config.yaml",
        c.Superhuman(),
        sections.Predict(
            crop=(18, 160, 160),
            stride=(10, 80, 80),
            padding=(0, 0, 0),
            precision="bf16-mixed",
            chunk_shape=(16, 80, 80),
            shard_shape=(32, 320, 320),
            block_shape=(32, 320, 320),
        ),
        (38, 400, 400),
        (0.44, 0.5, 0.5),
        2,
    ),
    Case(
        "network of config/fib25.yaml, small crops with much overlap",
        c.Superhuman(filters=(16, 48, 96, 128), **ISOTROPIC),
        SMALL,
        (256, 256, 256),
        (0.5, 0.5, 0.5),
        3,
    ),
)


def write_inputs(folder: Path, raw: np.ndarray, description: c.Superhuman, section: sections.Predict) -> None:
    """A volume, random weights of a network, and the empty store."""
    place = folder / "v.zarr/raw/0"
    grid = {"chunk_shape": section.chunk_shape, "shard_shape": section.shard_shape}
    arrays.create(place, shape=raw.shape, dtype="uint8", attributes={}, **grid)[:] = raw
    held = {"raw": {"shape": raw.shape, "dtype": "uint8"}, "labels": None, "zero": "background"}
    manifest.write(folder / "v.json", {**held, "voxel_size_nm": [10, 10, 10], "offset_nm": [0, 0, 0]})
    torch.manual_seed(1)
    plain = description.model_dump(mode="json")
    checkpoint.save_weights(folder / "weights.safetensors", networks.build(plain).state_dict())
    weights = manifest.file_sha256(folder / "weights.safetensors")
    manifest.write(folder / "weights.json", {"weights": weights, "network": plain, "finetune": {"offsets": c.NEAREST}})


def prepare_store(folder: Path, section: sections.Predict) -> Path:
    """An empty store for the affinities; its prepared.json."""
    shutil.rmtree(folder / "out", ignore_errors=True)
    prepared = folder / "out/prepared.json"
    text = sections.to_json("predict", section)
    prepare.run("predict", text, [folder / "v.json", folder / "weights.json"], prepared)
    return prepared


def run_ours(folder: Path, section: sections.Predict) -> dict[str, Any]:
    """The stage; what its manifest tells of the run."""
    section, plain = sections.from_json("predict", sections.to_json("predict", section))
    files = {"raw": folder / "v.json", "weights": folder / "weights.json", "prepared": folder / "out/prepared.json"}
    output = folder / "out/part0of1.json"
    predict.run(section, plain, **files, output=output, part=(0, 1), threads=THREADS, device="cpu")
    return manifest.read(output)["run"]


def run_peer(folder: Path, section: sections.Predict, overlap: tuple[float, float, float]) -> np.ndarray:
    """Affinities (3, z, y, x), float32, by MONAI, with the same network, precision and blending weight."""
    torch.set_num_threads(THREADS)
    network, _ = checkpoint.rebuild(folder / "weights.json")
    network.to(memory_format=network.MEMORY_FORMAT)

    def forward(crop: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", predict.DTYPES[section.precision]):
            logits = network.logits(crop)
        return torch.sigmoid(logits.float())

    raw = torch.from_numpy(arrays.open_volume(folder / "v.json").raw[:])[None, None] / 255
    weight = torch.from_numpy(predict.blending_weight(section.crop, section.sigma))[None, None]
    options = {"overlap": overlap, "mode": "gaussian", "roi_weight_map": weight}
    with torch.inference_mode():
        return sliding_window_inference(raw, section.crop, 1, forward, **options)[0].numpy()


def timed(function: Callable, *arguments: Any) -> tuple[float, Any]:
    """Seconds of one call, and its result."""
    started = time.perf_counter()
    result = function(*arguments)
    return time.perf_counter() - started, result


def compare_speed(folder: Path, case: Case) -> None:
    """Print both rates, and where our time goes, of the fastest run of each."""
    section = case.section
    write_inputs(folder, phantom.generate(case.shape, seed=5)[0], case.network, section)
    ours, peer = [], []
    for _ in range(1 + case.repeats):  # the first warms up
        prepare_store(folder, section)
        peer.append(timed(run_peer, folder, section, case.overlap))
        ours.append(timed(run_ours, folder, section))
    difference = np.abs(arrays.open_prepared(folder / "out/prepared.json")[:] - peer[0][1] * 255).max()
    (seconds, run), peer_seconds = min(ours[1:], key=lambda pair: pair[0]), min(pair[0] for pair in peer[1:])
    voxels = np.prod(case.shape) / 1e6
    print(f"{case.name}: {case.shape} voxels, crops of {section.crop}, {THREADS} threads, {section.precision}")
    print(
        f"  MONAI {voxels / peer_seconds:.3f} Mvoxel/s, ours {voxels / seconds:.3f} Mvoxel/s: "
        f"{peer_seconds / seconds:.2f} x its speed"
    )
    print(f"  {1 - run['forward_seconds'] / seconds:.1%} of our time is outside of the network")
    print(f"  {run['crops_computed']} crops computed, {run['crops_unique']} unique")
    print(f"  largest difference: {difference:.2f} of 255")


def peak(function: Callable, *arguments: Any) -> int:
    """Most memory, in MiB, that this process has held after calling the function."""
    function(*arguments)
    return manifest.peak_mb()


def compare_memory(folder: Path) -> None:
    """Print how the peak grows when the volume doubles along each axis; every run has its own process."""
    random = np.random.default_rng(0)
    peaks: dict[str, list[int]] = {"MONAI": [], "ours": []}
    for factor in (1, 2):
        place = folder / str(factor)
        shape = tuple(factor * n for n in MEMORY_SHAPE)
        write_inputs(place, random.integers(0, 256, shape, np.uint8), TINY, SMALL)
        prepare_store(place, SMALL)
        runs = {"MONAI": (run_peer, place, SMALL, (0.5, 0.5, 0.5)), "ours": (run_ours, place, SMALL)}
        for name, call in runs.items():
            with ProcessPoolExecutor(1, get_context("spawn")) as process:
                peaks[name].append(process.submit(peak, *call).result())
    print(f"peak memory when {MEMORY_SHAPE} voxels become eight times as many")
    for name, (small, large) in peaks.items():
        print(f"  {name}: {small} to {large} MiB, {large - small:+} MiB")


if __name__ == "__main__":
    for case in CASES:
        with tempfile.TemporaryDirectory() as name:
            compare_speed(Path(name), case)
    with tempfile.TemporaryDirectory() as name:
        compare_memory(Path(name))
