"""Corpora that could only fail later: refused before any job, each with the keys that disagree."""

from tokenunify.config import exclusion, sampling
from tokenunify.config.base import check_known
from tokenunify.config.file import Sections
from tokenunify.config.pretraining import Corpus, CorpusVolume, Sample
from tokenunify.geometry import Coordinate, Roi, free_starts

MANY = 1000
"""Volumes of a corpus: the command that names more may exceed the 128 KiB that Linux takes."""


def check(config: Sections, key: str, corpus: Corpus) -> None:
    """Refuse a corpus of volumes, boxes or samples that cannot be had."""
    if (number := len(corpus.names)) > MANY:
        raise ValueError(
            f"{key} has {number} volumes and sampled regions, expected at most {MANY}; sample fewer and larger regions"
        )
    for box in corpus.exclude:
        check_known(f"{key}.exclude", box.volume, config.volumes)
    for dataset, members in corpus.datasets.items():
        for member in members:
            name, place = member.volume, f"{key}.datasets.{dataset}"
            check_known(place, name, config.volumes)
            unplaced = [cube for cube, box in exclusion.test_cubes(config, name) if box is None]
            by_hand = (exclusion.shared_raw(config, name, box.volume, exclusion.ANY_SIZE) for box in corpus.exclude)
            if unplaced and not corpus.allow_test and not any(by_hand):
                raise ValueError(
                    f"{key}: volume {name} has the raw of test volume {unplaced[0].volume} at a place that is not "
                    f"known ({unplaced[0].reference}); add a box of {name} that surely holds it to {key}.exclude, take "
                    f"{name} out of the corpus, or set allow_test: true in the corpus"
                )
            if member.sample is not None:
                _check_sample(config, place, corpus, member, member.sample)
            whole = exclusion.extent(config.volumes[name]).shape
            for region in member.regions:
                end = list(Roi(region.offset, region.shape).end)
                if any(e > n for e, n in zip(end, whole, strict=True)):
                    raise ValueError(
                        f"{place}: a region must end inside volume {name} of shape {list(whole)}, got an end of {end}; "
                        "correct regions"
                    )
    check_room(config, key, corpus, crop=(1, 1, 1))


def check_names(config: Sections) -> None:
    """Refuse two volumes of one name: a sampled region is a volume, at the same places in all corpora."""
    found: dict[str, tuple[str, sampling.SampledRegion]] = {}
    for key, corpus in config.corpora.items():
        for name, region in sampling.regions_of(config, corpus):
            if name in config.volumes:
                raise ValueError(f"volumes.{name} bears the name of a region that corpora.{key} samples; rename it")
            other, known = found.setdefault(name, (key, region))
            if known != region:
                raise ValueError(
                    f"corpora.{key} samples volume {region.volume} otherwise than corpora.{other}, and {name} cannot "
                    "be at two places; make both equal, or give the volume a second name under volumes and sample that"
                )


def check_room(config: Sections, key: str, corpus: Corpus, crop: Coordinate) -> None:
    """Refuse a region in which no crop lies without touching an excluded box."""
    for dataset, members in corpus.datasets.items():
        for member in members:
            avoid = exclusion.avoided(config, corpus, member.volume)
            regions = exclusion.regions(config, corpus, member)
            for region in regions[:1] if member.sample else regions:  # sampled ones are equal
                if not free_starts(region, crop, avoid):
                    raise ValueError(
                        f"{key}: volume {member.volume} of data set {dataset} has no place for a crop of {list(crop)} "
                        f"in {_box(region)}{_without(avoid)}; take the volume or region out of the corpus, use a "
                        "smaller crop, or set allow_test: true in the corpus"
                    )


def _check_sample(config: Sections, key: str, corpus: Corpus, member: CorpusVolume, sample: Sample) -> None:
    """Refuse a sample that cannot be fetched in part, or for which the volume has too little room."""
    name, volume = member.volume, config.volumes[member.volume]
    if volume.roi is None:
        raise ValueError(f"{key}: a sample of volume {name} needs volumes.{name}.roi, the box to draw from; add it")
    for index, source in enumerate(volume.sources):
        if source.raw is None or not source.raw.is_box:
            raise ValueError(
                f"{key}: a sample of volume {name} needs sources that are fetched in part (zarr, n5, precomputed at a "
                f"url, or partial of hdf5), but volumes.{name}.sources.{index} is not; correct or remove that source"
            )
    found = sum(map(bool, exclusion.drawn(config, corpus, member)))
    if found < sample.number:
        avoid = exclusion.avoided(config, corpus, name)
        raise ValueError(
            f"{key}: volume {name} of shape {list(volume.roi.shape)}{_without(avoid)} has room for {found} regions of "
            f"{list(sample.shape)} side by side, got number {sample.number}; lower number or shape"
        )


def _box(roi: Roi) -> str:
    if roi.shape == exclusion.ANY_SIZE.shape:
        return "the whole volume"
    return f"the box of offset {list(roi.offset)} and shape {list(roi.shape)}"


def _without(avoid: tuple[Roi, ...]) -> str:
    if not avoid:
        return ""
    boxes = ", ".join(map(_box, avoid))
    return f" outside of {boxes}, which exclude, a test cube, or a validation or test volume holds"
