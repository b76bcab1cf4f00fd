"""Watershed to segments on a phantom: our graph and merging next to `waterz.agglomerate` on the whole volume.

Both start from the same affinities (smoothed raw) and fragments. Ours gives a table of fragment -> segment for each
threshold, waterz a segmentation; these are compared.
"""

import os
import timeit
from contextlib import contextmanager
from functools import partial

import numpy as np
import waterz as peer

from tokenunify import arrays
from tokenunify.config import Fragments
from tokenunify.data import synthetic
from tokenunify.segmentation import fragments, rag, waterz
from tokenunify.segmentation.baseline import lower_of_pairs, smooth
from tokenunify.segmentation.lut import Lut

SHAPE = (48, 384, 384)
THRESHOLDS = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
SCORE = "OneMinus<HistogramQuantileAffinity<RegionGraphType, 50, ScoreValue, 256>>"


@contextmanager
def silence():
    """Send what compiled code prints to nowhere."""
    kept, nothing = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nothing)


def run_peer(affinities: np.ndarray, labels: np.ndarray) -> list[np.ndarray]:
    """Segmentations by waterz, which compiles the score on its first call."""
    with silence():
        results = peer.agglomerate(
            arrays.to_float(affinities),
            THRESHOLDS,
            fragments=labels.copy(),
            scoring_function=SCORE,
            discretize_queue=256,
        )
        return [segmentation.copy() for segmentation in results]


def run_ours(affinities: np.ndarray, labels: np.ndarray) -> dict[float, Lut]:
    """Tables of fragment -> segment by the graph."""
    return waterz.agglomerate(rag.from_arrays(affinities, labels, histograms=False), THRESHOLDS)


def seconds(function, *arguments) -> float:
    """The least of three times."""
    return min(timeit.repeat(partial(function, *arguments), number=1, repeat=3))


def main() -> None:
    """Print the table."""
    raw, _ = synthetic.phantom(SHAPE, seed=5)
    affinities = lower_of_pairs(np.rint(smooth(raw, (0.5, 2.0, 2.0))).astype(np.uint8))
    labels = fragments.watershed(arrays.to_float(affinities), Fragments())
    edges = len(rag.from_arrays(affinities, labels, histograms=False).edges)
    ours, theirs = run_ours(affinities, labels), run_peer(affinities, labels)  # both compile on their first call
    our_seconds, peer_seconds = seconds(run_ours, affinities, labels), seconds(run_peer, affinities, labels)
    equal = all(np.array_equal(table.apply(labels), b) for table, b in zip(ours.values(), theirs, strict=True))
    print(f"agglomeration of {SHAPE} voxels, {labels.max()} fragments, {edges} edges, {len(THRESHOLDS)} thresholds")
    print(f"  waterz {peer_seconds:.2f} s, ours {our_seconds:.2f} s: {peer_seconds / our_seconds:.2f} x its speed")
    print(f"  equal segmentations: {equal}")


if __name__ == "__main__":
    main()
