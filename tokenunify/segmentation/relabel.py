"""Stage relabel: write the segmentation of the fragments by the table."""

from pathlib import Path

import numpy as np

from tokenunify import arrays, blockwise
from tokenunify.errors import InputError
from tokenunify.geometry import Roi
from tokenunify.segmentation import lut as tables
from tokenunify.stages import Relabel


def run(
    section: Relabel, plain: dict, *, fragments: Path, lut: Path, prepared: Path, output: Path, part: tuple[int, int]
):
    """Fill a part of the blocks of the `segmentation` store (z, y, x), uint64.

    --lut is the table itself or agglomerate's manifest beside it.
    """
    source = arrays.open_prepared(fragments)
    table = tables.read(lut.with_name("lut.npz"))

    def compute(roi: Roi) -> np.ndarray:
        try:
            return table.apply(source[roi.slices])
        except InputError as error:
            raise InputError(f"{lut}: {error}") from None

    blockwise.fill(prepared, output, part, compute)
