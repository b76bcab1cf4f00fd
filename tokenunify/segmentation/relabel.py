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
    """Fill a part of the blocks of the `segmentation` store (z, y, x), uint64; --lut is agglomerate's manifest."""
    source = arrays.open_prepared(fragments)
    path = lut.with_name("lut.npz")
    table = tables.read(path)

    def compute(_index: int, roi: Roi) -> np.ndarray:
        try:
            return table.apply(source[roi.slices])
        except InputError as error:
            raise InputError(f"{path}: {error}") from None

    blockwise.fill(prepared, output, compute, part=part, plain=plain, inputs=[fragments, lut])
