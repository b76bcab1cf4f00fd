"""Labels as they are stored: the source's ids or new numbers, in the smallest unsigned integer that holds them."""

from pathlib import Path

import numpy as np

from tokenunify.affinities import IGNORE
from tokenunify.data.formats.source_array import SourceArray
from tokenunify.data.ingest import label_components, streaming
from tokenunify.data.ingest.convert import Convert, Converted
from tokenunify.errors import InputError
from tokenunify.geometry import Blocks, Roi
from tokenunify.kernels import components
from tokenunify.stages import sections
from tokenunify.store import arrays, blockwise

MANY_IDS = 2**26
"""Ids up to here are looked up in a table of all ids."""


def converted(source: SourceArray, roi: Roi, section: sections.Ingest, folder: Path) -> Converted:
    """The labels of a box of the source, which is read once to find their ids; `folder` keeps those of each block.

    With `label_ids` "components", parts that touch by no face have ids of their own. Raises InputError for values that
    cannot be labels.
    """
    if source.dtype.kind not in "iu":
        raise InputError(f"{source.path}: labels must be integers, found {source.dtype}; store the ids as integers")
    blocks = Blocks(roi.shape, streaming.block_shape(roi.shape, section.shard_shape))

    def read(box: Roi) -> np.ndarray:
        return source.read(box.moved(roi.offset))

    if section.label_ids == "components":
        ids, tables = label_components.find(read, blocks, folder)
        check_ids(source.path, ids)
        parts = numbers(ids)

        def of_parts(box: Roi) -> np.ndarray:
            found, _ = components.numbered(read(box))
            return label_components.of_voxels(found, parts[tables[box]])

        return Converted(parts.dtype.name, of_parts, section.shard_shape[0], ids[ids != IGNORE])  # by the same blocks
    dense = section.label_ids == "dense"

    def process(index: int, box: Roi) -> None:
        found = read(box)
        ids = distinct(found) if dense else np.array([found.min(), found.max()])
        arrays.write_npz(folder / f"{index}.npz", ids=ids)

    blockwise.run_part(folder, blocks, process)
    remake = f"delete {folder} and run snakemake again"
    found = [arrays.read_npz(folder / f"{index}.npz", remake)["ids"] for index in range(len(blocks))]
    ids = np.unique(np.concatenate([np.zeros(1, source.dtype), *found]))
    dtype, function = of_ids(source.path, ids, dense)
    return Converted(dtype, lambda box: function(read(box)), source.depth, ids[ids != IGNORE] if dense else None)


def check_ids(path: str, ids: np.ndarray) -> None:
    """Refuse ids of labels that are negative."""
    if (least := ids.min()) < 0:
        raise InputError(f"{path}: labels must not be negative, found {least}; give unlabelled voxels the id 0")


def distinct(block: np.ndarray) -> np.ndarray:
    """The ids of a block, rising; runs of one id along x are looked at once."""
    flat = block.ravel()
    return np.unique(flat[np.flatnonzero(np.r_[True, flat[1:] != flat[:-1]])])


def of_ids(path: str, ids: np.ndarray, dense: bool) -> tuple[str, Convert]:
    """Smallest type for labels of these ids (all of them, rising), or for their `numbers`; and the conversion."""
    check_ids(path, ids)
    if not dense:
        dtype = np.min_scalar_type(int(ids[-1]))
        return dtype.name, lambda block: block.astype(dtype, copy=False)
    anew = numbers(ids)
    if ids[-1] >= MANY_IDS:
        return anew.dtype.name, lambda block: anew[np.searchsorted(ids, block)]
    of_id = np.zeros(int(ids[-1]) + 1, anew.dtype)
    of_id[ids.astype(np.intp)] = anew
    return anew.dtype.name, lambda block: of_id[block]


def numbers(ids: np.ndarray) -> np.ndarray:
    """0, 1, ... for ids in their order, in the smallest type; that of voxels that nobody has labelled stays 2^64-1."""
    unknown = ids == IGNORE
    if not unknown.any():
        return np.arange(len(ids), dtype=np.min_scalar_type(len(ids) - 1))
    return np.where(unknown, np.uint64(IGNORE), np.cumsum(~unknown, dtype=np.uint64) - np.uint64(1))
