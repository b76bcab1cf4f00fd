"""3D fragments in blocks: how far the final segmentations of different blockings lie apart (VOI in bits, ARAND).

On the baseline's affinities of a phantom; `python benchmarks/blockings.py AFFINITIES.zarr` takes those of a finished
isotropic run. Fragments as in config/fib25.yaml, merged by waterz at a few thresholds.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import zarr

from tokenunify import blockings
from tokenunify.config import Fragments, Waterz
from tokenunify.data.phantom import phantom
from tokenunify.segmentation.baseline import lower_of_pairs, smooth
from tokenunify.stages import sections

SHAPE = (64, 192, 192)
SECTION = sections.Blockings(
    segmentation=Waterz(
        method="waterz",
        fragments=Fragments(dimensions=3, threshold=0.6, sigma_seeds=3.0, distance_weight=0.3, halo=(24, 24, 24)),
    ),
    block_shapes=((96, 256, 256), (64, 128, 128), (32, 128, 256)),
    chunk_shape=(32, 64, 64),
    shard_shape=(32, 128, 128),
    block_shape=(64, 128, 128),
)
THRESHOLDS = (0.1, 0.3, 0.5)


def built_in() -> np.ndarray:
    """Affinities (3, z, y, x), uint8."""
    raw, _ = phantom.generate(SHAPE, seed=5)
    return lower_of_pairs(np.rint(smooth(raw, (0.5, 2.0, 2.0))).astype(np.uint8))


def main(paths: list[str]) -> None:
    """Print the table."""
    affinities = zarr.open_array(paths[0], mode="r") if paths else built_in()
    print(f"blockings of {affinities.shape[1:]} voxels")
    for threshold in THRESHOLDS:
        with tempfile.TemporaryDirectory() as folder:
            pairs = blockings.compare(affinities, None, SECTION, threshold, Path(folder))
        for pair in pairs:
            one, other = pair["blocks"]
            print(f"  threshold {threshold}, {one} and {other}: VOI {pair['voi']:.3f}, ARAND {pair['arand']:.3f}")


if __name__ == "__main__":
    main(sys.argv[1:])
