"""What the tables and the report are told: the row of a run, and the rights in its data."""

from collections.abc import Sequence

from tokenunify.config import exclusion
from tokenunify.plan.runs import Run, Runs
from tokenunify.stages import sections


def row(plan: Runs, run: Run) -> sections.Row:
    """A run's row, as far as the configuration knows it, and whether its pre-training saw the volume's raw."""
    model = plan.config.models.get(run.model)
    network, start = (model.network.name, model.start) if model else ("none", "none")
    method = plan.segmentations[run.segmentation].method
    if start == "published":
        seen = None  # nobody knows what published weights have seen
    else:
        seen = start != "none" and exclusion.shows(plan.config, plan.corpus(start), run.volume)
    known = {"network": network, "method": method, "pretraining": start}
    return sections.Row(**vars(run), **known, test_raw_in_pretraining=seen)


def segmentation(plan: Runs, run: Run) -> sections.Segmentation:
    """A run's row in the table of segmentations."""
    known = {key: value for key, value in vars(run).items() if key != "split"}
    method, fragments = plan.segmentations[run.segmentation].method, plan.fragments_name(run.segmentation)
    return sections.Segmentation(**known, method=method, fragments=fragments)


def rights(plan: Runs, runs: Sequence[Run]) -> tuple[sections.Rights, ...]:
    """Licence, terms and citation of all volumes that are scored, train, choose or pre-train; equal ones together."""
    pretrainings = {found for run in runs if (found := plan.pretraining_of(run.model))}
    cited = {run.volume for run in runs}
    cited |= {member.volume for name in pretrainings for member in plan.corpus(name).members}
    for dataset in (plan.config.datasets[name] for name in {run.dataset for run in runs}):
        cited |= {*dataset.validation, *(trained.volume for trained in dataset.train)}
    together: dict[str, sections.Rights] = {}  # a command must be short
    for name, volume in plan.config.volumes.items():
        given = {"license": volume.license, "terms": volume.terms, "citation": volume.citation}
        if name in cited and any(given.values()):
            key = sections.Rights(volumes=(), **given).model_dump_json()
            others = together[key].volumes if key in together else ()
            together[key] = sections.Rights(volumes=(*others, name), **given)
    return tuple(together.values())
