"""Stage relabel: write the segmentation of the fragments by the table, and its pyramid for viewing."""

from pathlib import Path

import numpy as np

from tokenunify.errors import InputError
from tokenunify.geometry import Roi
from tokenunify.segmentation import lut as tables
from tokenunify.stages.sections import Relabel
from tokenunify.store import arrays, blockwise, forms, manifest, pyramid


def run(
    section: Relabel, plain: dict, *, fragments: Path, lut: Path, prepared: Path, output: Path, part: tuple[int, int]
) -> None:
    """Fill a part of the blocks of the `segmentation` store (z, y, x), uint64; --lut is agglomerate's manifest.

    A block's share of the lower levels is written before the block itself, and so is there once the ledger lists it.
    """
    source = arrays.open_prepared(fragments, forms.Fragments)
    table = tables.read(lut)
    content = manifest.content(prepared, forms.Prepared)
    levels = pyramid.block_levels(*(tuple(content[key]) for key in ("shape", "voxel_size_nm", "block_shape")))[1:]
    stores = [arrays.open_level(prepared, number) for number in range(1, len(levels) + 1)]

    def compute(_index: int, roi: Roi) -> np.ndarray:
        try:
            segments = table.apply(source[roi.slices])
        except InputError as error:
            raise InputError(f"{lut.with_name(tables.NAME)}: {error}") from None
        for store, (box, reduced) in zip(stores, pyramid.reduce_block(segments, roi, levels), strict=True):
            store[box.slices] = reduced
        return segments

    blockwise.fill(prepared, output, compute, part=part, plain=plain, inputs=[fragments, lut])
