"""Memory and time of every block-wise stage on a cube of 250 voxels and on one of 500, eight times as many.

The cubes are FIB-25's (of $TOKENUNIFY_DATA, else a phantom), mirrored to size; affinities for the graph are the
baseline's. `python benchmarks/scaling.py [FOLDER]` prints the table, and draws it in FOLDER/scaling.png.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import h5py
import matplotlib.pyplot as plt
import numpy as np
import yaml

from tokenunify.data.phantom import phantom
from tokenunify.store import manifest

SIDES = (250, 500)
STAGES = {
    "ingest": "data/volumes/cube{side}",
    "predict": "results/cube{side}/small/seed0/predict/part0of1",
    "baseline": "results/cube{side}/raw-watershed/seed0/predict/part0of1",
    "fragments": "results/cube{side}/raw-watershed/seed0/fragments/*/part0of1",
    "rag": "results/cube{side}/raw-watershed/seed0/rag/*/part0of1",
    "agglomerate": "results/cube{side}/raw-watershed/seed0/raw-watershed-cubes/agglomerate",
    "relabel": "results/cube{side}/raw-watershed/seed0/raw-watershed-cubes/relabel/part0of1",
    "evaluate": "results/cube{side}/raw-watershed/seed0/raw-watershed-cubes/scores",
}
"""Manifests, without their ending."""
CONFIG = {
    "device": "cpu",
    "storage": {"chunk_shape": [32, 64, 64], "shard_shape": [64, 128, 128], "block_shape": [64, 128, 128]},
    "resources": {stage: {"threads": 1} for stage in ("ingest", "finetune", "predict")},
    "datasets": {"cubes": {"train": ["train"], "test": [f"cube{side}" for side in SIDES]}},
    "models": {"small": {"network": {"name": "superhuman", "filters": [2, 4]}, "dataset": "cubes"}},
    "finetune": {"crop": [32, 64, 64], "steps": 1},
    "predict": {"padding": [0, 0, 0], "stride": [24, 48, 48]},
    "segmentations": {"multicut": {"method": "multicut"}},
    "evaluation": {
        "baseline": {
            "segmentation": {
                "method": "waterz",
                "threshold": 0.3,
                "fragments": {"dimensions": 3, "sigma_seeds": 1.5, "halo": [16, 16, 16]},
            }
        }
    },
}


def cube() -> tuple[np.ndarray, np.ndarray]:
    """Raw and labels of 250^3 voxels."""
    data = os.environ.get("TOKENUNIFY_DATA")
    if not data:
        return phantom.generate((SIDES[0],) * 3, seed=5)
    with h5py.File(Path(data, "fib25/training_sample2.h5")) as file:
        return file["raw"][:], file["labels"][:].astype(np.uint32)


def write_inputs(folder: Path) -> None:
    """The cubes as files, and the configuration that reads them."""
    arrays = dict(zip(("raw", "labels"), cube(), strict=True))
    volumes = {"train": {"sources": [{"phantom": {"seed": 1, "shape": [40, 80, 96]}}], "voxel_size_nm": [35, 8, 8]}}
    for side in SIDES:
        for name, array in arrays.items():
            np.save(folder / f"{name}{side}.npy", np.pad(array, (0, side - SIDES[0]), mode="symmetric"))
        files = {name: {"path": str(folder / f"{name}{side}.npy"), "format": "npy"} for name in arrays}
        volumes[f"cube{side}"] = {"sources": [files], "voxel_size_nm": [10, 10, 10]}
    (folder / "config.yaml").write_text(yaml.safe_dump({**CONFIG, "volumes": volumes}))


def run_workflow(folder: Path) -> None:
    """One job at a time, up to the last manifest of each chain."""
    targets = [f"{STAGES[stage].format(side=side)}.json" for stage in ("predict", "evaluate") for side in SIDES]
    command = [
        sys.executable,
        "-m",
        "snakemake",
        *targets,
        "--cores",
        "1",
        "--directory",
        str(folder),
        "--quiet",
        "all",
    ]
    root = Path(__file__).resolve().parents[1]
    subprocess.run([*command, "--configfile", str(folder / "config.yaml")], cwd=root, check=True)


def measured(folder: Path, stage: str, side: int) -> tuple[float, float]:
    """Memory at the peak, MiB, and microseconds per voxel of a stage."""
    (path,) = folder.glob(f"{STAGES[stage].format(side=side)}.json")
    run = manifest.read(path)["run"]
    return run["peak_mb"], run["seconds"] / side**3 * 1e6


def draw(rows: dict[str, list[tuple[float, float]]], path: Path) -> None:
    """Bars of both cubes, side by side."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.5), layout="constrained")
    for panel, (axis, title) in enumerate(zip(axes, ("memory at the peak [MiB]", "time per voxel [µs]"), strict=True)):
        for number, side in enumerate(SIDES):
            places = np.arange(len(rows)) + 0.4 * number
            axis.bar(places, [found[number][panel] for found in rows.values()], 0.4, label=f"{side}³ voxels")
        axis.set_xticks(np.arange(len(rows)) + 0.2, list(rows), rotation=30, ha="right")
        axis.set_title(title)
    axes[0].legend()
    figure.savefig(path, dpi=100)


def main(folder: Path) -> None:
    """Run, print, draw."""
    if not (folder / "config.yaml").exists():
        write_inputs(folder)
    run_workflow(folder)
    rows = {stage: [measured(folder, stage, side) for side in SIDES] for stage in STAGES}
    print("stage        MiB at 250^3  at 500^3  ratio   us/voxel at 250^3  at 500^3  ratio")
    for stage, ((small, slow), (large, slower)) in rows.items():
        memory = f"{small:12.0f} {large:9.0f} {large / small:6.2f}"
        print(f"{stage:12} {memory} {slow:19.3f} {slower:9.3f} {slower / slow:6.2f}")
    draw(rows, folder / "scaling.png")
    print(folder / "scaling.png")


if __name__ == "__main__":
    main(Path(*sys.argv[1:] or [tempfile.mkdtemp(prefix="scaling-")]).resolve())
