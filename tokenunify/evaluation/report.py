"""Stage report: one page, without anything outside it, of scores, pictures, curves, times and sources.

It is made of the tables and of whatever manifests are given; a section whose manifests are not there is left out.
"""

import base64
import re
from collections import defaultdict
from collections.abc import Container, Iterable, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd

import tokenunify
from tokenunify import layout
from tokenunify.config import BASELINE
from tokenunify.errors import InputError
from tokenunify.evaluation import figures, score_table
from tokenunify.evaluation.report_manifests import Made, locate
from tokenunify.evaluation.report_pictures import pictures
from tokenunify.stages.sections import Report, Rights
from tokenunify.stages.table import STAGES
from tokenunify.store import manifest

TEMPLATE = Path(__file__).with_name("report.html.jinja")
WORST = 4
"""Objects of each kind on the page; the manifests of the scores have more."""


def run(
    section: Report,
    plain: dict,
    *,
    output: Path,
    metrics: list[Path],
    segmentations: Sequence[Path] = (),
    manifests: list[Path],
) -> None:
    """Write the page from tables of scores and of segmentations, and from manifests, whose places say what they are.

    The first part of a stage stands for all of its parts.
    """
    if not (metrics or segmentations):
        raise InputError(
            "report needs at least one metrics.csv as --metrics; make one with "
            f"`snakemake {layout.output('metrics').format(volume='VOLUME')}`"
        )
    tables = [score_table.read(path) for path in metrics]
    rows = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=list(score_table.COLUMNS))
    paths = dict.fromkeys(path for given in manifests for path in layout.all_parts(given))
    made = sorted(map(locate, paths), key=lambda m: m.model == BASELINE)
    unscored = dict(zip(rows["volume"], map(int, rows["ignore_label"]), strict=True))
    volumes_shown = list(unscored)
    timed = times(made)
    columns = dict.fromkeys(stage.column for stage in STAGES.values() if stage.column)
    page = {
        "title": section.title,
        "version": tokenunify.__version__,
        "commit": score_table.commit(),
        "commits": sorted(set(rows["commit"])),
        "tables": [score_table.summary(part) for _, part in rows.groupby(["volume", "dataset", "split"], sort=False)],
        "pictures": {volume: list(pictures(volume, made, labels)) for volume, labels in unscored.items()},
        "applied": [applied(path, made, unscored) for path in segmentations],
        "energies": {volume: energies(volume, made) for volume in volumes_shown},
        "worst": {volume: worst_objects(volume, made) for volume in volumes_shown},
        "blockings": {volume: blockings(volume, made) for volume in volumes_shown},
        "files": [str(path) for path in metrics],
        "pretrainings": pretrainings(made),
        "pretraining": pretraining_curves(made),
        "models": models(made),
        "training": training_curves(made),
        "tuning": tuning_curves(made),
        "stages": [column for column in columns if any(column in row["stages"] for row in timed)],
        "times": timed,
        "volumes": volumes(made, section.rights),
    }
    manifest.write_text(output, template().render(page))


def template() -> jinja2.Template:
    """The page's template with the filters that write numbers and pictures."""
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {
        "duration": duration,
        "rate": rate,
        "grouped": grouped,
        "png": lambda data: _uri(data, "image/png"),
    }
    environment.filters["svg"] = lambda data: _uri(data, "image/svg+xml")
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8"))


