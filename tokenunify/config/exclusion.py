"""What a pre-training corpus must not show: boxes given by hand, known test cubes, raw of validation and test volumes.

Volumes are boxes of their sources: two of them share raw where these are the same array and the boxes overlap.
"""

from collections.abc import Hashable

from tokenunify.config import lattice
from tokenunify.config.file import Sections
from tokenunify.config.pretraining import Corpus, CorpusVolume
from tokenunify.config.sources import Source
from tokenunify.config.volumes import TestCube, Volume
from tokenunify.geometry import Coordinate, Roi, subtract

ANY_SIZE = Roi((0, 0, 0), (2**40, 2**40, 2**40))
"""Extent of a volume whose size only its file tells."""


def avoided(config: Sections, corpus: Corpus, name: str) -> tuple[Roi, ...]:
    """Boxes of a volume, in its own voxels, that no crop of the corpus may touch."""
    boxes = [(box.volume, Roi(box.offset, box.shape)) for box in corpus.exclude]
    if not corpus.allow_test:
        datasets = config.datasets.values()
        boxes += [(held_out, ANY_SIZE) for d in datasets for held_out in (*d.validation, *d.test)]
        boxes += [(whole, box) for whole in config.volumes for _, box in test_cubes(config, whole) if box]
    shared = (shared_raw(config, name, other, box) for other, box in boxes)
    return tuple(dict.fromkeys(box for box in shared if box is not None))


def shows(config: Sections, corpus: Corpus, name: str) -> bool:
    """Whether the corpus holds raw of the volume, or may hold it: every place of a sampled region counts."""
    for member in corpus.members:
        shared = [shared_raw(config, member.volume, name, ANY_SIZE)]
        cubes = [box for cube, box in test_cubes(config, member.volume) if cube.volume == name]
        shared += [box or ANY_SIZE for box in cubes if box or corpus.allow_test]  # else a box by hand excludes it
        if not any(shared):
            continue
        avoid = avoided(config, corpus, member.volume)
        shown = (part for region in regions(config, corpus, member) for part in subtract(region, avoid))
        if any(part.overlap(box) for part in shown for box in shared if box):
            return True
    return False


def test_cubes(config: Sections, name: str) -> list[tuple[TestCube, Roi | None]]:
    """The known test cubes in a volume, with their boxes in its own voxels."""
    volume = config.volumes[name]
    own = _minus(extent(volume).offset)
    return [(cube, Roi(cube.box.offset, cube.box.shape).moved(own) if cube.box else None) for cube in volume.test_cubes]


def regions(config: Sections, corpus: Corpus, member: CorpusVolume) -> list[Roi]:
    """The boxes of a corpus volume, in its own voxels: as given, all places of sampled ones, or the whole volume."""
    if member.sample is not None:
        places = (place for region in drawn(config, corpus, member) for place in region)
        return [Roi(place, member.sample.shape) for place in places]
    whole = Roi((0, 0, 0), extent(config.volumes[member.volume]).shape)
    return [Roi(box.offset, box.shape) for box in member.regions] or [whole]


def drawn(config: Sections, corpus: Corpus, member: CorpusVolume) -> tuple[tuple[Coordinate, ...], ...]:
    """The places of each sampled region, in the volume's own voxels; none touches what the corpus avoids."""
    sample = member.sample
    assert sample is not None
    whole = extent(config.volumes[member.volume]).shape
    return lattice.draw(whole, sample.shape, sample.number, sample.seed, avoided(config, corpus, member.volume))


def extent(volume: Volume) -> Roi:
    """The volume in its source's voxels."""
    if volume.declared_shape is None:
        return ANY_SIZE
    return Roi(volume.roi.offset if volume.roi else (0, 0, 0), volume.declared_shape)


def shared_raw(config: Sections, name: str, other: str, box: Roi) -> Roi | None:
    """The part of a volume, in its own voxels, whose raw is also in the box of another (or the same) volume."""
    mine, theirs = config.volumes[name], config.volumes[other]
    if not {raw_of(source) for source in mine.sources} & {raw_of(source) for source in theirs.sources}:
        return None
    own, there = extent(mine), extent(theirs)
    placed = there.overlap(box.moved(there.offset))
    found = placed.overlap(own) if placed else None
    return found.moved(_minus(own.offset)) if found else None


def raw_of(source: Source) -> Hashable:
    """What tells a source's raw from that of others: formats, revisions and checksums do not."""
    if (file := source.raw) is None:
        return source.phantom
    hub = file.huggingface and (file.huggingface.repo, file.huggingface.repo_type, file.huggingface.file)
    return file.path, file.url, hub, file.drive, file.member, file.indices, file.dataset


def _minus(offset: Coordinate) -> Coordinate:
    z, y, x = offset
    return -z, -y, -x
