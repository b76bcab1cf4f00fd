"""Who segments which volume: the rows of every table, and the parts of the configuration by their names."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

from tokenunify import config as c
from tokenunify import layout
from tokenunify.config import BASELINE, Config, sampling
from tokenunify.errors import InputError
from tokenunify.geometry import Coordinate
from tokenunify.store import manifest

Named = TypeVar("Named")


@dataclass(frozen=True)
class Run:
    """One row of a table: a model's seed, segmented one way, on one volume."""

    volume: str
    dataset: str
    split: str
    model: str
    seed: int
    segmentation: str


class Runs:
    """The configuration's names, and what is run for each table; every method is a pure function of it."""

    def __init__(self, config: Config):
        self.config = config

    @cached_property
    def segmentations(self) -> dict[str, c.Waterz | c.Multicut]:
        """Segmentations by folder name: the configured ones, and the baseline's, tuned per dataset."""
        baseline = self.config.evaluation.baseline
        tuned = {f"{BASELINE}-{d}": baseline.segmentation for d in self.config.datasets} if baseline else {}
        return {**self.config.segmentations, **tuned}

    def runs(self, volume: str) -> list[Run]:
        """The rows of a volume's table, in the order of the configuration, the baseline last.

        Raises InputError, with the names of the volumes that have a table, for any other.
        """
        if found := self._runs(volume):
            return found
        known = ", ".join(sorted(v for v in self.config.volumes if self._runs(v))) or "none"
        raise InputError(
            f"{layout.output('metrics').format(volume=volume)}: no model is evaluated on volume {volume!r}; "
            f"volumes with a table: {known}. "
            "Correct the name, or list the volume as a validation or test volume of a dataset with models"
        )

    def segmented(self, volume: str) -> list[Run]:
        """The rows of a volume's table of segmentations: what is scored, and what is applied to it.

        Raises InputError, with the names of the volumes that have such a table, for any other.
        """
        rows: dict[tuple[str, int, str], Run] = {}
        for run in [*self._runs(volume), *self.applied(volume)]:
            rows.setdefault((run.model, run.seed, run.segmentation), run)
        if rows:
            return list(rows.values())
        known = ", ".join(sorted(v for v in self.config.volumes if self._runs(v) or self.applied(v))) or "none"
        raise InputError(
            f"{layout.output('segmentations').format(volume=volume)}: no model segments volume {volume!r}; "
            f"volumes with a table: {known}. Correct the name, or list the volume under apply of a dataset with models"
        )

    @property
    def applied_volumes(self) -> list[str]:
        """The volumes that models are applied to; those of a dataset without models are left out."""
        listed = dict.fromkeys(a.volume for dataset in self.config.datasets.values() for a in dataset.apply)
        return [volume for volume in listed if self.applied(volume)]

    @property
    def test_volumes(self) -> list[str]:
        """The volumes that the report shows: every test volume of a dataset with models."""
        return list(dict.fromkeys(v for name, d in self.config.datasets.items() if self._models(name) for v in d.test))

    def shown_volumes(self) -> list[str]:
        """The volumes whose scores the report shows; InputError where it would be empty."""
        if self.test_volumes or self.applied_volumes:
            return self.test_volumes
        raise InputError(
            f"{layout.output('report')}: no model is tested on any volume, so there is nothing to report; add models, "
            "segmentations, and a dataset with test volumes, or ask for "
            f"{layout.output('ingest').format(volume='VOLUME')}"
        )

    def validation_volumes(self, model: str, segmentation: str) -> tuple[str, ...]:
        """The volumes that choose a tuned value."""
        if model == BASELINE:
            return self.config.datasets[segmentation.removeprefix(f"{BASELINE}-")].validation
        return self.dataset(model).validation

    def _runs(self, volume: str) -> list[Run]:
        return [
            Run(volume, name, split, model, seed, segmentation)
            for name, dataset in self.config.datasets.items()
            for split in ("validation", "test")
            if volume in getattr(dataset, split)
            for model, seeds, segmentations in self._models(name)
            for seed in seeds
            for segmentation in segmentations
        ]

    def applied(self, volume: str) -> list[Run]:
        """The runs that `apply` of the datasets asks for, whether the volume has labels or not."""
        return [
            Run(volume, name, "apply", model, seed, segmentation)
            for name, dataset in self.config.datasets.items()
            for application in dataset.apply
            if application.volume == volume
            for model, described in self.config.models.items()
            if described.dataset == name and (application.models is None or model in application.models)
            for seed in application.seeds or described.seeds[:1]
            for segmentation in self.config.segmentations
        ]

    def dataset(self, model: str) -> c.Dataset:
        """The data set that trains and tests a model."""
        return self.config.datasets[self.model(model).dataset]

    def model(self, name: str) -> c.Model:
        """A model by name; InputError names the known ones."""
        return _named("model", name, self.config.models)

    @cached_property
    def sampled(self) -> dict[str, sampling.SampledRegion]:
        """The sampled regions of all corpora, by the names that they have as volumes."""
        return sampling.sampled(self.config)

    def volume(self, name: str) -> c.Volume:
        """A volume, or a sampled region of one, by name; InputError names the known volumes."""
        if name in self.sampled:
            return sampling.as_volume(self.config.volumes[self.sampled[name].volume])
        return _named("volume", name, self.config.volumes)

    def shape(self, volume: str) -> Coordinate | None:
        """A volume's shape; None where only its file tells."""
        if volume in self.sampled:
            return self.sampled[volume].shape
        v = self.volume(volume)
        box = v.roi or v.sources[0].phantom
        return box.shape if box else None

    def _models(self, dataset: str) -> list[tuple[str, tuple[int, ...], list[str]]]:
        """The models in a dataset's tables, each with its seeds and segmentations; the baseline only beside others."""
        reported = (self.config.evaluation.models or {}).get(dataset)
        models = [
            (name, model.seeds, list(self.config.segmentations))
            for name, model in self.config.models.items()
            if model.dataset == dataset and (reported is None or name in reported)
        ]
        baseline = f"{BASELINE}-{dataset}"
        return [*models, (BASELINE, (0,), [baseline])] if models and baseline in self.segmentations else models

    def fragments_name(self, segmentation: str) -> str:
        """Folder name of a segmentation's fragments: equal settings share it."""
        settings = self.segmentations[segmentation].fragments
        return f"{settings.dimensions}d-{manifest.digest(settings.model_dump(mode='json'))[:8]}"

    def is_tuned(self, segmentation: str) -> bool:
        """Whether the validation volumes choose this segmentation's threshold or beta."""
        return c.is_tuned(self.segmentations[segmentation])

    def pretraining_of(self, model: str) -> str | None:
        """The pre-training that a model starts from."""
        return None if model == BASELINE else self.model(model).pretraining

    def corpus_volumes(self, pretraining: str) -> list[str]:
        """The volumes that a pre-training reads, sampled regions among them."""
        return self.corpus(pretraining).names

    def pretraining(self, name: str) -> c.Pretraining:
        """A pre-training by name; InputError names the known ones."""
        return _named("pretraining", name, self.config.pretrainings)

    def corpus(self, pretraining: str) -> c.Corpus:
        """The corpus of a pre-training."""
        return self.config.corpora[self.pretraining(pretraining).corpus]


def _named(kind: str, name: str, known: Mapping[str, Named]) -> Named:
    if name not in known:
        raise InputError(
            f"unknown {kind} {name!r}, the configuration has {', '.join(sorted(known))}; correct the name or add it"
        )
    return known[name]
