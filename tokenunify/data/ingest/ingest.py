"""Turn a volume's source files into an OME-Zarr volume of raw, labels and mask with pyramids for viewing."""

import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import dask
import numpy as np
import zarr

import tokenunify
from tokenunify.affinities import IGNORE
from tokenunify.config import Phantom, validate
from tokenunify.data import local_files
from tokenunify.data.formats import absent, hdf5_references, readers
from tokenunify.data.formats.absent import Copied, Count
from tokenunify.data.formats.source_array import SourceArray
from tokenunify.data.ingest import convert, label_components, streaming
from tokenunify.data.phantom import phantom
from tokenunify.data.read_errors import naming
from tokenunify.errors import InputError
from tokenunify.geometry import Blocks, Coordinate, Roi, VoxelSize
from tokenunify.kernels import components
from tokenunify.stages import sections
from tokenunify.store import arrays, blockwise, download_forms, manifest, pyramid, shards

logger = logging.getLogger(__name__)

MANY_FILES = 100_000
"""More of them in one volume are hard on a file system."""
SIZE_TOLERANCE = 0.01
"""Relative difference of voxel sizes that passes for rounding."""
REDUCE = {"raw": pyramid.reduce_mean, "labels": pyramid.reduce_mode, "mask": pyramid.reduce_mode}
METHOD = {"raw": "mean", "labels": "mode", "mask": "mode"}


def run(section: sections.Ingest, plain: dict, *, source: Path, output: Path, threads: int) -> None:
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
        lacking = _absent(opened, roi, manifest.read(source)["run"].get("allow_missing", {}))
        _warn_of_many_files(section, roi)
        with opened["raw"].keeping(section.chunk_shape[0], progress / "sections" / "raw"):
            ends = convert.ends(section.intensity, opened["raw"], roi, section.chunk_shape)
        overruled = {role: list(a.voxel_size_nm or ()) for role, a in opened.items() if _differs(a, section)}
        _create_group(partial, section, source, roi, {"intensity": ends, "overruled_voxel_size_nm": overruled})
        runs, stored, marks = [], {}, {}
        for role, array in opened.items():
            with array.keeping(section.shard_shape[0], progress / "sections" / role):
                found = _converted(role, array, roi, section, ends, progress)
                alone = _Alone(found.compute)
                runs.append(_write_image(partial, progress, role, found._replace(compute=alone), section, roi))
                stored[role] = found
                marks[role] = shards.marks(zarr.open_array(str(partial / role / "0"), mode="r"))
                found.warn()
                alone.warn(role, array, roi)
        _forget_placed(output)
        _replace(output.with_suffix(".zarr"), partial)
        content = _content(section, stored, roi) | {"config": plain, "inputs": inputs}
        content |= {"absent": lacking} if lacking else {}
        for path in (placed, output):
            manifest.write(path, content, {**_total(runs), arrays.SHARDS: marks})
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


def _content(section: sections.Ingest, converted: "dict[str, Converted]", roi: Roi) -> dict:
    stored = {role: {"shape": list(roi.shape), "dtype": found.dtype} for role, found in converted.items()}
    return {
        "raw": stored["raw"],
        "labels": stored.get("labels"),
        **({"mask": stored["mask"]} if "mask" in stored else {}),
        "voxel_size_nm": list(section.voxel_size_nm),
        "offset_nm": list(_offset_nm(section, roi)),
        "zero": section.zero,
    }


# ------------------------------------------------------------------------------------------------ what comes in


