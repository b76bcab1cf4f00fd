"""Scores of a segmentation from the table of its overlaps with the labels; both equal scikit-image's.

voi_split = H(segmentation | labels), voi_merge = H(labels | segmentation), in bits; voi is their sum. arand = 1 - F,
F = 2 Σ n_ij (n_ij - 1) / (Σ a_i (a_i - 1) + Σ b_j (b_j - 1)), n_ij voxels in common, a_i of a label, b_j of a segment.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from tokenunify.errors import InputError
from tokenunify.geometry import Coordinate, Roi, check_shapes
from tokenunify.kernels import ids, pair_table
from tokenunify.kernels.compiled import loop

STRIDE = 1024
"""Runs between two looks at the room that the table has."""
MANY_ROWS = 2**20
"""Rows of tables, of blocks, that are added up together."""


class Contingency(NamedTuple):
    """Overlaps of labels and segments, sorted by (label, segment)."""

    labels: np.ndarray
    """Label of each overlap (n,), uint64."""
    segments: np.ndarray
    """Segment of each overlap (n,), uint64."""
    counts: np.ndarray
    """Voxels of each overlap (n,), uint64."""
    firsts: np.ndarray
    """Raster index in the volume of each overlap's first voxel (n,), uint64."""


def scores(segmentation: Any, labels: Any, ignore_label: int = 0) -> dict[str, float]:
    """voi_split, voi_merge, voi and arand of a segmentation against labels, where these are not `ignore_label`.

    Both are numpy or zarr arrays (z, y, x) of integers; they are read in slabs. Raises InputError for other types,
    different shapes, or nothing to score.
    """
    check_shapes("segmentation", segmentation.shape, "labels", labels.shape)
    depth = (getattr(labels, "shards", None) or getattr(labels, "chunks", None) or labels.shape)[0]
    slabs = (slice(start, start + depth) for start in range(0, labels.shape[0], max(1, depth)))
    table = merge(contingency(segmentation[slab], labels[slab]) for slab in slabs)
    dtype = labels.dtype
    low, high = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    # In tables negative labels have 2^64 added; a label that the type cannot hold is nowhere.
    ignored = np.array([int(ignore_label) % 2**64] if low <= ignore_label <= high else [], np.uint64)
    return scores_of(without(table, ignore_label, ignored))


def contingency(segmentation: Any, labels: Any, roi: Roi | None = None, shape: Coordinate | None = None) -> Contingency:
    """Table of two integer arrays (z, y, x), of the box `roi` of a volume of that shape or of a whole volume."""
    check_shapes("segmentation", segmentation.shape, "labels", labels.shape)
    ids.check_integers("segmentation", segmentation)
    ids.check_integers("labels", labels)
    truth, found = np.ravel(labels), np.ravel(segmentation)
    starts = ids.run_starts(truth, found)
    of_labels, of_segments = (column[starts].astype(np.uint64) for column in (truth, found))
    keys, values = count_overlaps(of_labels, of_segments, starts, np.diff(starts, append=truth.size))
    position = np.unravel_index(values[:, 1].astype(np.int64), labels.shape)
    if roi is not None and shape is not None:
        position = tuple(p + offset for p, offset in zip(position, roi.offset, strict=True))
    firsts = np.asarray(np.ravel_multi_index(position, shape or labels.shape)).astype(np.uint64)
    return _sum(keys[:, 0], keys[:, 1], values[:, 0], firsts)


@loop
def count_overlaps(
    labels: np.ndarray, segments: np.ndarray, starts: np.ndarray, lengths: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Labels and segments of runs that overlap (n, 2), in any order; their number of voxels and the first one's index.

    The runs are in raster order.
    """
    table = pair_table.table(2)
    for first in range(0, len(labels), STRIDE):
        table = pair_table.with_room(table, STRIDE)
        for i in range(first, min(first + STRIDE, len(labels))):
            row = pair_table.row(table, labels[i], segments[i])
            if table.values[row, 0] == 0:
                table.values[row, 1] = starts[i]
            table.values[row, 0] += np.uint64(lengths[i])
    return pair_table.used(table)


def merge(tables: Iterable[Contingency]) -> Contingency:
    """The sum of tables over parts of a volume; of them no more than the sum's rows, or MANY_ROWS, are held."""
    total, waiting, rows = Contingency(*np.zeros((4, 0), np.uint64)), [], 0
    for table in tables:
        waiting.append(table)
        rows += len(table.counts)
        if rows > max(MANY_ROWS, len(total.counts)):
            total, waiting, rows = _added([total, *waiting]), [], 0
    return _added([total, *waiting])


def _added(tables: Sequence[Contingency]) -> Contingency:
    return _sum(*(np.concatenate(column) for column in zip(*tables, strict=True)))


def _sum(labels: np.ndarray, segments: np.ndarray, counts: np.ndarray, firsts: np.ndarray) -> Contingency:
    overlaps, order, starts = ids.group_pairs(np.stack([labels, segments], axis=1))
    sums = np.add.reduceat(counts[order], starts) if starts.size else counts
    lowest = np.minimum.reduceat(firsts[order], starts) if starts.size else firsts
    return Contingency(overlaps[:, 0], overlaps[:, 1], sums, lowest)


def without(table: Contingency, ignore_label: int, ids_in_table: np.ndarray | None = None) -> Contingency:
    """The table without the overlaps of the ignored label, or of all ids (n,), uint64, that stand for it in the table.

    Raises InputError if nothing is left.
    """
    keep = ~np.isin(table.labels, np.array([ignore_label], np.uint64) if ids_in_table is None else ids_in_table)
    if not keep.any():
        raise InputError(f"no voxel has another label than {ignore_label}: nothing can be scored; give labels")
    return Contingency(*(column[keep] for column in table))


def scores_of(table: Contingency) -> dict[str, float]:
    """The scores from a table of what is scored."""
    labels, segments, counts, _ = table
    joint = counts.astype(np.float64)
    label_sizes, label_index = _marginal(labels, joint)
    segment_sizes, segment_index = _marginal(segments, joint)
    split = _conditional_entropy(joint, label_sizes[label_index])
    merge = _conditional_entropy(joint, segment_sizes[segment_index])
    common, of_labels, of_segments = (float(np.sum(n * (n - 1))) for n in (joint, label_sizes, segment_sizes))
    total = of_labels + of_segments
    arand = 1 - 2 * common / total if total else 0.0
    return {"voi_split": split, "voi_merge": merge, "voi": split + merge, "arand": float(arand)}


def _marginal(names: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    _, index = np.unique(names, return_inverse=True)
    return np.bincount(index, counts), index


def _conditional_entropy(joint: np.ndarray, given: np.ndarray) -> float:
    return float(np.sum(joint * np.log2(given / joint)) / joint.sum())
