"""Write one role of a volume as an OME-Zarr image: full resolution, the levels above it for viewing, their metadata."""

import logging
from pathlib import Path
from typing import Any

import dask
import numpy as np
import zarr

import tokenunify
from tokenunify.data.ingest import streaming
from tokenunify.data.ingest.convert import Converted
from tokenunify.geometry import Blocks, Coordinate, Roi, VoxelSize
from tokenunify.stages import sections
from tokenunify.store import arrays, manifest, pyramid

logger = logging.getLogger(__name__)

MANY_FILES = 100_000
"""More of them in one volume are hard on a file system."""
REDUCE = {"raw": pyramid.reduce_mean, "labels": pyramid.reduce_mode, "mask": pyramid.reduce_mode}
METHOD = {"raw": "mean", "labels": "mode", "mask": "mode"}


def num_files(shape: Coordinate, voxel_size_nm: VoxelSize, shard_shape: Coordinate) -> int:
    """Shard files of an image of that shape and of the levels above it."""
    return sum(len(Blocks(level, shard_shape)) for level, _ in pyramid.levels(shape, voxel_size_nm))


def warn_of_many_files(section: sections.Ingest, roi: Roi) -> None:
    """Warn if an image of the box has more than MANY_FILES."""
    number = num_files(roi.shape, section.voxel_size_nm, section.shard_shape)
    if number > MANY_FILES:
        logger.warning(
            "this volume makes %d files; a larger shard_shape of the volume, of up to 2^27 voxels, makes fewer", number
        )


def offset_nm(section: sections.Ingest, roi: Roi) -> VoxelSize:
    """Where the box begins in the source (z, y, x)."""
    z, y, x = (o * v for o, v in zip(roi.offset, section.voxel_size_nm, strict=True))
    return z, y, x


def create_group(path: Path, section: sections.Ingest, source: Path, roi: Roi, choices: dict) -> None:
    """The store's root: where the volume comes from, its owner's conditions, and the choices made for it."""
    content, downloaded = manifest.read(source).values()
    asked = downloaded.get("section", {})
    zarr.open_group(str(path), mode="a", zarr_format=3).attrs["tokenunify"] = {
        "source": content,
        "roi": {"offset": list(roi.offset), "shape": list(roi.shape)},
        **{key: asked.get(key) for key in ("license", "terms", "citation")},
        "tokenunify_version": tokenunify.__version__,
        **{name: choice for name, choice in choices.items() if choice},
    }


def write(store: Path, progress: Path, role: str, found: Converted, section: sections.Ingest, roi: Roi) -> list[dict]:
    """Write a role's group into the store; return each level's `run`. What a killed run has written stays."""
    levels = pyramid.levels(roi.shape, section.voxel_size_nm)
    group = zarr.open_group(str(store / role), mode="a", zarr_format=3)
    runs = []
    for level, (shape, size) in enumerate(levels):
        path = store / role / str(level)
        stated: dict[str, Any] = {
            "shape": shape,
            "dtype": found.dtype,
            "chunk_shape": section.chunk_shape,
            "shard_shape": section.shard_shape,
            "attributes": {"voxel_size_nm": list(size), "offset_nm": list(offset_nm(section, roi))},
        }
        if (path / "zarr.json").exists():
            array = arrays.reopen(path, f"delete {store} and run snakemake again", stated)
        else:
            array = arrays.create(path, **stated)
        compute, depth = found.compute, found.depth
        if level > 0:
            factor = pyramid.factors(*levels[level - 1])
            compute, depth = _reduced(role, group[str(level - 1)], factor), section.chunk_shape[0]
        runs.append(streaming.fill(array, compute, progress / role / str(level), depth=depth))
    ome = pyramid.multiscales(role, [size for _, size in levels], offset_nm(section, roi), METHOD[role])
    if role == "labels":
        ome["image-label"] = {"source": {"image": "../raw"}}
    group.attrs["ome"] = ome
    if found.original_ids is not None:
        group.create_array("original_ids", data=found.original_ids, overwrite=True)
    return runs


def _reduced(role: str, finer: zarr.Array, factor: Coordinate) -> streaming.Compute:
    """Boxes of the level above `finer`, reduced in pieces by dask's threads."""

    def compute(box: Roi) -> np.ndarray:
        values = np.empty(box.shape, finer.dtype)
        grid = Blocks(box.shape, finer.shards)

        def put(piece: Roi) -> None:
            window = zip(piece.moved(box.offset).slices, factor, finer.shape, strict=True)
            below = finer[tuple(slice(s.start * f, min(s.stop * f, n)) for s, f, n in window)]
            values[piece.slices] = REDUCE[role](below, factor)

        dask.compute(*(dask.delayed(put)(grid.roi(index)) for index in range(len(grid))))
        return values

    return compute