def _open(source: Path, unpacked: Path) -> dict[str, SourceArray]:
    """The source's arrays by role, raw first; files must still be those that were downloaded or found."""
    download = manifest.read(source, download_forms.Sources)
    content, paths = download["content"], download["run"]
    if "phantom" in content:
        asked = validate(Phantom, content["phantom"], f"{source}: phantom")
        raw, labels = phantom.generate(asked.shape, asked.seed, asked.density)
        size = phantom.VOXEL_SIZE_NM
        return {"raw": SourceArray("phantom", raw, size), "labels": SourceArray("phantom", labels, size)}
    opened = {}
    for role in ("raw", "labels", "mask"):
        file = content.get(role)
        if file is not None:
            _check_unchanged(paths[role], file, source)
            opened[role] = readers.open_array(
                paths[role],
                file["format"],
                file["dataset"],
                unpacked / role,
                max_bytes=sections.permit().max_unpacked_bytes,
                is_grey=role == "raw",
            )
            if box := file.get("box"):
                place, shape = Roi(tuple(box["offset"]), tuple(box["shape"])), tuple(box["whole"])
                opened[role].box, opened[role].whole = place, shape
                opened[role].absence = Copied(Count(*box.get("absent", (0, 0))))
    return opened


def _absent(opened: dict[str, SourceArray], roi: Roi, allowed: dict[str, float]) -> dict[str, dict]:
    """By role, how much of the box the source lacks, where it does; InputError for more than is allowed."""
    counts = {role: _counted(array, roi) for role, array in opened.items() if array.absence}
    for role, count in counts.items():
        absent.check(opened[role].path, count, allowed.get(role, absent.ALLOWED))
    return {role: count._asdict() for role, count in counts.items() if count.absent}


def _counted(array: SourceArray, roi: Roi) -> Count:
    assert array.absence is not None
    with naming(array.path):
        return array.absence.absent(roi)


def _check_unchanged(path: str, file: dict, source: Path) -> None:
    remake = f"run `snakemake {source} --forcerun download`"
    try:
        found = local_files.checksum(path, file["format"])
    except (OSError, InputError) as error:
        raise InputError(f"{path} can no longer be read ({error}); put it back or {remake}") from None
    if found != file["sha256"]:
        raise InputError(
            f"{path} changed since the download: expected sha256 {file['sha256']}, found {found}; {remake}"
        )
    others, expected = hdf5_references.referred(path, file["format"], file["dataset"]), file.get("refers_to", {})
    if changed := sorted(dict(others.items() ^ expected.items())):
        raise InputError(f"{path} takes voxels from {changed}, which changed since the download; {remake}")


def _roi(section: sections.Ingest, opened: dict[str, SourceArray]) -> Roi:
    """The box to ingest, after checking that shapes and voxel sizes agree."""
    shape = opened["raw"].whole
    for role, array in opened.items():
        if array.whole != shape:
            raise InputError(
                f"raw and {role} must have one shape: {opened['raw'].path} has {list(shape)}, {array.path} has "
                f"{list(array.whole)}; give files of the same region"
            )
        _check_voxel_size(array, section)
    if section.roi is None:
        return opened["raw"].box
    roi = Roi(section.roi.offset, section.roi.shape)
    if any(e > n for e, n in zip(roi.end, shape, strict=True)):
        raise InputError(
            f"roi offset {list(roi.offset)} shape {list(roi.shape)} ends at {list(roi.end)}, outside "
            f"{opened['raw'].path} of shape {list(shape)}; correct roi in the configuration"
        )
    return roi


def _check_voxel_size(array: SourceArray, section: sections.Ingest) -> None:
    if not _differs(array, section):
        return
    told = (
        f"voxel_size_nm is {list(section.voxel_size_nm)} in the configuration, but {array.path} states "
        f"{list(array.voxel_size_nm or ())} (z, y, x in nm)"
    )
    if section.stated_voxel_size == "check":
        raise InputError(
            f"{told}; correct voxel_size_nm, or if the file is wrong set stated_voxel_size of the volume to ignore"
        )
    logger.warning("%s; the configuration holds, as stated_voxel_size is ignore", told)


def _differs(array: SourceArray, section: sections.Ingest) -> bool:
    pairs = zip(array.voxel_size_nm or (), section.voxel_size_nm, strict=False)
    return any(stated and abs(stated - size) > SIZE_TOLERANCE * size for stated, size in pairs)


class Converted(NamedTuple):
    """What is stored of a role."""

    dtype: str
    compute: streaming.Compute
    """A box of it, in voxels of the roi."""
    depth: int
    """Sections that are cheapest read together."""
    original_ids: np.ndarray | None = None
    """The source's id of each label, where they are numbered anew."""
    warn: Callable[[], None] = lambda: None
    """Tell what was lost on the way."""


