"""Stage metrics: one table of a volume's scores, a row per model, seed and segmentation."""

import os
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

import tokenunify
from tokenunify.config import BASELINE
from tokenunify.errors import InputError
from tokenunify.stages.sections import Metrics, Row
from tokenunify.store import forms, manifest

COLUMNS = (
    *("volume", "dataset", "split", "model", "network", "parameters", "pretraining", "seed", "segmentation", "method"),
    *(
        "threshold",
        "threshold_source",
        "voi_split",
        "voi_merge",
        "voi",
        "arand",
        "num_segments",
        "num_labels",
        "eroded",
    ),
    *("ignore_label", "crop", "stride", "test_raw_in_pretraining", "commit"),
)
SCORES = ("voi_split", "voi_merge", "voi", "arand")
"""VOI in bits and adapted Rand error: lower is better; written with six decimals."""
SEEN = {True: "yes", False: "no", None: "unknown"}
"""How the column test_raw_in_pretraining is written."""


def run(
    section: Metrics,
    plain: dict,
    *,
    output: Path,
    scores: list[Path],
    luts: list[Path],
    predictions: list[Path],
    weights: list[Path],
) -> None:
    """Write the table; the lists are parallel to the section's rows."""
    lists = {"scores": scores, "luts": luts, "predictions": predictions, "weights": weights}
    lengths = {name: len(paths) for name, paths in lists.items()}
    if set(lengths.values()) != {len(section.rows)}:
        raise InputError(f"metrics needs one path of each list for each of {len(section.rows)} rows, got {lengths}")
    version = commit()
    rows = [row(*given, commit=version) for given in zip(section.rows, *lists.values(), strict=True)]
    manifest.write_text(output, pd.DataFrame(rows, columns=list(COLUMNS)).to_csv(index=False, lineterminator="\n"))


def row(known: Row, scores: Path, lut: Path, prediction: Path, weights: Path, *, commit: str) -> dict:
    """One row as it is written: what the configuration knows of it, and what the manifests say."""
    check_folders(known, scores, lut, prediction)
    found, choice = manifest.content(scores, forms.Scores), manifest.content(lut, forms.Choice)
    predicted = {} if known.model == BASELINE else manifest.content(prediction, forms.Prediction)["config"]
    return {
        **known.model_dump(),
        "parameters": 0 if known.model == BASELINE else manifest.content(weights, forms.Trained)["parameters"],
        "threshold": repr(float(choice["value"])),
        "threshold_source": choice["source"],
        **{name: f"{found[name]:.6f}" for name in SCORES},
        "num_segments": found["num_segments"],
        "num_labels": found["num_labels"],
        "eroded": "yes" if found["erode_labels"] else "no",
        "ignore_label": found["ignore_label"],
        "crop": "x".join(map(str, predicted.get("crop", ()))),
        "stride": "x".join(map(str, predicted.get("stride", ()))),
        "test_raw_in_pretraining": SEEN[known.test_raw_in_pretraining],
        "commit": commit,
    }


def check_folders(known: Row, scores: Path, lut: Path, prediction: Path) -> None:
    """Refuse files of another row: lists in different orders would give a table that looks right and is not."""
    run = (known.volume, known.model, f"seed{known.seed}")
    for path, folder in ((scores, known.segmentation), (lut, known.segmentation), (prediction, "predict")):
        expected = (*run, folder)
        if path.absolute().parts[-5:-1] != expected:
            raise InputError(
                f"metrics: expected a file of {'/'.join(expected)}, got {path}: give the lists in the order of the rows"
            )


def commit() -> str:
    """Short hash of the checkout that holds this package, with -dirty after edits; `unknown` outside git."""
    root = Path(tokenunify.__file__).resolve().parents[1]
    top = _git(root, "rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != root:
        return "unknown"
    head = _git(root, "rev-parse", "--short", "HEAD")
    edits = _git(root, "status", "--porcelain", "--untracked-files=no")
    return "unknown" if head is None else head + ("-dirty" if edits else "")


def _git(root: Path, *words: str) -> str | None:
    # Inside a git hook these variables point to another repository.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    command = ["git", "--no-optional-locks", "-C", str(root), *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


# ------------------------------------------------------------------------------------------------ reading and averaging


@dataclass
class Group:
    """The rows of a table that differ in the seed only."""

    model: str
    segmentation: str
    value: str
    tuned: bool
    seeds: int
    mean: dict[str, float]
    spread: dict[str, float]
    """Standard deviation over the seeds; NaN for one."""
    segments: int
    labels: int
    saw_raw: bool
    """Pre-training had the raw of this volume."""
    best: set[str] = field(default_factory=set)
    """Columns in which no other group is better."""

    @property
    def baseline(self) -> bool:
        """Whether this is the baseline without a network."""
        return self.model == BASELINE


@dataclass
class Table:
    """The scores of one volume in one role."""

    volume: str
    dataset: str
    split: str
    eroded: str
    ignore_label: int
    groups: list[Group]

    @property
    def headline(self) -> str:
        """The lowest VOI, and the baseline's."""
        best = min(self.groups, key=lambda group: group.mean["voi"])
        text = f"Lowest VOI {best.mean['voi']:.3f} bits: {best.model}, {best.segmentation}"
        others = [group.mean["voi"] for group in self.groups if group.baseline]
        return text + (
            f" (baseline without a network: {min(others):.3f} bits)." if others and not best.baseline else "."
        )


def read(path: Path) -> pd.DataFrame:
    """A metrics.csv; one with other columns is refused."""
    try:
        table = pd.read_csv(path, keep_default_na=False, dtype={"ignore_label": str})  # may not fit into a float
    except (OSError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise InputError(f"{path} cannot be read ({error}): make it with `snakemake {path}`") from None
    if list(table.columns) != list(COLUMNS):
        raise InputError(f"{path} has the columns {list(table.columns)}, expected {list(COLUMNS)}: make it again")
    return table


def summary(rows: pd.DataFrame) -> Table:
    """The rows of one volume, averaged over seeds, with the best of each column marked."""
    groups = []
    for _, part in rows.groupby(["model", "segmentation"], sort=False):
        first = part.iloc[0]
        symbol = "β" if first["method"] == "multicut" else "threshold"
        groups.append(
            Group(
                model=first["model"],
                segmentation=first["segmentation"],
                value=f"{symbol} {', '.join(f'{value:g}' for value in dict.fromkeys(part['threshold']))}",
                tuned=first["threshold_source"] == "validation",
                seeds=len(part),
                mean=part[list(SCORES)].mean().to_dict(),
                spread=part[list(SCORES)].std().to_dict(),
                segments=round(part["num_segments"].mean()),
                labels=int(first["num_labels"]),
                saw_raw=first["test_raw_in_pretraining"] == SEEN[True],
            )
        )
    for column in SCORES:
        lowest = min(round(group.mean[column], 3) for group in groups)
        for group in groups:
            if round(group.mean[column], 3) == lowest and len(groups) > 1:
                group.best.add(column)
    first = rows.iloc[0]
    eroded, ignored = str(first["eroded"]), int(first["ignore_label"])
    return Table(first["volume"], first["dataset"], first["split"], eroded, ignored, groups)
