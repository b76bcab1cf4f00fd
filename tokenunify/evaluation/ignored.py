"""The label that is not scored: the configuration names it by the source's id, whatever ids the volume stores."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import zarr

from tokenunify import manifest
from tokenunify.affinities import IGNORE


@dataclass(frozen=True)
class Ignored:
    """Stored labels that are not scored."""

    ids: np.ndarray
    """The stored ids (n,), uint64, rising; components of one label have several."""
    value: int
    """What stands for them, and for all else that is not scored, in tables."""


def of_volume(volume: Path, source_id: int) -> Ignored:
    """The stored ids of a label of the source, of a volume's manifest; none where the volume lacks the label."""
    originals = _original_ids(volume)
    if originals is None:
        return Ignored(np.array([source_id], np.uint64), source_id)
    ids = np.flatnonzero(originals == source_id).astype(np.uint64)
    return Ignored(ids, int(ids[0]) if ids.size else IGNORE)


def _original_ids(volume: Path) -> np.ndarray | None:
    """The source's id of each stored label, 0 included; None where the source's ids are stored."""
    if manifest.content(volume).get("config", {}).get("label_ids", "keep") == "keep":
        return None
    return np.asarray(zarr.open_array(volume.with_suffix(".zarr") / "labels/original_ids", mode="r")[:])