def _converted(
    role: str, source: SourceArray, roi: Roi, section: sections.Ingest, ends: tuple[float, float] | None, progress: Path
) -> Converted:
    """The box of the source in the type that is stored; labels are read to find their ids."""
    if role == "labels":
        convert.check_labels(source)
        find = _components if section.label_ids == "components" else _ids
        return find(source, roi, section, progress / "ids")
    function = convert.raw(source, ends) if role == "raw" else convert.mask(source)
    warn = getattr(function, "warn", lambda: None)
    return Converted("uint8", _of_boxes(function, source, roi), source.depth, warn=warn)


class _Alone:
    """Boxes as they are computed; tells where all of them hold one value."""

    def __init__(self, compute: streaming.Compute):
        self.compute = compute
        self.value: np.generic | None = None
        self.voxels = 0
        """That hold the value; those after the first other one are not looked at."""
        self.others = False

    def __call__(self, box: Roi) -> np.ndarray:
        values = self.compute(box)
        if not self.others:
            self.value = values.flat[0] if self.value is None else self.value
            self.others = bool((values != self.value).any())
            self.voxels += values.size
        return values

    def warn(self, role: str, source: SourceArray, roi: Roi) -> None:
        """Warn if raw or labels have one value only, unless a killed run has written some of them."""
        if role != "mask" and not self.others and self.voxels == prod(roi.shape):
            logger.warning(
                "%s: all voxels of %s are %s in the volume; see whether the source and roi are the right ones",
                source.path,
                role,
                self.value,
            )


def _of_boxes(function: convert.Convert, source: SourceArray, roi: Roi) -> streaming.Compute:
    return lambda box: function(source.read(box.moved(roi.offset)))


def _ids(source: SourceArray, roi: Roi, section: sections.Ingest, folder: Path) -> Converted:
    """Labels with the source's ids, of which the least and the largest are looked for, or numbered in their order."""
    dense = section.label_ids == "dense"
    read = _of_boxes(np.asarray, source, roi)

    def process(index: int, box: Roi) -> None:
        found = read(box)
        ids = convert.distinct(found) if dense else np.array([found.min(), found.max()])
        arrays.write_npz(folder / f"{index}.npz", ids=ids)

    blocks = _blocks(roi, section)
    blockwise.run_part(folder, blocks, process)
    remake = f"delete {folder} and run snakemake again"
    found = [arrays.read_npz(folder / f"{index}.npz", remake)["ids"] for index in range(len(blocks))]
    ids = np.unique(np.concatenate([np.zeros(1, source.dtype), *found]))
    dtype, function = convert.labels(source.path, ids, dense)
    return Converted(dtype, _of_boxes(function, source, roi), source.depth, ids[ids != IGNORE] if dense else None)


def _components(source: SourceArray, roi: Roi, section: sections.Ingest, folder: Path) -> Converted:
    """Labels whose parts that touch by no face have ids of their own; they are read and written by the same blocks."""
    read = _of_boxes(np.asarray, source, roi)
    ids, tables = label_components.find(read, _blocks(roi, section), folder)
    convert.check_ids(source.path, ids)
    numbers = convert.numbers(ids)

    def compute(box: Roi) -> np.ndarray:
        found, _ = components.numbered(read(box))
        return label_components.of_voxels(found, numbers[tables[box]])

    return Converted(numbers.dtype.name, compute, section.shard_shape[0], ids[ids != IGNORE])


def _blocks(roi: Roi, section: sections.Ingest) -> Blocks:
    return Blocks(roi.shape, streaming.block_shape(roi.shape, section.shard_shape))


# ------------------------------------------------------------------------------------------------ what goes out


def num_files(shape: Coordinate, voxel_size_nm: VoxelSize, shard_shape: Coordinate) -> int:
    """Shard files of an image of that shape and of the levels above it."""
    return sum(len(Blocks(level, shard_shape)) for level, _ in pyramid.levels(shape, voxel_size_nm))


