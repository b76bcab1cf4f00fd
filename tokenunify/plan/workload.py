"""The jobs behind a table of scores, stage by stage, as Snakemake would plan them in a fresh folder, and their voxels.

Jobs of seconds that run beside Snakemake (the stores' preparation, tables, the report) are left out.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from math import ceil, prod

from tokenunify import config as c
from tokenunify.config import BASELINE, NEAREST
from tokenunify.geometry import Blocks, Coordinate, crop_starts
from tokenunify.plan.plan import Plan
from tokenunify.plan.runs import Run

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

    def tasks(self, volume: str, table: str = "metrics") -> list[Task]:
        """Everything that a table of the volume needs, `metrics` or `segmentations`, the trainings included."""
        plan, is_scored = self.plan, table == "metrics"
        runs = plan.runs(volume) if is_scored else plan.segmented(volume)
        tuned = [run for run in runs if plan.is_tuned(run.segmentation)]
        chosen_on = {run: plan.validation_volumes(run.model, run.segmentation) for run in tuned}
        segmented = [*runs, *(replace(run, volume=name) for run in tuned for name in chosen_on[run])]
        models = list(dict.fromkeys(run.model for run in runs if run.model != BASELINE))
        read = [run.volume for run in segmented]
        for dataset, pretraining in ((plan.dataset(model), plan.pretraining_of(model)) for model in models):
            read += [*(t.volume for t in dataset.train), *dataset.validation]
            read += plan.corpus_volumes(pretraining) if pretraining else []

        tasks: list[Task] = []
        for name in dict.fromkeys(read):
            voxels = prod(self.shape_of(name))
            generated = plan.volume(name).sources[0].phantom is not None
            tasks += [Task("download", "", voxels), Task("ingest", "phantom" if generated else "", voxels)]
        tasks += [Task("download", "weights", 0) for model in models if plan.model(model).weights is not None]
        tasks += self._networks(runs, segmented)
        graphs = {(r.volume, r.model, r.seed, plan.fragments_name(r.segmentation)): r.segmentation for r in segmented}
        for (name, *_), segmentation in graphs.items():
            settings = plan.segmentations[segmentation].fragments
            tasks += [
                self._blockwise("fragments", f"{settings.dimensions}d", name, settings.block_shape),
                self._blockwise("rag", f"{settings.dimensions}d", name),
            ]
        tasks += [self._whole("tune", run, chosen_on[run]) for run in tuned]
        for run in runs:
            dimensions = plan.segmentations[run.segmentation].fragments.dimensions
            tasks += [
                self._whole("agglomerate", run, [volume]),
                self._blockwise("relabel", f"{dimensions}d", volume),
            ]
            tasks += [replace(self._blockwise("evaluate", "", volume), jobs=1)] if is_scored else []
        return tasks

    def _networks(self, runs: list[Run], segmented: list[Run]) -> list[Task]:
        """The trainings behind some runs, and the affinities of all that is segmented."""
        tasks: list[Task] = []
        trained = dict.fromkeys((run.model, run.seed) for run in runs if run.model != BASELINE)
        starts = dict.fromkeys((self.plan.pretraining_of(model), seed) for model, seed in trained)
        for name in (name for name, _ in starts if name is not None):
            p = self.plan.config.pretrainings[name]
            crops = Crops(p.network, NEAREST, p.crop, 0, p.steps * p.batch_size, ceil(p.batch_size / p.accumulate))
            tasks.append(Task("pretrain", name, crops.trained * prod(p.crop), crops=crops))
        for model, _ in trained:
            m, f = self.plan.model(model), self.plan.model(model).finetune
            validated = f.steps // f.validate_every * f.validation_crops
            at_once = ceil(f.batch_size / f.accumulate)
            crops = Crops(m.network, f.offsets, f.crop, validated, f.steps * f.batch_size, at_once)
            tasks.append(Task("finetune", model, crops.trained * prod(f.crop), crops=crops))
        for volume, model, _ in dict.fromkeys((run.volume, run.model, run.seed) for run in segmented):
            if model == BASELINE:
                tasks.append(self._blockwise("baseline", "", volume))
                continue
            m, section = self.plan.model(model), json.loads(self.plan.predict(model))
            output = m.network.output_extent(section["crop"])
            along = zip(self.shape_of(volume), section["padding"], output, section["stride"], strict=True)
            number = prod(len(crop_starts(n, padding=p, crop=o, stride=s)) for n, p, o, s in along)
            number *= 8 if section["flips"] else 1
            crops = Crops(m.network, m.finetune.offsets, tuple(section["crop"]), number, at_once=section["batch_size"])
            stored = len(section.get("offsets", NEAREST)) / len(NEAREST)
            predicted = self._blockwise("predict", model, volume)
            tasks.append(replace(predicted, crops=crops, relative_bytes=stored))
        return tasks

    def _whole(self, stage: c.StageName, run: Run, volumes: Iterable[str]) -> Task:
        settings = self.plan.segmentations[run.segmentation]
        voxels = sum(prod(self.shape_of(volume)) for volume in volumes)
        return Task(stage, f"{settings.method}-{settings.fragments.dimensions}d", voxels)

    def _blockwise(self, stage: c.StageName, detail: str, volume: str, block: Coordinate | None = None) -> Task:
        shape = self.shape_of(volume)
        blocks = Blocks(shape, block or self.plan.config.storage.block_shape)
        jobs = self.plan.config.stage_resources(stage).parts
        return Task(stage, detail, prod(shape), jobs, len(blocks), prod(blocks.roi(0).shape))
