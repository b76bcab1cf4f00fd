"""Open the source files of a volume, and check that they are what was downloaded and what the configuration says."""

import logging
from pathlib import Path

from tokenunify.config import Phantom, validate
from tokenunify.data import local_files
from tokenunify.data.formats import absent, hdf5_references, readers
from tokenunify.data.formats.absent import Count
from tokenunify.data.formats.source_array import SourceArray
from tokenunify.data.phantom import phantom
from tokenunify.errors import InputError
from tokenunify.geometry import Roi
from tokenunify.stages import sections
from tokenunify.store import download_forms, manifest

logger = logging.getLogger(__name__)

SIZE_TOLERANCE = 0.01
"""Relative difference of voxel sizes that passes for rounding."""


def open_source(source: Path, unpacked: Path, max_bytes: float) -> dict[str, SourceArray]:
    """The arrays that the manifest `source` lists, by role, raw first; archives are unpacked into a folder.

    Raises InputError for a file that is not the one that was downloaded or found.
    """
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
        if file is None:
            continue
        path, remake = paths[role], f"run `snakemake {source} --forcerun download`"
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
        opened[role] = array = readers.open_array(
            path,
            file["format"],
            file["dataset"],
            unpacked / role,
            max_bytes=max_bytes,
            is_grey=role == "raw",
        )
        if box := file.get("box"):
            array.box, array.whole = Roi(tuple(box["offset"]), tuple(box["shape"])), tuple(box["whole"])
            array.lacking = Count(*box.get("absent", (0, 0)))
    return opened


def box_to_ingest(section: sections.Ingest, opened: dict[str, SourceArray]) -> Roi:
    """The box to ingest; InputError where shapes or voxel sizes do not agree, or the roi leaves the source."""
    shape = opened["raw"].whole
    for role, array in opened.items():
        if array.whole != shape:
            raise InputError(
                f"raw and {role} must have one shape: {opened['raw'].path} has {list(shape)}, {array.path} has "
                f"{list(array.whole)}; give files of the same region"
            )
        if states_other_size(array, section):
            told = (
                f"voxel_size_nm is {list(section.voxel_size_nm)} in the configuration, but {array.path} states "
                f"{list(array.voxel_size_nm or ())} (z, y, x in nm)"
            )
            if section.stated_voxel_size == "check":
                raise InputError(
                    f"{told}; correct voxel_size_nm, or if the file is wrong set stated_voxel_size of the volume to "
                    "ignore"
                )
            logger.warning("%s; the configuration holds, as stated_voxel_size is ignore", told)
    if section.roi is None:
        return opened["raw"].box
    roi = Roi(section.roi.offset, section.roi.shape)
    if any(e > n for e, n in zip(roi.end, shape, strict=True)):
        raise InputError(
            f"roi offset {list(roi.offset)} shape {list(roi.shape)} ends at {list(roi.end)}, outside "
            f"{opened['raw'].path} of shape {list(shape)}; correct roi in the configuration"
        )
    return roi


def states_other_size(array: SourceArray, section: sections.Ingest) -> bool:
    """Whether a file states another voxel size than the configuration."""
    pairs = zip(array.voxel_size_nm or (), section.voxel_size_nm, strict=False)
    return any(stated and abs(stated - size) > SIZE_TOLERANCE * size for stated, size in pairs)


def absent_parts(opened: dict[str, SourceArray], roi: Roi, allowed: dict[str, float]) -> dict[str, dict]:
    """How much of the box the source lacks, for each role that lacks some; InputError for more than is allowed."""
    counts = {role: array.absent(roi) for role, array in opened.items()}
    for role, count in counts.items():
        absent.check(opened[role].path, count, allowed.get(role, absent.ALLOWED))
    return {role: count._asdict() for role, count in counts.items() if count.absent}
