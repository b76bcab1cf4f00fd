"""Turn a volume's source files into an OME-Zarr volume of raw, labels and mask with pyramids for viewing."""

import os
import shutil
from pathlib import Path

import dask
import zarr

from tokenunify.data.formats.source_array import SourceArray
from tokenunify.data.ingest import convert, image, labels, reading
from tokenunify.stages import sections
from tokenunify.store import arrays, blockwise, manifest, shards


def run(
    section: sections.Ingest,
    plain: dict,
    *,
    source: Path,
    output: Path,
    threads: int,
    permit: sections.Permit = sections.DEFAULT_PERMIT,
) -> None:
    """Write `{volume}.zarr` beside `output`, then `output`.

    The store is built under another name and replaces an older one when it is whole; a killed run goes on at the next
    block and ends with the same bytes. Raises InputError for sources that are not what the configuration says.
    """
    inputs = {"source": manifest.content_hash(source)}
    name = f".{output.stem}.{blockwise.store_folder(output, 'ingest', plain, inputs).name}"
    placed, final = output.with_name(f"{name}.placed.json"), output.with_suffix(".zarr")
    with (
        blockwise.lock(output.with_name(f".{output.stem}.locks"), range(1)),
        dask.config.set(scheduler="threads", num_workers=threads),
        zarr.config.set({"threading.max_workers": threads}),
    ):
        if output.exists() and final.exists():
            made = manifest.content(output)
            if (made["config"], made["inputs"]) == (plain, inputs):
                return  # by a job of an earlier run, while this one waited for it
        if placed.exists() and final.exists():  # Snakemake, killed before, removed the manifest
            manifest.write(output, *manifest.read(placed).values())
        else:
            partial, progress = output.with_name(f"{name}.partial.zarr"), output.with_name(f"{name}.progress")
            opened = reading.open_source(source, progress / "unpacked", permit.max_unpacked_bytes)
            content, run = _write_store(section, source, opened, partial, progress)
            output.unlink(missing_ok=True)  # it describes the store that is about to be replaced
            for path in output.parent.glob(f".{output.stem}.*.placed.json"):
                path.unlink()
            _replace(final, partial)
            for path in (placed, output):
                manifest.write(path, {**content, "config": plain, "inputs": inputs}, run)
        for ending in ("partial.zarr", "progress"):  # of this and earlier attempts, also with other settings
            for left in output.parent.glob(f".{output.stem}.*.{ending}"):
                shutil.rmtree(left)


def _write_store(
    section: sections.Ingest, source: Path, opened: dict[str, SourceArray], partial: Path, progress: Path
) -> tuple[dict, dict]:
    """Write all roles of the volume; return content and run of its manifest."""
    roi = reading.box_to_ingest(section, opened)
    lacking = reading.absent_parts(opened, roi, manifest.read(source)["run"].get("allow_missing", {}))
    image.warn_of_many_files(section, roi)
    with opened["raw"].keeping(section.chunk_shape[0], progress / "sections" / "raw"):
        ends = convert.ends(section.intensity, opened["raw"], roi, section.chunk_shape)
    overruled = {r: list(a.voxel_size_nm or ()) for r, a in opened.items() if reading.states_other_size(a, section)}
    choices = {"intensity": ends, "overruled_voxel_size_nm": overruled}
    image.create_group(partial, section, source, roi, choices)
    runs, stored, marks = [], {}, {}
    for role, array in opened.items():
        with array.keeping(section.shard_shape[0], progress / "sections" / role):
            if role == "labels":
                found = labels.converted(array, roi, section, progress / "ids")
            else:
                found = convert.converted(role, array, roi, ends)
            watched = convert.Watched(found.compute)
            runs += image.write(partial, progress, role, found._replace(compute=watched), section, roi)
            stored[role] = {"shape": list(roi.shape), "dtype": found.dtype}
            marks[role] = shards.marks(zarr.open_array(str(partial / role / "0"), mode="r"))
            found.warn()
            watched.warn(role, array, roi)
    content = {
        "labels": None,
        **stored,
        "voxel_size_nm": list(section.voxel_size_nm),
        "offset_nm": list(image.offset_nm(section, roi)),
        "zero": section.zero,
        **({"absent": lacking} if lacking else {}),
    }
    voxels, seconds = sum(run["voxels"] for run in runs), sum(run["seconds"] for run in runs)
    speed = {"seconds": round(seconds, 3), "voxels_per_second": round(voxels / max(seconds, 1e-3))}
    return content, {"voxels": voxels, **speed, arrays.SHARDS: marks}


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