def _warn_of_many_files(section: sections.Ingest, roi: Roi) -> None:
    number = num_files(roi.shape, section.voxel_size_nm, section.shard_shape)
    if number > MANY_FILES:
        logger.warning(
            "this volume makes %d files; a larger shard_shape of the volume, of up to 2^27 voxels, makes fewer", number
        )


def _create_group(path: Path, section: sections.Ingest, source: Path, roi: Roi, choices: dict) -> None:
    """The store's root: where the volume comes from, and the choices that were made for it."""
    provenance = {
        "source": manifest.content(source),
        "roi": {"offset": list(roi.offset), "shape": list(roi.shape)},
        **_rights(source),
        "tokenunify_version": tokenunify.__version__,
        **{name: choice for name, choice in choices.items() if choice},
    }
    zarr.open_group(str(path), mode="a", zarr_format=3).attrs["tokenunify"] = provenance


def _rights(source: Path) -> dict:
    """What the owner of the data asked of who uses them, when they were downloaded."""
    asked = manifest.read(source)["run"].get("section", {})
    return {key: asked.get(key) for key in ("license", "terms", "citation")}


def _write_image(store: Path, progress: Path, role: str, found: Converted, section: sections.Ingest, roi: Roi) -> dict:
    """Write a role's group: full resolution, the levels above it, and their metadata; return the summed `run`."""
    levels = pyramid.levels(roi.shape, section.voxel_size_nm)
    group = zarr.open_group(str(store / role), mode="a", zarr_format=3)
    runs = []
    for level, (shape, size) in enumerate(levels):
        array = _level(store / role / str(level), shape, found.dtype, section, size, _offset_nm(section, roi))
        compute, depth = found.compute, found.depth
        if level > 0:
            factor = pyramid.factors(*levels[level - 1])
            compute, depth = _reduced(role, group[str(level - 1)], factor), section.chunk_shape[0]
        runs.append(streaming.fill(array, compute, progress / role / str(level), depth=depth))
    ome = pyramid.multiscales(role, [size for _, size in levels], _offset_nm(section, roi), METHOD[role])
    if role == "labels":
        ome["image-label"] = {"source": {"image": "../raw"}}
    group.attrs["ome"] = ome
    if found.original_ids is not None:
        group.create_array("original_ids", data=found.original_ids, overwrite=True)
    return _total(runs)


def _level(
    path: Path, shape: Coordinate, dtype: str, section: sections.Ingest, voxel_size_nm: VoxelSize, offset_nm: VoxelSize
) -> zarr.Array:
    stated: dict[str, Any] = {
        "shape": shape,
        "dtype": dtype,
        "chunk_shape": section.chunk_shape,
        "shard_shape": section.shard_shape,
        "attributes": {"voxel_size_nm": list(voxel_size_nm), "offset_nm": list(offset_nm)},
    }
    if (path / "zarr.json").exists():
        return arrays.reopen(path, f"delete {path.parent.parent} and run snakemake again", stated)
    return arrays.create(path, **stated)


def _reduced(role: str, finer: zarr.Array, factor: Coordinate) -> streaming.Compute:
    """Boxes of the level above `finer`, reduced in pieces by dask's threads."""

    def reduce(box: Roi) -> np.ndarray:
        window = zip(box.slices, factor, finer.shape, strict=True)
        return REDUCE[role](finer[tuple(slice(s.start * f, min(s.stop * f, n)) for s, f, n in window)], factor)

    def compute(box: Roi) -> np.ndarray:
        values = np.empty(box.shape, finer.dtype)
        grid = Blocks(box.shape, finer.shards)

        def put(piece: Roi) -> None:
            values[piece.slices] = reduce(piece.moved(box.offset))

        dask.compute(*(dask.delayed(put)(grid.roi(index)) for index in range(len(grid))))
        return values

    return compute


def _offset_nm(section: sections.Ingest, roi: Roi) -> VoxelSize:
    z, y, x = (o * v for o, v in zip(roi.offset, section.voxel_size_nm, strict=True))
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
