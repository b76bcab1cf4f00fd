"""What a table of scores takes, stage by stage: the jobs that Snakemake would plan in a fresh folder, and their voxels.

Jobs of seconds that run beside Snakemake (the stores' preparation, tables, the report) are left out.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from math import ceil, prod

from tokenunify import config as c
from tokenunify.config import BASELINE, NEAREST
from tokenunify.geometry import Blocks, Coordinate, crop_starts
from tokenunify.plan.plan import Plan, Run

ShapeOf = Callable[[str], Coordinate]


@dataclass(frozen=True)
class Task:
    """The jobs of a stage that share one volume, or one training."""

    stage: c.StageName
    detail: str
    """What else decides the cost: the fragments' dimensions, the method, the model or pre-training, a phantom."""
    voxels: int
    """Voxels of the volume, or of all crops of a training."""
    jobs: int = 1
    blocks: int = 0
    block_voxels: int = 0
    """Voxels of the largest block."""
    crops: "Crops | None" = None
    """What goes through a network."""
    relative_bytes: float = 1.0
    """Written for each voxel, relative to the usual: of affinities, that of the nearest neighbours."""

    @property
    def held_voxels(self) -> int:
        """Voxels that decide a job's memory: a block's, or all whose graph it holds; a file is streamed."""
        return self.block_voxels or (self.voxels if self.stage in ("tune", "agglomerate") else 0)


@dataclass(frozen=True)
class Crops:
    """Crops of one shape that a network sees."""

    network: c.Network
    offsets: tuple[Coordinate, ...]
    shape: Coordinate
    forward: int
    """How many are only predicted."""
    trained: int = 0
    at_once: int = 1
    """Crops in memory together."""


class Workload:
    """The tasks behind a table, from the configuration and the volumes' shapes."""

    def __init__(self, plan: Plan, shape_of: ShapeOf):
        self.plan, self.shape_of = plan, shape_of

    def tasks(self, volume: str) -> list[Task]:
        """Everything that `results/{volume}/metrics.csv` needs, the networks' trainings included."""
        runs = self.plan.runs(volume)
        tuned = [run for run in runs if self.plan.is_tuned(run.segmentation)]
        chosen_on = [replace(run, volume=name) for run in tuned for name in self._validation(run)]
        return [
            *(task for name in self._volumes(runs, chosen_on) for task in self._ingest(name)),
            *(
                Task("download", "weights", 0)
                for model in dict.fromkeys(r.model for r in runs)
                if self._published(model)
            ),
            *self._trainings(runs),
            *self._affinities([*runs, *chosen_on]),
            *self._graphs([*runs, *chosen_on]),
            *(self._whole("tune", run, self._validation(run)) for run in tuned),
            *(task for run in runs for task in self._segmentation(run)),
        ]

    def _validation(self, run: Run) -> tuple[str, ...]:
        return self.plan.validation_volumes(run.model, run.segmentation)

    def _volumes(self, runs: list[Run], chosen_on: list[Run]) -> list[str]:
        names = [run.volume for run in (*runs, *chosen_on)]
        for run in runs:
            if run.model != BASELINE:
                dataset = self.plan.dataset(run.model)
                names += [*(t.volume for t in dataset.train), *dataset.validation]
                pretraining = self.plan.pretraining_of(run.model)
                names += self.plan.corpus_volumes(pretraining) if pretraining else []
        return list(dict.fromkeys(names))

    def _published(self, model: str) -> bool:
        return model != BASELINE and self.plan.model(model).weights is not None

    def _ingest(self, name: str) -> list[Task]:
        voxels = prod(self.shape_of(name))
        generated = self.plan.volume(name).sources[0].phantom is not None
        return [Task("download", "", voxels), Task("ingest", "phantom" if generated else "", voxels)]

    def _trainings(self, runs: list[Run]) -> list[Task]:
        models = dict.fromkeys((run.model, run.seed) for run in runs if run.model != BASELINE)
        starts = dict.fromkeys((self.plan.pretraining_of(model), seed) for model, seed in models)
        return [
            *(self._pretraining(name) for name, _ in starts if name is not None),
            *(self._finetuning(model) for model, _ in models),
        ]

    def _pretraining(self, name: str) -> Task:
        p = self.plan.config.pretrainings[name]
        crops = Crops(p.network, NEAREST, p.crop, 0, p.steps * p.batch_size, ceil(p.batch_size / p.accumulate))
        return Task("pretrain", name, crops.trained * prod(p.crop), crops=crops)

    def _finetuning(self, model: str) -> Task:
        m, f = self.plan.model(model), self.plan.model(model).finetune
        validated = f.steps // f.validate_every * f.validation_crops
        at_once = ceil(f.batch_size / f.accumulate)
        crops = Crops(m.network, f.offsets, f.crop, validated, f.steps * f.batch_size, at_once)
        return Task("finetune", model, crops.trained * prod(f.crop), crops=crops)

    def _affinities(self, runs: list[Run]) -> list[Task]:
        found = dict.fromkeys((run.volume, run.model, run.seed) for run in runs)
        return [
            self._blockwise("baseline", "", volume) if model == BASELINE else self._prediction(volume, model)
            for volume, model, _ in found
        ]

    def _prediction(self, volume: str, model: str) -> Task:
        m, section = self.plan.model(model), json.loads(self.plan.predict(model))
        output = m.network.output_extent(section["crop"])
        along = zip(self.shape_of(volume), section["padding"], output, section["stride"], strict=True)
        number = prod(len(crop_starts(n, padding=p, crop=o, stride=s)) for n, p, o, s in along)
        number *= 8 if section["flips"] else 1
        crops = Crops(m.network, m.finetune.offsets, tuple(section["crop"]), number, at_once=section["batch_size"])
        stored = len(section.get("offsets", NEAREST)) / len(NEAREST)
        return replace(self._blockwise("predict", model, volume), crops=crops, relative_bytes=stored)

    def _graphs(self, runs: list[Run]) -> list[Task]:
        keys = ((r.volume, r.model, r.seed, self.plan.fragments_name(r.segmentation), r.segmentation) for r in runs)
        found = {key[:4]: self.plan.segmentations[key[4]].fragments for key in keys}
        return [
            task
            for (volume, *_), settings in found.items()
            for task in (
                self._blockwise("fragments", f"{settings.dimensions}d", volume, settings.block_shape),
                self._blockwise("rag", f"{settings.dimensions}d", volume),
            )
        ]

    def _segmentation(self, run: Run) -> list[Task]:
        dimensions = self.plan.segmentations[run.segmentation].fragments.dimensions
        return [
            self._whole("agglomerate", run, [run.volume]),
            self._blockwise("relabel", f"{dimensions}d", run.volume),
            replace(self._blockwise("evaluate", "", run.volume), jobs=1),
        ]

    def _whole(self, stage: c.StageName, run: Run, volumes: Iterable[str]) -> Task:
        settings = self.plan.segmentations[run.segmentation]
        voxels = sum(prod(self.shape_of(volume)) for volume in volumes)
        return Task(stage, f"{settings.method}-{settings.fragments.dimensions}d", voxels)

    def _blockwise(self, stage: c.StageName, detail: str, volume: str, block: Coordinate | None = None) -> Task:
        shape = self.shape_of(volume)
        blocks = Blocks(shape, block or self.plan.config.storage.block_shape)
        jobs = self.plan.config.stage_resources(stage).parts
        return Task(stage, detail, prod(shape), jobs, len(blocks), prod(blocks.roi(0).shape))
