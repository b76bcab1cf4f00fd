"""Turn a volume's source files into an OME-Zarr volume of raw, labels and mask with pyramids for viewing."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from math import ceil
from pathlib import Path

import dask
import dask.array as da
import numpy as np
import zarr

import tokenunify
from tokenunify import arrays, blockwise, manifest, pyramid, stages
from tokenunify.config import Phantom
from tokenunify.data import convert, readers, sources, synthetic
from tokenunify.data.source_array import SourceArray
from tokenunify.errors import InputError
from tokenunify.geometry import Blocks, Coordinate, Roi, VoxelSize

BLOCK_VOXELS = 2**25
"""About this many voxels are read, converted and written between two entries of the ledger."""
SIZE_TOLERANCE = 0.01
"""Relative difference of voxel sizes that passes for rounding."""
CONVERT = {"raw": convert.raw, "mask": convert.mask}
REDUCE = {"raw": pyramid.reduce_mean, "labels": pyramid.reduce_mode, "mask": pyramid.reduce_mode}
METHOD = {"raw": "mean", "labels": "mode", "mask": "mode"}


def run(section: stages.Ingest, plain: dict, *, source: Path, output: Path, threads: int) -> None:
    """Write `{volume}.zarr` beside `output`, then `output`.

    The store is built under another name and replaces an older one when it is whole; a killed run goes on at the next
    block and ends with the same bytes. Raises InputError for sources that are not what the configuration says.
    """
    inputs = {"source": manifest.content_hash(source)}
    name = f".{output.stem}.{blockwise.store_folder(output, 'ingest', plain, inputs).name}"
    partial, progress = output.with_name(f"{name}.partial.zarr"), output.with_name(f"{name}.progress")
    with blockwise.lock(output.with_name(f".{output.stem}.locks"), range(1)), _limited(threads):
        if _is_made(output, plain, inputs):
            return  # by a job of an earlier run, while this one waited for it
        placed = output.with_name(f"{name}.placed.json")
        if placed.exists() and output.with_suffix(".zarr").exists():  # Snakemake, killed before, removed the manifest
            manifest.write(output, *manifest.read(placed).values())
            _remove_work(output)
            return
        opened = _open(source, progress / "unpacked")
        roi = _roi(section, opened)
        lazy = {role: _converted(role, array, roi, section) for role, array in opened.items()}
        _create_group(partial, section, source, roi)
        runs = []
        for role, array in lazy.items():
            with opened[role].keeping(section.shard_shape[0]):
                runs.append(_write_image(partial, progress, role, array, section, roi))
        _forget_placed(output)
        _replace(output.with_suffix(".zarr"), partial)
        content = _content(section, lazy, roi) | {"config": plain, "inputs": inputs}
        for path in (placed, output):
            manifest.write(path, content, _total(runs))
        _remove_work(output)


def _is_made(output: Path, plain: dict, inputs: dict[str, str]) -> bool:
    if not (output.exists() and output.with_suffix(".zarr").exists()):
        return False
    content = manifest.content(output)
    return (content["config"], content["inputs"]) == (plain, inputs)


@contextmanager
def _limited(threads: int) -> Iterator[None]:
    with (
        dask.config.set(scheduler="threads", num_workers=threads),
        zarr.config.set({"threading.max_workers": threads}),
    ):
        yield


def _content(section: stages.Ingest, lazy: dict[str, da.Array], roi: Roi) -> dict:
    stored = {role: {"shape": list(array.shape), "dtype": array.dtype.name} for role, array in lazy.items()}
    return {
        "raw": stored["raw"],
        "labels": stored.get("labels"),
        **({"mask": stored["mask"]} if "mask" in stored else {}),
        "voxel_size_nm": list(section.voxel_size_nm),
        "offset_nm": list(_offset_nm(section, roi)),
        "zero": section.zero,
        "license": section.license,
        "citation": section.citation,
    }


# ------------------------------------------------------------------------------------------------ what comes in


def _open(source: Path, unpacked: Path) -> dict[str, SourceArray]:
    """The source's arrays by role, raw first; files must still be those that were downloaded or found."""
    download = manifest.read(source)
    content, paths = download["content"], download["run"]
    if "phantom" in content:
        phantom = Phantom.model_validate(content["phantom"])
        raw, labels = synthetic.phantom(phantom.shape, phantom.seed, phantom.density)
        size = synthetic.VOXEL_SIZE_NM
        return {"raw": SourceArray("phantom", raw, size), "labels": SourceArray("phantom", labels, size)}
    opened = {}
    for role in ("raw", "labels", "mask"):
        file = content.get(role)
        if file is not None:
            _check_unchanged(paths[role], file, source)
            opened[role] = readers.open_array(paths[role], file["format"], file["dataset"], unpacked / role)
    return opened


