"""`tokenunify datasets`: the configured volumes, what their download takes, who uses them, and what is here."""

import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from tokenunify import config as c
from tokenunify import layout
from tokenunify.plan.estimate import known_shape
from tokenunify.plan.plan import Plan
from tokenunify.text_table import aligned

HEADER = ("volume", "shape", "Gvoxels", "GB to download", "licence", "used", "verified", "here")
VOXEL_BYTES = {"raw": 1, "labels": 8, "mask": 1}
"""Bytes of a voxel of remote arrays of which a box is fetched: the configuration does not know their types."""
UNKNOWN = "?"


def run(configfile: Sequence[Path]) -> None:
    """Print one line per volume."""
    loaded = c.load(*configfile)
    rows = [row(loaded, name) for name in loaded.volumes]
    sys.stdout.write(aligned([HEADER, *rows], left=("volume", "licence", "used", "here")))


def row(config: c.Config, name: str) -> tuple[str, ...]:
    """A volume's cells under HEADER."""
    volume, shape = config.volumes[name], known_shape(Plan(config), name)
    gigabytes = download_gb(volume)
    return (
        name,
        " x ".join(map(str, shape)) if shape else UNKNOWN,
        f"{math.prod(shape) / 1e9:,.3g}" if shape else UNKNOWN,
        UNKNOWN if gigabytes is None else f"{gigabytes:,.3g}",
        licence(volume, config.accept_licenses),
        ", ".join(uses(config, name)) or "-",
        "yes" if volume.verified else "no",
        here(name),
    )


def download_gb(volume: c.Volume) -> float | None:
    """GB of the first source that needs a network, at most; 0 where none does, None where nobody states it."""
    if volume.download_gb is not None:
        return volume.download_gb
    remote = next((s for s in volume.sources if any(file.path is None for file in s.files.values())), None)
    if remote is None:
        return 0.0
    fetched = {role: file for role, file in remote.files.items() if file.path is None}
    if volume.roi is None or not all(file.is_box for file in fetched.values()):
        return None
    return math.prod(volume.roi.shape) * sum(VOXEL_BYTES[role] for role in fetched) / 1e9


def licence(volume: c.Volume, accepted: tuple[str, ...]) -> str:
    """The licence, or the name of the terms to accept and whether they are."""
    if volume.terms is None:
        return volume.license or UNKNOWN
    if not volume.terms.ask:
        return volume.terms.name
    return f"{volume.terms.name} ({'accepted' if volume.terms.name in accepted else 'not accepted'})"


def uses(config: c.Config, name: str) -> Iterator[str]:
    """Splits of data sets, and corpora, that name the volume."""
    for dataset, splits in config.datasets.items():
        for train in splits.train:
            if train.volume == name:
                yield f"{dataset} train" + (" {}-{}".format(*train.sections) if train.sections else "")
        for split in ("validation", "test"):
            if name in getattr(splits, split):
                yield f"{dataset} {split}"
        if name in (application.volume for application in splits.apply):
            yield f"{dataset} apply"
    for corpus, volumes in config.corpora.items():
        for member in volumes.members:
            if member.volume == name:
                sample, taken = member.sample, ""
                if sample:  # a voxel of raw is a byte
                    gigabytes = sample.number * math.prod(sample.shape) / 1e9
                    taken = f" ({sample.number} regions, {gigabytes:,.3g} GB)"
                yield f"corpus {corpus}{taken}"


def here(name: str) -> str:
    """How far the volume has come in this folder."""
    for stage, done in (("ingest", "ingested"), ("download", "downloaded")):
        if Path(layout.output(stage).format(volume=name)).exists():
            return done
    return "-"
