"""The manifests behind the rows of tables, which the tables and the report read."""

from tokenunify import layout
from tokenunify.config import StageName
from tokenunify.layout import BASELINE
from tokenunify.plan.runs import Run, Runs


def of_segmentation(plan: Runs, run: Run) -> list[str]:
    """Paths of the manifests of the stages that segmented the volume, from its affinities on."""
    affinities: StageName = "baseline" if run.model == BASELINE else "predict"
    stages: tuple[StageName, ...] = (affinities, "fragments", "rag", "relabel")
    templates = [
        *(layout.prepared(stage) for stage in (affinities, "fragments", "relabel")),
        *(path for stage in stages for path in layout.parts(stage, plan.config.stage_resources(stage).parts)),
        layout.output("agglomerate"),
    ]
    fill = {**vars(run), "fragments": plan.fragments_name(run.segmentation)}
    return [template.format(**fill) for template in templates]


def of_row(plan: Runs, run: Run) -> list[str]:
    """Paths of the manifests of all stages that made a row of metrics.csv, its volumes' first."""
    dataset, pretraining = plan.config.datasets[run.dataset], plan.pretraining_of(run.model)
    corpus = plan.corpus_volumes(pretraining) if pretraining else []
    volumes = [run.volume, *(t.volume for t in dataset.train), *dataset.validation, *corpus]
    is_made = {
        "evaluate": run.split != "apply",
        "blockings": run.split != "apply" and bool(plan.config.evaluation.blockings),
        "pretrain": pretraining is not None,
        "finetune": run.model != BASELINE,
        "tune": plan.is_tuned(run.segmentation),
    }
    fill = {**vars(run), "pretraining": pretraining}
    others = [layout.output(stage).format(**fill) for stage in is_made if is_made[stage]]
    ingested = (layout.output("ingest").format(volume=name) for name in volumes)
    return [*ingested, *of_segmentation(plan, run), *others]


def of_report(plan: Runs) -> list[str]:
    """Paths of the manifests behind all that the report shows, each once; InputError where it shows nothing."""
    shown = [run for volume in plan.shown_volumes() for run in plan.runs(volume)]
    applied = [run for volume in plan.applied_volumes for run in plan.applied(volume)]
    return list(dict.fromkeys(path for run in [*shown, *applied] for path in of_row(plan, run)))


def of_segmentations(plan: Runs, volume: str) -> list[str]:
    """Paths of the manifests behind all rows of a volume's table of segmentations, each once."""
    return list(dict.fromkeys(path for run in plan.segmented(volume) for path in of_segmentation(plan, run)))
