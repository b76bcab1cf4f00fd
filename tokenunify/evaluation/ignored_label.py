"""Which labels of a volume are not scored: the one that the configuration names, by its id in the source."""

import logging

import numpy as np

from tokenunify.affinities import IGNORE
from tokenunify.evaluation import metrics
from tokenunify.store import arrays

logger = logging.getLogger(__name__)


def ids_of(volume: arrays.Volume, ignore_label: int) -> np.ndarray:
    """Stored ids (n,), uint64, of labels whose id in the source is `ignore_label`; several where parts are apart.

    The last one is that of unknown voxels (2^64-1), which is never scored.
    """
    stored = np.array([ignore_label], np.uint64)
    if volume.source_ids is not None:
        stored = np.flatnonzero(volume.source_ids.read() == ignore_label).astype(np.uint64)
    return np.append(stored, np.uint64(IGNORE))


def without(table: metrics.Contingency, volume: arrays.Volume, ignore_label: int) -> metrics.Contingency:
    """The table of a volume without the labels that are not scored; tells if `ignore_label` is the id of none.

    Label 0 need not occur. Raises InputError if nothing is left.
    """
    ids = ids_of(volume, ignore_label)
    if ignore_label not in (0, IGNORE) and not np.isin(table.labels, ids[:-1]).any():
        logger.warning(
            "volume %s has no voxel of label %d: evaluation.ignore_label, an id of the source, leaves nothing out",
            volume.name,
            ignore_label,
        )
    return metrics.without(table, ignore_label, ids)
