"""The manifests behind a row of scores, which the report reads."""

from tokenunify import layout
from tokenunify.config import StageName
from tokenunify.layout import BASELINE
from tokenunify.plan.plan import Plan, Run


def of_row(plan: Plan, run: Run) -> list[str]:
    """Paths of the manifests of all stages that made a row of metrics.csv, its volumes' first."""
    pretraining = plan.pretraining_of(run.model)
    fill = {**vars(run), "fragments": plan.fragments_name(run.segmentation), "pretraining": pretraining}
    templates = [*_blockwise(plan, run), *_of_segmentation(plan, run), *_trainings(plan, run)]
    volumes = (layout.output("ingest").format(volume=name) for name in _volumes(plan, run))
    return [*volumes, *(template.format(**fill) for template in templates)]


def of_table(plan: Plan, volumes: list[str]) -> list[str]:
    """The same of all rows of some volumes' tables, each path once."""
    rows = (run for volume in volumes for run in plan.runs(volume))
    return list(dict.fromkeys(path for run in rows for path in of_row(plan, run)))


def _volumes(plan: Plan, run: Run) -> list[str]:
    dataset, pretraining = plan.config.datasets[run.dataset], plan.pretraining_of(run.model)
    corpus = plan.corpus_volumes(pretraining) if pretraining else []
    return [run.volume, *(t.volume for t in dataset.train), *dataset.validation, *corpus]


def _trainings(plan: Plan, run: Run) -> list[str]:
    made = {
        "pretrain": plan.pretraining_of(run.model) is not None,
        "finetune": run.model != BASELINE,
        "tune": plan.is_tuned(run.segmentation),
    }
    return [layout.output(stage) for stage, is_made in made.items() if is_made]


def _blockwise(plan: Plan, run: Run) -> list[str]:
    affinities: StageName = "baseline" if run.model == BASELINE else "predict"
    stores = [layout.prepared(stage) for stage in (affinities, "fragments", "relabel")]
    stages: tuple[StageName, ...] = (affinities, "fragments", "rag", "relabel")
    return [*stores, *(path for s in stages for path in layout.parts(s, plan.config.stage_resources(s).parts))]


def _of_segmentation(plan: Plan, run: Run) -> list[str]:
    compared = ["blockings"] if plan.config.evaluation.blockings else []
    return [layout.output(stage) for stage in ("agglomerate", "evaluate", *compared)]
