"""The manifests behind a row of scores, which the report reads."""

from tokenunify import layout
from tokenunify.config import StageName
from tokenunify.layout import BASELINE
from tokenunify.plan.plan import Plan, Run


def of_row(plan: Plan, run: Run) -> list[str]:
    """Paths of the manifests of all stages that made a row of metrics.csv, its volumes' first."""
    dataset, pretraining = plan.config.datasets[run.dataset], plan.pretraining_of(run.model)
    corpus = plan.corpus_volumes(pretraining) if pretraining else []
    volumes = [run.volume, *(t.volume for t in dataset.train), *dataset.validation, *corpus]

    affinities: StageName = "baseline" if run.model == BASELINE else "predict"
    stages: tuple[StageName, ...] = (affinities, "fragments", "rag", "relabel")
    is_made = {
        "agglomerate": True,
        "evaluate": True,
        "blockings": bool(plan.config.evaluation.blockings),
        "pretrain": pretraining is not None,
        "finetune": run.model != BASELINE,
        "tune": plan.is_tuned(run.segmentation),
    }
    templates = [
        *(layout.prepared(stage) for stage in (affinities, "fragments", "relabel")),
        *(path for stage in stages for path in layout.parts(stage, plan.config.stage_resources(stage).parts)),
        *(layout.output(stage) for stage in is_made if is_made[stage]),
    ]
    fill = {**vars(run), "fragments": plan.fragments_name(run.segmentation), "pretraining": pretraining}
    ingested = (layout.output("ingest").format(volume=name) for name in volumes)
    return [*ingested, *(template.format(**fill) for template in templates)]


def of_table(plan: Plan, volumes: list[str]) -> list[str]:
    """Paths of the manifests behind all rows of some volumes' tables, each once."""
    rows = (run for volume in volumes for run in plan.runs(volume))
    return list(dict.fromkeys(path for run in rows for path in of_row(plan, run)))
