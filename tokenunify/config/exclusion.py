"""What a pre-training corpus must not show: boxes given by hand, and the raw of validation and test volumes.

Volumes are boxes of their sources: two of them share raw where these are the same array and the boxes overlap.
"""

from typing import TYPE_CHECKING

from tokenunify.config.data import FileSource, Source, Volume
from tokenunify.config.pretraining import Corpus
from tokenunify.geometry import Coordinate, Roi, subtract

if TYPE_CHECKING:
    from tokenunify.config import Config

ANY_SIZE = Roi((0, 0, 0), (2**40, 2**40, 2**40))
"""Extent of a volume whose size only its file tells."""


def avoided(config: "Config", corpus: Corpus, name: str) -> tuple[Roi, ...]:
    """Boxes of a volume, in its own voxels, that no crop of the corpus may touch."""
    boxes = [(box.volume, Roi(box.offset, box.shape)) for box in corpus.exclude]
    if not corpus.allow_test:
        boxes += [(held_out, ANY_SIZE) for held_out in held_out_volumes(config)]
    shared = (shared_raw(config, name, other, box) for other, box in boxes)
    return tuple(dict.fromkeys(box for box in shared if box is not None))


def shows(config: "Config", corpus: Corpus, name: str) -> bool:
    """Whether some of the volume's raw is in the corpus."""
    for member in (volume for volumes in corpus.datasets.values() for volume in volumes):
        shared = shared_raw(config, member.volume, name, ANY_SIZE)
        if shared is None:
            continue
        for region in regions(config, member.volume, member.regions):
            if any(part.overlap(shared) for part in subtract(region, avoided(config, corpus, member.volume))):
                return True
    return False


def held_out_volumes(config: "Config") -> list[str]:
    """Validation and test volumes of all data sets."""
    return list(dict.fromkeys(v for d in config.datasets.values() for v in (*d.validation, *d.test)))


def regions(config: "Config", name: str, boxes: tuple) -> list[Roi]:
    """The boxes of a volume, or all of it where there are none, in its own voxels."""
    whole = Roi((0, 0, 0), extent(config.volumes[name]).shape)
    return [Roi(box.offset, box.shape) for box in boxes] or [whole]


def extent(volume: Volume) -> Roi:
    """The volume in its source's voxels."""
    if volume.roi is not None:
        return Roi(volume.roi.offset, volume.roi.shape)
    phantom = volume.sources[0].phantom
    return Roi((0, 0, 0), phantom.shape) if phantom else ANY_SIZE


def shared_raw(config: "Config", name: str, other: str, box: Roi) -> Roi | None:
    """The part of a volume, in its own voxels, whose raw is also in the box of another (or the same) volume."""
    mine, theirs = config.volumes[name], config.volumes[other]
    if not any(_same_raw(a, b) for a in mine.sources for b in theirs.sources):
        return None
    own, there = extent(mine), extent(theirs)
    placed = there.overlap(box.moved(there.offset))
    found = placed.overlap(own) if placed else None
    return found.moved(_minus(own.offset)) if found else None


def _same_raw(a: Source, b: Source) -> bool:
    """Whether two sources are one array."""
    if a.raw is None or b.raw is None:
        return a.phantom == b.phantom
    return _array(a.raw) == _array(b.raw)


def _array(file: FileSource) -> tuple:
    """What tells arrays apart: formats, revisions and checksums do not."""
    hub = file.huggingface and (file.huggingface.repo, file.huggingface.repo_type, file.huggingface.file)
    return file.path, file.url, hub, file.drive, file.member, file.indices, file.dataset


def _minus(offset: Coordinate) -> Coordinate:
    z, y, x = offset
    return -z, -y, -x