def _check_unchanged(path: str, file: dict, source: Path) -> None:
    remake = f"run `snakemake {source} --forcerun download`"
    try:
        found = sources.checksum(path, file["format"])
    except (OSError, InputError) as error:
        raise InputError(f"{path} can no longer be read ({error}); put it back or {remake}") from None
    if found != file["sha256"]:
        raise InputError(
            f"{path} changed since the download: expected sha256 {file['sha256']}, found {found}; {remake}"
        )


def _roi(section: stages.Ingest, opened: dict[str, SourceArray]) -> Roi:
    """The box to ingest, after checking that shapes and voxel sizes agree."""
    shape = opened["raw"].shape
    for role, array in opened.items():
        if array.shape != shape:
            raise InputError(
                f"raw and {role} must have one shape: {opened['raw'].path} has {list(shape)}, {array.path} has "
                f"{list(array.shape)}; give files of the same region"
            )
        _check_voxel_size(array, section.voxel_size_nm)
    if section.roi is None:
        return Roi((0, 0, 0), shape)
    roi = Roi(section.roi.offset, section.roi.shape)
    if any(e > n for e, n in zip(roi.end, shape, strict=True)):
        raise InputError(
            f"roi offset {list(roi.offset)} shape {list(roi.shape)} ends at {list(roi.end)}, outside "
            f"{opened['raw'].path} of shape {list(shape)}; correct roi in the configuration"
        )
    return roi


def _check_voxel_size(array: SourceArray, configured: VoxelSize) -> None:
    stated = array.voxel_size_nm
    if stated and any(s and abs(s - c) > SIZE_TOLERANCE * c for s, c in zip(stated, configured, strict=True)):
        raise InputError(
            f"voxel_size_nm is {list(configured)} in the configuration, but {array.path} states {list(stated)} "
            "(z, y, x in nm); correct the one that is wrong"
        )


def _converted(role: str, source: SourceArray, roi: Roi, section: stages.Ingest) -> da.Array:
    """The box of the source in the type that is stored, not read yet."""
    unit = (1, *source.shape[1:]) if source.sections else _clipped(section.shard_shape, source.shape)
    empty = np.empty((0, 0, 0), source.dtype)
    lazy = da.from_array(source, chunks=unit, name=False, asarray=False, meta=empty)[roi.slices]
    dtype, function = convert.labels(source, lazy) if role == "labels" else CONVERT[role](source)
    return lazy.map_blocks(function, dtype=dtype, meta=np.empty((0, 0, 0), dtype))


# ------------------------------------------------------------------------------------------------ what goes out


def _create_group(path: Path, section: stages.Ingest, source: Path, roi: Roi) -> None:
    """The store's root: where the volume comes from."""
    provenance = {
        "source": manifest.content(source),
        "roi": {"offset": list(roi.offset), "shape": list(roi.shape)},
        "license": section.license,
        "citation": section.citation,
        "tokenunify_version": tokenunify.__version__,
    }
    zarr.open_group(str(path), mode="a", zarr_format=3).attrs["tokenunify"] = provenance


def _write_image(store: Path, progress: Path, role: str, lazy: da.Array, section: stages.Ingest, roi: Roi) -> dict:
    """Write a role's group: full resolution, the levels above it, and their metadata; return the summed `run`."""
    levels = pyramid.levels(roi.shape, section.voxel_size_nm)
    group = zarr.open_group(str(store / role), mode="a", zarr_format=3)
    runs = []
    for level, (shape, size) in enumerate(levels):
        if level > 0:
            lazy = _reduced(role, group[str(level - 1)], *levels[level - 1], section.shard_shape)
        assert lazy.shape == shape
        array = _level(store / role / str(level), lazy, section, size, _offset_nm(section, roi))
        runs.append(_write(lazy, array, progress / role / str(level)))
    ome = pyramid.multiscales(role, [size for _, size in levels], _offset_nm(section, roi), METHOD[role])
    if role == "labels":
        ome["image-label"] = {"source": {"image": "../raw"}}
    group.attrs["ome"] = ome
    return _total(runs)


