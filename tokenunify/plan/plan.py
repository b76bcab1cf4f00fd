"""What the workflow asks of the configuration: who is evaluated on which volume, and each job's --config-json."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

from tokenunify import config as c
from tokenunify import layout
from tokenunify.config import BASELINE, Config, exclusion, sampling
from tokenunify.errors import InputError
from tokenunify.geometry import Coordinate
from tokenunify.plan import downloaded, report_rows
from tokenunify.stages import sections
from tokenunify.store import manifest

Named = TypeVar("Named")


@dataclass(frozen=True)
class Run:
    """One row of a metrics table: a model's seed, segmented one way, on one volume."""

    volume: str
    dataset: str
    split: str
    model: str
    seed: int
    segmentation: str


class Plan:
    """The configuration seen from the rules; every method is a pure function of it."""

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

    @property
    def test_volumes(self) -> list[str]:
        """The volumes that the report shows: every test volume of a dataset with models."""
        return list(dict.fromkeys(v for name, d in self.config.datasets.items() if self._models(name) for v in d.test))

    def shown_volumes(self) -> list[str]:
        """The volumes that the report shows; InputError where there are none, as it would be empty."""
        if self.test_volumes:
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

    def dataset(self, model: str) -> c.Dataset:
        """The data set that trains and tests a model."""
        return self.config.datasets[self.model(model).dataset]

    def model(self, name: str) -> c.Model:
        """A model by name; InputError names the known ones."""
        return _named("model", name, self.config.models)

    @cached_property
    def _sampled(self) -> dict[str, sampling.SampledRegion]:
        return sampling.sampled(self.config)

    def volume(self, name: str) -> c.Volume:
        """A volume, or a sampled region of one, by name; InputError names the known volumes."""
        if name in self._sampled:
            return sampling.as_volume(self.config.volumes[self._sampled[name].volume])
        return _named("volume", name, self.config.volumes)

    def shape(self, volume: str) -> Coordinate | None:
        """A volume's shape; None where only its file tells."""
        if volume in self._sampled:
            return self._sampled[volume].shape
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

    def _pretraining(self, name: str) -> c.Pretraining:
        return _named("pretraining", name, self.config.pretrainings)

    def corpus(self, pretraining: str) -> c.Corpus:
        """The corpus of a pre-training."""
        return self.config.corpora[self._pretraining(pretraining).corpus]

    def download(self, volume: str) -> str:
        """The section with which the volume's download was made, if that still answers the configuration."""
        v, region = self.volume(volume), self._sampled.get(volume)
        box = {"voxel_size_nm": v.voxel_size_nm, "roi": v.roi} if v.has_boxes else {}
        sample = region and sections.Sample(shape=region.shape, places=region.places, max_blank=region.max_blank)
        rights = {"terms": v.terms, "license": v.license, "citation": v.citation}
        section = sections.Download(sources=v.sources, **rights, **box, sample=sample)
        return downloaded.still_asked(layout.output("download").format(volume=volume), section)

    @property
    def download_permit(self) -> str:
        """Limits and accepted licences of downloads as JSON; they decide no result."""
        limits = self.config.download.model_dump(mode="json")
        return sections.Permit(**limits, accept_licenses=self.config.accept_licenses).model_dump_json()

    def download_weights(self, model: str) -> str:
        source, output = self.model(model).weights, layout.output("download_weights").format(model=model)
        if source is None:
            raise InputError(f"{output}: models.{model} has no published weights; add models.{model}.weights")
        return downloaded.still_asked(output, sections.Download(sources=(source,)))

    def ingest(self, volume: str) -> str:
        v, storage = self.volume(volume), self.config.storage
        section = sections.Ingest(
            voxel_size_nm=v.voxel_size_nm,
            roi=v.roi,
            zero=v.zero,
            chunk_shape=storage.chunk_shape,
            shard_shape=v.shard_shape or storage.shard_shape,
            intensity=v.intensity,
            label_ids=v.label_ids,
            stated_voxel_size=v.stated_voxel_size,
        )
        return sections.to_json("ingest", section)

    def pretrain(self, pretraining: str) -> str:
        p, corpus = self._pretraining(pretraining), self.corpus(pretraining)
        datasets = []
        for members in corpus.datasets.values():
            regions = []
            for member in members:
                if member.sample:
                    regions += [sections.Region(volume=name, box=None, avoid=()) for name in member.names]
                    continue
                avoided = exclusion.avoided(self.config, corpus, member.volume)
                avoid = tuple(c.RoiConfig(offset=box.offset, shape=box.shape) for box in avoided)
                boxes = member.regions or (None,)
                regions += [sections.Region(volume=member.volume, box=box, avoid=avoid) for box in boxes]
            datasets.append(tuple(regions))
        given = {key: value for key, value in p if key != "corpus"}
        return sections.to_json("pretrain", sections.Pretrain(**given, datasets=tuple(datasets)))

    def finetune(self, model: str) -> str:
        m = self.model(model)
        section = sections.Finetune(
            **dict(m.finetune),
            **{key: getattr(m, key) for key in ("network", "start", "transfer", "train")},
            sections=tuple(t.sections for t in self.dataset(model).train),
            lora=m.lora if m.train == "lora" else None,
        )
        return sections.to_json("finetune", section)

    def predict(self, model: str) -> str:
        m = self.model(model)
        crop = m.predict.crop or m.finetune.crop
        stride = m.predict.stride or tuple(max(1, n // 2) for n in m.network.output_extent(crop))
        given = {**dict(m.predict), "crop": crop, "stride": stride}
        offsets = m.finetune.offsets if any(map(_is_lifted, self.config.segmentations.values())) else c.NEAREST
        return sections.to_json("predict", sections.Predict(**given, offsets=offsets, **self._grid()))

    def baseline(self) -> str:
        assert self.config.evaluation.baseline is not None
        section = sections.Baseline(sigma_nm=self.config.evaluation.baseline.sigma_nm, **self._grid())
        return sections.to_json("baseline", section)

    def fragments(self, name: str) -> str:
        segmentation = next(s for s in self.segmentations if self.fragments_name(s) == name)
        settings = self.segmentations[segmentation].fragments
        grid = self._grid()
        grid["block_shape"] = settings.block_shape or grid["block_shape"]
        return sections.to_json("fragments", sections.Fragments(**{**dict(settings), **grid}))

    def rag(self, fragments: str) -> str:
        users = [s for name, s in self.segmentations.items() if self.fragments_name(name) == fragments]
        section = sections.Rag(
            block_shape=self.config.storage.block_shape,
            histograms=any(isinstance(s, c.Waterz) and s.score.startswith("hist") for s in users),
            lifted=any(map(_is_lifted, users)),
        )
        return sections.to_json("rag", section)

    def tune(self, segmentation: str) -> str:
        evaluation = self.config.evaluation
        section = sections.Tune(
            segmentation=self._without_fragments(segmentation),
            erode_labels=evaluation.erode_labels,
            ignore_label=evaluation.ignore_label,
        )
        return sections.to_json("tune", section)

    def agglomerate(self, segmentation: str) -> str:
        return sections.to_json("agglomerate", sections.Agglomerate(segmentation=self._without_fragments(segmentation)))

    def relabel(self) -> str:
        return sections.to_json("relabel", sections.Relabel(**self._grid()))

    def evaluate(self) -> str:
        evaluation = self.config.evaluation
        section = sections.Evaluate(
            block_shape=self.config.storage.block_shape,
            erode_labels=evaluation.erode_labels,
            ignore_label=evaluation.ignore_label,
            skeleton_spacing_nm=evaluation.skeleton_spacing_nm,
        )
        return sections.to_json("evaluate", section)

    def blockings(self, segmentation: str) -> str:
        settings, shapes = self.segmentations[segmentation], self.config.evaluation.blockings
        section = sections.Blockings(segmentation=settings, block_shapes=shapes, **self._grid())
        return sections.to_json("blockings", section)

    def metrics(self, volume: str) -> str:
        rows = tuple(report_rows.row(self, run) for run in self.runs(volume))
        return sections.to_json("metrics", sections.Metrics(rows=rows))

    def report(self) -> str:
        runs = [run for volume in self.test_volumes for run in self.runs(volume)]
        section = sections.Report(title=", ".join(self.test_volumes), rights=report_rows.rights(self, runs))
        return sections.to_json("report", section)

    def _grid(self) -> dict[str, Coordinate]:
        storage = self.config.storage
        return {key: getattr(storage, key) for key in ("chunk_shape", "shard_shape", "block_shape")}

    def _without_fragments(self, segmentation: str) -> c.Waterz | c.Multicut:
        settings = self.segmentations[segmentation]
        return settings.model_copy(update={"fragments": c.Fragments()})


def _is_lifted(segmentation: c.Waterz | c.Multicut) -> bool:
    return isinstance(segmentation, c.Multicut) and segmentation.lifted


def _named(kind: str, name: str, known: Mapping[str, Named]) -> Named:
    if name not in known:
        raise InputError(
            f"unknown {kind} {name!r}, the configuration has {', '.join(sorted(known))}; correct the name or add it"
        )
    return known[name]
