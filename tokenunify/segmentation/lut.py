"""Look-up table from fragments to segments."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from tokenunify.errors import InputError
from tokenunify.kernels import ids
from tokenunify.store import forms, manifest, shards

NAME = "lut.npy"


class Lut(NamedTuple):
    """Segment of each fragment; a segment's id is its smallest fragment's. Id 0 (no fragment) is never listed."""

    fragments: np.ndarray
    """Sorted fragment ids, uint64."""
    segments: np.ndarray
    """Their segments' ids, uint64."""

    def apply(self, fragments: np.ndarray) -> np.ndarray:
        """Segmentation (any shape, uint64) of an array of fragment ids; 0 stays 0.

        Raises InputError for a fragment that the table lacks, and for what is no id.
        """
        ids.check_ids("fragments", fragments)
        values, index = ids.compact(fragments.astype(np.uint64, copy=False))
        position, known = ids.find(values, self.fragments)
        if lacking := values[~known & (values != 0)].tolist():
            raise InputError(
                f"the lut lacks {len(lacking)} fragments, the first is {lacking[0]}: it belongs to other fragments; "
                "delete it and run snakemake again"
            )
        segments = np.zeros(values.size, np.uint64)
        segments[known] = self.segments[position[known]]
        return segments[index]


def from_groups(fragments: np.ndarray, groups: np.ndarray) -> Lut:
    """The table of sorted fragments of which those with the same number in `groups` are one segment."""
    _, firsts, index = np.unique(groups, return_index=True, return_inverse=True)
    return Lut(fragments, fragments[firsts][index] if fragments.size else fragments)


def write(path: Path, lut: Lut) -> None:
    """Write the table in one step, as the rows of an array."""

    def save(temporary: Path) -> None:
        with open(temporary, "wb") as file:  # given a name, numpy adds its own suffix
            np.save(file, np.stack(lut), allow_pickle=False)

    manifest.replace(path, save)


def read(agglomerated: Path) -> Lut:
    """The table beside agglomerate's manifest, whose checksum must be the recorded one.

    It stays on disk: blocks look up a few of its pages.
    """
    path = agglomerated.with_name(NAME)
    remake = f"make it again with `snakemake --forcerun agglomerate {agglomerated}`"
    if not path.is_file():
        raise InputError(f"{path} is missing{shards.in_its_place(path)}; {remake}")
    if (found := manifest.file_sha256(path)) != (recorded := manifest.content(agglomerated, forms.Table)["lut"]):
        raise InputError(f"{path} is damaged: its SHA-256 is {found}, {agglomerated.name} has {recorded}; {remake}")
    return Lut(*np.load(path, mmap_mode="r", allow_pickle=False))
