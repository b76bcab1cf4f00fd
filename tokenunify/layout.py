"""Where every artefact of the workflow lies, as templates with wildcards in braces; `locate` is their inverse."""

import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

from tokenunify.errors import InputError

BASELINE = "raw-watershed"
"""In place of a model: smoothed raw stands for its affinities."""
DOWNLOADS = "data/downloads"
"""Folder of the files that were fetched, and of the manifests that list them."""
TRAINING = "models/{model}/seed{seed}"
PRETRAINING = "models/pretrain/{pretraining}/seed{seed}"
RUN = "results/{volume}/{model}/seed{seed}"
SEGMENTATION = f"{RUN}/{{segmentation}}"

OUTPUTS = {
    "download": f"{DOWNLOADS}/{{volume}}.json",
    "download_weights": "data/weights/{model}.json",
    "ingest": "data/volumes/{volume}.json",
    "pretrain": f"{PRETRAINING}/weights.json",
    "finetune": f"{TRAINING}/weights.json",
    "tune": f"{TRAINING}/tune/{{segmentation}}.json",
    "agglomerate": f"{SEGMENTATION}/agglomerate.json",
    "evaluate": f"{SEGMENTATION}/scores.json",
    "blockings": f"{SEGMENTATION}/blockings.json",
    "metrics": "results/{volume}/metrics.csv",
    "segmentations": "results/{volume}/segmentations.csv",
    "report": "results/report.html",
}
"""What a stage's single job writes last: its manifest, table or page."""
FOLDERS = {
    "baseline": f"results/{{volume}}/{BASELINE}/seed0/predict",
    "predict": f"{RUN}/predict",
    "fragments": f"{RUN}/fragments/{{fragments}}",
    "rag": f"{RUN}/rag/{{fragments}}",
    "relabel": f"{SEGMENTATION}/relabel",
}
"""Folder of a block-wise stage: `prepared.json` where it has a store, a manifest per part, and the stores."""
PREPARED = "prepared.json"
PART = "part{part}of{parts}.json"
NUMBERS = ("seed", "part", "parts")
"""Wildcards that stand for digits."""
RESERVED = {"model": (BASELINE, "pretrain"), "segmentation": (BASELINE, "predict", "fragments", "rag")}
"""Folders that stand where others have the wildcard: no name may be one of them."""


class Located(NamedTuple):
    """What a path is."""

    stage: str
    names: dict[str, str]
    """Wildcard -> what stands for it."""


def output(stage: str) -> str:
    """Template of what the stage's job writes last."""
    return OUTPUTS[stage]


def prepared(stage: str) -> str:
    """Template of the manifest of a block-wise stage's store."""
    return f"{FOLDERS[stage]}/{PREPARED}"


def part(stage: str) -> str:
    """Template of the manifest of one part of a block-wise stage."""
    return f"{FOLDERS[stage]}/{PART}"


def parts(stage: str, number: int) -> list[str]:
    """Templates of the manifests of all parts."""
    names = (PART.format(part=part, parts=number) for part in range(number))
    return [f"{FOLDERS[stage]}/{name}" for name in names]


def all_parts(path: Path) -> list[Path]:
    """The manifests of all parts, from that of one; for any other path, the path alone."""
    found = _pattern(PART).fullmatch(path.name)
    number = int(found["parts"]) if found else 0
    return [path.with_name(PART.format(part=part, parts=number)) for part in range(number)] or [path]


def is_later_part(path: str) -> bool:
    """Whether it is the manifest of a part other than the first."""
    found = _pattern(PART).fullmatch(Path(path).name)
    return found is not None and int(found["part"]) > 0


def locate(path: Path) -> Located:
    """The stage that writes a path, and the names in it; InputError for a path that no stage writes."""
    text = path.absolute().as_posix()
    blockwise = [(stage, template(stage)) for stage in FOLDERS for template in (prepared, part)]
    for stage, template in [*blockwise, *OUTPUTS.items()]:
        if found := re.search(f"/{_pattern(template).pattern}$", text):
            return Located(stage, found.groupdict())
    raise InputError(f"{path} is not the manifest of a stage; give manifests in the folders the workflow uses")


@cache
def _pattern(template: str) -> re.Pattern:
    """The template as a regular expression with a group for each wildcard."""
    names = re.sub(
        r"\\\{(\w+)\\\}",
        lambda found: f"(?P<{found[1]}>{r'[0-9]+' if found[1] in NUMBERS else '[^/]+'})",
        re.escape(template),
    )
    return re.compile(names)