def _uri(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def duration(seconds: float) -> str:
    """A time with its unit: 8.3 s, 2 min 05 s, 3 h 20 min."""
    if seconds < 99.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"


def grouped(number: int) -> str:
    """A number with its thousands apart."""
    return f"{number:,}".replace(",", " ")


def rate(voxels_per_second: float) -> str:
    """Voxels per second with three digits: 604 voxel/s, 12.4 kvoxel/s, 1.30 Mvoxel/s."""
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if voxels_per_second >= 0.9995 * size:
            value = voxels_per_second / size
            return f"{value:.{max(0, 2 - len(str(int(value))) + 1)}f} {unit}voxel/s"
    return f"{voxels_per_second:.0f} voxel/s"


# ------------------------------------------------------------------------------------------------ scores


def worst_objects(volume: str, made: list[Made]) -> dict | None:
    """The neurons split and the segments that merge, at the highest cost, in the best segmentation; its run length."""
    scored = [(m, m.read["content"]) for m in _of(made, "evaluate") if m.volume == volume and m.model != BASELINE]
    if not scored:
        return None
    best, content = min(scored, key=lambda pair: pair[1]["voi"])
    kinds = [("split", "Neuron", "segment"), ("merge", "Segment", "neuron")]
    rows = [(*kind, error) for kind in kinds for error in content[f"{kind[0]}s"][:WORST]]
    lengths = {key: content.get(key) for key in ("expected_run_length_nm", "run_length_share")}
    return {"model": best.model, "seed": best.seed, "segmentation": best.name, "rows": rows, **lengths}


def energies(volume: str, made: list[Made]) -> dict[tuple[str, str], float]:
    """Energy of the multicut of each model and segmentation that is one, the mean over seeds."""
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    for m in _of(made, "agglomerate"):
        if m.volume == volume and "energy" in (content := m.read["content"]):
            found[m.model, m.name].append(content["energy"])
    return {key: float(np.mean(values)) for key, values in found.items()}


def blockings(volume: str, made: list[Made]) -> list[dict]:
    """Scores between segmentations of fragments in different blocks, a row for each two blockings of a segmentation."""
    mine = [m for m in _of(made, "blockings") if m.volume == volume]
    return [
        {"model": m.model, "seed": m.seed, "segmentation": m.name, **pair}
        for m in mine
        for pair in m.read["content"]["pairs"]
    ]


def applied(path: Path, made: list[Made], shown: Container[str]) -> dict:
    """A table of segmentations, and pictures of its volume where `shown` has none of them."""
    try:
        rows = pd.read_csv(path)
        volume = str(rows["volume"].iloc[0])
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise InputError(f"{path} cannot be read ({error}): make it with `snakemake {path}`") from None
    drawn = [] if volume in shown else list(pictures(volume, made, ignore_label=0))
    return {"volume": volume, "rows": rows.to_dict("records"), "pictures": drawn}


# ------------------------------------------------------------------------------------------------ curves, times, data


def _of(made: Iterable[Made], stage: str) -> list[Made]:
    return [m for m in made if m.stage == stage]


def pretrainings(made: list[Made]) -> list[dict]:
    """What was pre-trained, on which raw, for how long, and the last picture of what it reconstructs."""
    rows = []
    for m in _of(made, "pretrain"):
        content, run = m.read.values()
        picture = m.path.with_name("reconstructions.png")
        named = {"name": m.model, "trained_on": ", ".join(content["inputs"]), "run": run}
        rows.append({**content, **named, "picture": picture.read_bytes() if picture.exists() else None})
    return rows


def pretraining_curves(made: list[Made]) -> bytes | None:
    """Losses of each objective from the log.csv beside each weights.json."""
    runs = _logs(_of(made, "pretrain"))
    return figures.pretraining(runs) if runs else None


def models(made: list[Made]) -> list[dict]:
    """What was trained, on what, for how long."""
    rows = []
    for m in _of(made, "finetune"):
        content, run = m.read.values()
        kept = run["best_step"] if content["finetune"]["checkpoint"] == "best" else 0
        named = {"model": m.model, "kept_step": kept or run["steps"], "trained_on": ", ".join(content["inputs"])}
        rows.append({**content, **named, "run": run})
    return rows


def training_curves(made: list[Made]) -> bytes | None:
    """Losses from the log.csv beside each weights.json."""
    runs = _logs(_of(made, "finetune"))
    return figures.training(runs) if runs else None


def _logs(made: Iterable[Made]) -> list[figures.Training]:
    logs = [(m, m.path.with_name("log.csv")) for m in made]
    return [figures.Training(m.model, m.seed, pd.read_csv(log)) for m, log in logs if log.exists()]


def tuning_curves(made: list[Made]) -> bytes | None:
    """Scores on the validation volumes over the candidates."""
    runs = []
    for m in _of(made, "tune"):
        content = m.read["content"]
        runs.append(figures.Tuning(m.model, m.name, m.seed, content["curve"], content["value"]))
    return figures.tuning(runs) if runs else None


def times(made: list[Made]) -> list[dict]:
    """Seconds and voxels of each stage, per volume and model, added up over parts, seeds and segmentations."""
    sums: dict[tuple[str, str], Any] = defaultdict(lambda: defaultdict(lambda: {"seconds": 0.0, "voxels": 0}))
    for m in made:
        column = STAGES[m.stage].column
        content, run = m.read.values() if column else ({}, {})
        if "seconds" in run:
            total = sums[m.volume or ", ".join(content["volumes"]), m.model][column]
            total["seconds"] += run["seconds"]
            total["voxels"] += run["voxels"]
    return [
        {"volume": volume, "model": model, "baseline": model == BASELINE, "stages": dict(by)}
        for (volume, model), by in sums.items()
    ]


def volumes(made: list[Made], rights: Sequence[Rights]) -> list[dict]:
    """Size, licence, terms and citation of every volume, and the time of its ingest."""
    read = [(m.volume, m.read) for m in _of(made, "ingest")]

    def of(name: str) -> dict:
        names = {name, re.sub(r"-region\d+$", "", name)}
        found = next((r for r in rights if names & set(r.volumes)), Rights(volumes=()))
        return {"license": found.license, "terms": found.terms, "citation": found.citation}

    return [{"name": name, "absent": {}, **parts["content"], **of(name), "run": parts["run"]} for name, parts in read]
