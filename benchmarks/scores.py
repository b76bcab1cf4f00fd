"""VOI and ARAND next to scikit-image on the same volumes, and stage evaluate on one larger than memory may hold.

The volume is `pinky40/` of $TOKENUNIFY_DATA; without it a phantom alone is scored.
"""

import os
import tempfile
import time
import timeit
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import h5py
import numpy as np
from skimage.metrics import adapted_rand_error, variation_of_information

from tokenunify.data.phantom import phantom
from tokenunify.evaluation import evaluate, metrics
from tokenunify.stages import sections
from tokenunify.store import arrays, manifest, prepare

SHAPE = (48, 384, 384)
CROP = (slice(224, 288), slice(256, 768), slice(256, 768))
VOXEL_SIZE = (40, 8, 8)
GRID = {"chunk_shape": (32, 128, 128), "shard_shape": (32, 256, 256)}
BLOCK = (32, 512, 512)
NUM_IDS = 4096
"""More than the volume's labels."""


def run_peer(segmentation: np.ndarray, labels: np.ndarray) -> list[float]:
    """voi_split, voi_merge and arand by scikit-image."""
    split, merge = variation_of_information(labels, segmentation, ignore_labels=[0])
    return [split, merge, adapted_rand_error(labels, segmentation, ignore_labels=[0])[0]]


def run_ours(segmentation: np.ndarray, labels: np.ndarray) -> list[float]:
    """The same by ours."""
    found = metrics.scores(segmentation, labels)
    return [found["voi_split"], found["voi_merge"], found["arand"]]


def seconds(function, *arguments) -> float:
    """The least of three times."""
    return min(timeit.repeat(partial(function, *arguments), number=1, repeat=3))


def compare(name: str, segmentation: np.ndarray, labels: np.ndarray) -> None:
    """Print times and the largest difference."""
    ours, theirs = run_ours(segmentation, labels), run_peer(segmentation, labels)
    our_seconds, peer_seconds = seconds(run_ours, segmentation, labels), seconds(run_peer, segmentation, labels)
    print(f"scores of {name}: {labels.shape} voxels, {np.unique(labels).size} labels")
    print(
        f"  scikit-image {peer_seconds:.2f} s, ours {our_seconds:.2f} s: {peer_seconds / our_seconds:.2f} x its speed"
    )
    print(f"  largest difference: {np.abs(np.subtract(ours, theirs)).max():.1e}")


# ------------------------------------------------------------------------------------------------ the stage


def perturbed(labels: np.ndarray, first_section: int) -> np.ndarray:
    """Segments of some sections: labels moved, one in 11 merged with the one before, one in 5 split along z; uint64."""
    moved = np.roll(labels.astype(np.uint64), (5, 9), axis=(1, 2))
    moved -= (moved % 11 == 0) & (moved > 0)
    slabs = np.arange(first_section, first_section + len(labels), dtype=np.uint64)[:, None, None] // 100
    return moved + NUM_IDS * slabs * (moved % 5 == 1)


def write_stores(folder: Path, labels: h5py.Dataset) -> tuple[Path, Path]:
    """A volume's manifest and a segmentation's prepared.json, with their stores, as ingest and relabel leave them."""
    volume, segmentation = folder / "volume.json", folder / "segmentation" / "prepared.json"
    described = {"shape": labels.shape, "dtype": "uint16"}
    fixed = {"voxel_size_nm": VOXEL_SIZE, "offset_nm": (0, 0, 0), "zero": "background"}
    manifest.write(volume, {"raw": described, "labels": described, **fixed})
    create = partial(arrays.create, dtype="uint16", attributes={}, **GRID)
    create(volume.with_suffix(".zarr") / "raw" / "0", shape=(1, 1, 1))[:] = 0  # it is opened, and not read
    truth = create(volume.with_suffix(".zarr") / "labels" / "0", shape=labels.shape)
    prepare.run(
        "relabel", sections.to_json("relabel", sections.Relabel(**GRID, block_shape=BLOCK)), [volume], segmentation
    )
    found = arrays.open_writable(segmentation)
    depth = GRID["shard_shape"][0]
    for start in range(0, labels.shape[0], depth):
        slab = slice(start, start + depth)
        truth[slab] = labels[slab]
        found[slab] = perturbed(labels[slab], start)
    return volume, segmentation


def evaluated(volume: Path, segmentation: Path, spacing: float | None) -> tuple[float, float]:
    """Seconds of the stage, and the peak resident size of this process in GB."""
    section = sections.Evaluate(block_shape=BLOCK, erode_labels=False, ignore_label=0, skeleton_spacing_nm=spacing)
    plain, started = sections.from_json("evaluate", sections.to_json("evaluate", section))[1], time.perf_counter()
    evaluate.run(section, plain, segmentation=segmentation, volume=volume, output=segmentation.with_name("scores.json"))
    return time.perf_counter() - started, manifest.peak_mb() * 2**20 / 1e9


def compare_large(path: Path) -> None:
    """A crop next to scikit-image, the whole by the stage in a process of its own."""
    with h5py.File(path) as file, tempfile.TemporaryDirectory() as folder:
        labels = file["labels"]
        crop = labels[CROP]
        compare("a crop of pinky40", perturbed(crop, CROP[0].start), crop)
        written = write_stores(Path(folder), labels)
        print(
            f"stage evaluate on pinky40: {labels.shape} voxels, {labels.size * 10 / 1e9:.1f} GB of labels and segments"
        )
        for spacing in (None, 40.0):
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                taken, peak = pool.submit(evaluated, *written, spacing).result()
            speed = labels.size / taken / 1e6
            print(f"  skeleton_spacing_nm {spacing}: {taken:.1f} s, {speed:.0f} Mvoxel/s, peak {peak:.2f} GB")


def main() -> None:
    """Print the tables."""
    _, labels = phantom.generate(SHAPE, seed=5)
    compare("a phantom", np.roll(labels, (1, 7, 11), axis=(0, 1, 2)), labels)
    if "TOKENUNIFY_DATA" not in os.environ:
        print("TOKENUNIFY_DATA is not set: pinky40 is left out")
        return
    for path in sorted(Path(os.environ["TOKENUNIFY_DATA"]).glob("pinky40/*512x1024x1024.h5")):
        compare_large(path)


if __name__ == "__main__":
    main()
