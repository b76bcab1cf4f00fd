"""Block-wise prediction next to MONAI's sliding_window_inference: the same network, threads and crops in one run.

Ours is the stage: it reads the raw from a zarr store and writes the affinities' store. MONAI's has the volume in memory
and leaves its result there. Nothing is padded, as MONAI has crops inside of the volume only.
"""

import json
import multiprocessing
import re
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from monai.inferers import sliding_window_inference

from tokenunify import arrays, manifest, prepare, stages
from tokenunify import config as c
from tokenunify.data import synthetic
from tokenunify.learning import checkpoint, networks, predict

THREADS = 2
FIB25 = c.Superhuman(
    filters=(16, 48, 96, 128),
    embed_kernel=(3, 3, 3),
    embed_stride=(2, 2, 2),
    first_kernel=(3, 3, 3),
    pooling=(2, 2, 2),
)
"""The network of config/fib25.yaml."""
TINY = c.Superhuman(filters=(2, 2), pooling=(2, 2, 2))
"""Costs next to nothing, so that large volumes take seconds."""
GRID = {"chunk_shape": (32, 64, 64), "shard_shape": (32, 128, 128), "block_shape": (64, 128, 128)}
SECTION = stages.Predict(crop=(64, 64, 64), stride=(32, 32, 32), padding=(0, 0, 0), precision="bf16-mixed", **GRID)
SHAPE = (128, 192, 192)
SMALL = (96, 96, 96)
REPEATS = 2


def write_inputs(folder: Path, raw: np.ndarray, description: c.Superhuman) -> None:
    """A volume, random weights of a network, and the empty store."""
    place = folder / "v.zarr/raw/0"
    grid = {name: GRID[name] for name in ("chunk_shape", "shard_shape")}
    arrays.create(place, shape=raw.shape, dtype="uint8", attributes={}, **grid)[:] = raw
    held = {"raw": {"shape": raw.shape, "dtype": "uint8"}, "labels": None, "zero": "background"}
    manifest.write(folder / "v.json", {**held, "voxel_size_nm": [10, 10, 10], "offset_nm": [0, 0, 0]})
    torch.manual_seed(1)
    plain = description.model_dump(mode="json")
    checkpoint.save_weights(folder / "weights.safetensors", networks.build(plain).state_dict())
    weights = manifest.file_sha256(folder / "weights.safetensors")
    manifest.write(folder / "weights.json", {"weights": weights, "network": plain, "finetune": {"offsets": c.NEAREST}})


def run_ours(folder: Path) -> dict:
    """Predict into a fresh store; the part's `run`."""
    text = stages.to_json("predict", SECTION)
    section, plain = stages.from_json("predict", text)
    files = {"raw": folder / "v.json", "weights": folder / "weights.json", "prepared": folder / "out/prepared.json"}
    shutil.rmtree(folder / "out", ignore_errors=True)
    prepare.run("predict", text, [files["raw"], files["weights"]], files["prepared"])
    output = folder / "out/part0of1.json"
    predict.run(section, plain, **files, output=output, part=(0, 1), threads=THREADS, device="cpu")
    return manifest.read(output)["run"]


def run_peer(folder: Path) -> torch.Tensor:
    """Affinities (1, 3, z, y, x) by MONAI, with our network's forward pass of a batch."""
    network, _ = checkpoint.rebuild(folder / "weights.json")
    forward = predict.CropPredictor(network, SECTION, torch.device("cpu"), THREADS).forward
    raw = torch.from_numpy(arrays.open_volume(folder / "v.json").raw[:])[None, None] / 255
    blending = {"mode": "gaussian", "sigma_scale": SECTION.sigma / 2}
    with torch.inference_mode():
        return sliding_window_inference(raw, SECTION.crop, 1, forward, overlap=0.5, **blending)


def seconds(function: Callable, *arguments) -> float:
    """Of one call."""
    started = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - started


def compare_speed(folder: Path) -> None:
    """Print both rates, and where our time goes."""
    write_inputs(folder, synthetic.phantom(SHAPE, seed=5)[0], FIB25)
    theirs = run_peer(folder)[0].numpy()  # both also warm up
    run_ours(folder)
    difference = np.abs(arrays.open_prepared(folder / "out/prepared.json")[:] - theirs * 255).max()
    ours, peer, runs = [], [], []
    for _ in range(REPEATS):
        peer.append(seconds(run_peer, folder))
        started = time.perf_counter()
        runs.append(run_ours(folder))
        ours.append(time.perf_counter() - started)
    voxels, run = np.prod(SHAPE), runs[int(np.argmin(ours))]
    print(f"prediction of {SHAPE} voxels in crops of {SECTION.crop}, {THREADS} threads, bfloat16")
    print(f"  MONAI {voxels / min(peer):.3g} voxel/s, ours {voxels / min(ours):.3g}: {min(peer) / min(ours):.2f} x its speed")
    print(f"  outside of the network: {1 - run['forward_seconds'] / min(ours):.1%} of our time")
    print(f"  crops computed {run['crops_computed']}, unique {run['crops_unique']}")
    print(f"  largest difference: {difference:.2f} of 255")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        compare_speed(Path(name))
