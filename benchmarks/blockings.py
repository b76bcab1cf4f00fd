"""3D fragments in blocks: how far the final segmentations of different blockings lie apart (VOI, bits).

On the baseline's affinities of a phantom; `python benchmarks/blockings.py AFFINITIES.zarr` takes those of a finished
isotropic run. Fragments as in config/fib25.yaml, merged by waterz at a few thresholds; everything behind the fragments
is exact for any blocking.
"""

import sys
from itertools import combinations

import numpy as np
import zarr

from tokenunify import arrays
from tokenunify.config import Fragments
from tokenunify.data import synthetic
from tokenunify.evaluation import metrics
from tokenunify.geometry import Blocks, Coordinate
from tokenunify.segmentation import fragments, rag, waterz
from tokenunify.segmentation.baseline import lower_of_pairs, smooth

SHAPE = (64, 192, 192)
BLOCKS = ((96, 256, 256), (64, 128, 128), (32, 128, 256))
SETTINGS = Fragments(dimensions=3, threshold=0.6, sigma_seeds=3.0, distance_weight=0.3, halo=(24, 24, 24))
THRESHOLDS = [0.1, 0.2, 0.3, 0.5]


def in_blocks(affinities: np.ndarray, block_shape: Coordinate) -> np.ndarray:
    """Fragments (z, y, x), uint64, of uint8 affinities as the stage makes them."""
    shape = affinities.shape[1:]
    found = np.empty(shape, np.uint64)
    blocks = Blocks(shape, block_shape)
    for roi in map(blocks.roi, range(len(blocks))):
        outer = roi.grow(SETTINGS.halo, SETTINGS.halo, shape)
        pieces = fragments.watershed(arrays.to_float(affinities[(slice(None), *outer.slices)]), SETTINGS)
        found[roi.slices] = fragments.number(pieces[roi.within(outer)], roi, shape, dimensions=3)
    return found


def main(paths: list[str]) -> None:
    """Print the table."""
    if paths:
        affinities = zarr.open_array(paths[0], mode="r")[:3]
    else:
        raw, _ = synthetic.phantom(SHAPE, seed=5)
        affinities = lower_of_pairs(np.rint(smooth(raw, (0.5, 2.0, 2.0))).astype(np.uint8))
    segmentations = {}
    print(f"blockings of {affinities.shape[1:]} voxels")
    for block_shape in BLOCKS:
        labels = in_blocks(affinities, block_shape)
        tables = waterz.agglomerate(rag.from_arrays(affinities, labels, histograms=False), THRESHOLDS)
        segmentations[block_shape] = {value: table.apply(labels) for value, table in tables.items()}
        print(f"  blocks of {block_shape}: {np.unique(labels).size} fragments")
    for one, other in combinations(BLOCKS, 2):
        voi = [metrics.scores(segmentations[one][t], segmentations[other][t])["voi"] for t in THRESHOLDS]
        print(f"  {one} and {other}: " + ", ".join(f"{t}: {v:.3f}" for t, v in zip(THRESHOLDS, voi, strict=True)))


if __name__ == "__main__":
    main(sys.argv[1:])