def _level(
    path: Path, lazy: da.Array, section: stages.Ingest, voxel_size_nm: VoxelSize, offset_nm: VoxelSize
) -> zarr.Array:
    if (path / "zarr.json").exists():
        return arrays.reopen(path, f"delete {path.parent.parent} and run snakemake again")
    return arrays.create(
        path,
        shape=lazy.shape,
        dtype=lazy.dtype.name,
        chunk_shape=section.chunk_shape,
        shard_shape=section.shard_shape,
        attributes={"voxel_size_nm": list(voxel_size_nm), "offset_nm": list(offset_nm)},
    )


def _write(lazy: da.Array, array: zarr.Array, progress: Path) -> dict:
    """Store a lazy array shard by shard; blocks that the ledger lists are not computed again."""
    shards = array.shards or array.chunks

    def process(index: int, roi: Roi) -> None:
        da.store(lazy[roi.slices].rechunk(shards), array, regions=roi.slices, lock=False)

    return blockwise.run_part(progress, Blocks(array.shape, _block_shape(array.shape, shards)), process, written=array)


def _block_shape(shape: Coordinate, shard: Coordinate) -> Coordinate:
    """A layer of shards, cut along y (then x) where it is larger than BLOCK_VOXELS: whole sections are read once."""
    rows = max(1, BLOCK_VOXELS // (shard[0] * shard[1] * shape[2]))
    columns = max(1, BLOCK_VOXELS // (shard[0] * shard[1] * shard[2]))
    return (
        shard[0],
        shard[1] * min(rows, ceil(shape[1] / shard[1])),
        shard[2] * min(columns, ceil(shape[2] / shard[2])),
    )


def _reduced(role: str, array: zarr.Array, shape: Coordinate, size: VoxelSize, shard: Coordinate) -> da.Array:
    factor = pyramid.factors(shape, size)
    lazy = da.from_array(array, chunks=tuple(s * f for s, f in zip(shard, factor, strict=True)), name=False)
    chunks = tuple(tuple(ceil(n / f) for n in axis) for axis, f in zip(lazy.chunks, factor, strict=True))
    return lazy.map_blocks(REDUCE[role], factor, dtype=lazy.dtype, chunks=chunks, meta=np.empty((0, 0, 0), lazy.dtype))


def _offset_nm(section: stages.Ingest, roi: Roi) -> VoxelSize:
    z, y, x = (o * v for o, v in zip(roi.offset, section.voxel_size_nm, strict=True))
    return z, y, x


def _clipped(shape: Coordinate, limit: Coordinate) -> Coordinate:
    z, y, x = (min(s, n) for s, n in zip(shape, limit, strict=True))
    return z, y, x


def _total(runs: list[dict]) -> dict:
    voxels, seconds = sum(r["voxels"] for r in runs), sum(r["seconds"] for r in runs)
    return {"voxels": voxels, "seconds": round(seconds, 3), "voxels_per_second": round(voxels / max(seconds, 1e-3))}


def _replace(final: Path, partial: Path) -> None:
    """Put the finished store in place of an older one."""
    for stray in partial.rglob("*.partial"):
        stray.unlink()
    old = final.with_name(f".{final.stem}.old.zarr")
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        os.rename(final, old)
    os.rename(partial, final)
    shutil.rmtree(old, ignore_errors=True)


def _forget_placed(output: Path) -> None:
    """Remove what describes the store that is about to be replaced."""
    output.unlink(missing_ok=True)
    for path in output.parent.glob(f".{output.stem}.*.placed.json"):
        path.unlink()


def _remove_work(output: Path) -> None:
    """Remove what this and earlier attempts, also of other settings, left beside the finished store."""
    for ending in ("partial.zarr", "progress"):
        for left in output.parent.glob(f".{output.stem}.*.{ending}"):
            shutil.rmtree(left)
