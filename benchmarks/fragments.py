"""Fragments next to elf's watersheds with the same parameters, one thread each, in one run.

On a phantom's affinities (smoothed raw), or those of a finished run: `python benchmarks/fragments.py AFFINITIES.zarr`.
elf takes the boundary map, ours makes it from the affinities; both make seeds from its distances and flood it.
"""

import sys
import timeit
from collections.abc import Callable
from functools import partial

import numpy as np
import zarr
from elf.segmentation.watershed import distance_transform_watershed, stacked_watershed

from tokenunify.config import Fragments, Multicut
from tokenunify.data.phantom import phantom
from tokenunify.segmentation import fragments
from tokenunify.segmentation.baseline import lower_of_pairs, smooth
from tokenunify.store import arrays

SHAPE = (96, 224, 224)
ELF = {"sigma_seeds": 2.0, "sigma_weights": 2.0, "distance_weight": 0.1, "min_size": 100}
"""Its defaults, and the seeds' smoothing of its examples."""
SETTINGS = {
    "3D, elf's defaults": Fragments(dimensions=3, **ELF),
    "3D, config/fib25.yaml": Fragments(
        dimensions=3, threshold=0.6, sigma_seeds=3.0, distance_weight=0.3, halo=(24, 24, 24)
    ),
    "3D, not smoothed": Fragments(dimensions=3),
    "sections, elf's defaults": Fragments(**ELF),
    "sections, multicut": Multicut(method="multicut").fragments,
    "sections, waterz": Fragments(),
}


def run_peer(boundary: np.ndarray, settings: Fragments) -> np.ndarray:
    """Fragments by elf."""
    given = {
        "threshold": settings.threshold,
        "sigma_seeds": settings.sigma_seeds,
        "sigma_weights": settings.sigma_weights,
        "alpha": 1 - settings.distance_weight,
        "min_size": settings.min_size,
    }
    if settings.dimensions == 3:
        return distance_transform_watershed(boundary, **given)[0]
    return stacked_watershed(boundary, distance_transform_watershed, n_threads=1, **given)[0]


def seconds(*functions: Callable) -> list[float]:
    """The least of five times of each, in turns, so that a busy machine slows them alike."""
    rounds = [[timeit.timeit(function, number=1) for function in functions] for _ in range(5)]
    return [min(times) for times in zip(*rounds, strict=True)]


def main(paths: list[str]) -> None:
    """Print the table."""
    if paths:
        affinities = arrays.to_float(zarr.open_array(paths[0], mode="r")[:3])
    else:
        raw, _ = phantom.generate(SHAPE, seed=5)
        affinities = arrays.to_float(lower_of_pairs(np.rint(smooth(raw, (0.5, 2.0, 2.0))).astype(np.uint8)))
    million = affinities[0].size / 1e6
    print(f"fragments of {affinities.shape[1:]} voxels: Mvoxel/s (number of fragments)")
    for name, settings in SETTINGS.items():
        boundary = fragments.boundary_map(affinities, settings)
        numbers = [
            np.unique(found).size for found in (fragments.watershed(affinities, settings), run_peer(boundary, settings))
        ]
        ours, theirs = seconds(
            partial(fragments.watershed, affinities, settings), partial(run_peer, boundary, settings)
        )
        print(
            f"  {name:25} ours {million / ours:5.2f} ({numbers[0]}), elf {million / theirs:5.2f} ({numbers[1]}): "
            f"{theirs / ours:.2f} x its speed"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
