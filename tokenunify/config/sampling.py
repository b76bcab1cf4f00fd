"""The sampled regions of all corpora as volumes of their own, which download and ingest treat like any other."""

from collections.abc import Iterator
from typing import NamedTuple

from tokenunify.config import exclusion
from tokenunify.config.file import Sections
from tokenunify.config.pretraining import Corpus
from tokenunify.config.sources import Source
from tokenunify.config.volumes import Volume
from tokenunify.geometry import Coordinate, Roi


class SampledRegion(NamedTuple):
    """A region of a volume that lies at the first of its places that is not blank."""

    volume: str
    shape: Coordinate
    places: tuple[Coordinate, ...]
    """First voxels, in the source's voxels."""
    max_blank: float


def sampled(config: Sections) -> dict[str, SampledRegion]:
    """All sampled regions by the name of their volume; where two corpora share a name, they share the region."""
    return {name: region for corpus in config.corpora.values() for name, region in regions_of(config, corpus)}


def regions_of(config: Sections, corpus: Corpus) -> Iterator[tuple[str, SampledRegion]]:
    """The sampled regions of a corpus, with their names."""
    for member in corpus.members:
        if member.sample is None:
            continue
        shape, first = member.sample.shape, exclusion.extent(config.volumes[member.volume]).offset
        for name, places in zip(member.names, exclusion.drawn(config, corpus, member), strict=True):
            offsets = tuple(Roi(place, shape).moved(first).offset for place in places)
            yield name, SampledRegion(member.volume, shape, offsets, member.sample.max_blank)


def as_volume(volume: Volume) -> Volume:
    """A sampled region of a volume as a volume of its own: raw alone; the download finds its place and checksum."""
    sources = tuple(
        Source(raw=source.raw.model_copy(update={"sha256": None})) for source in volume.sources if source.raw
    )
    return volume.model_copy(update={"sources": sources, "roi": None})
