"""The configuration: typed, frozen, strict; `config/schema.json` is generated from these classes."""

import json
from functools import reduce
from pathlib import Path
from typing import Any, Self

from pydantic import model_validator

from tokenunify.config import checks, text
from tokenunify.config.base import Count, Name, Shape, Strict, VoxelSize, validate
from tokenunify.config.file import Evaluation, Model, Sections, merged
from tokenunify.config.learning import NEAREST, Augment, Finetune, Lora, Optimisation, Predict, RawAugment, Train
from tokenunify.config.machine import STAGE_RESOURCES, Downloads, Resources, StageName, Storage
from tokenunify.config.networks import (
    NETWORKS,
    Architecture,
    EMmamba,
    Mala,
    Network,
    Pea,
    ResUnet,
    Superhuman,
    SymmetricUNet,
    Unetr,
    Vit,
)
from tokenunify.config.pretraining import (
    Corpus,
    CorpusVolume,
    Objective,
    Pretrain,
    Pretraining,
    Relevance,
    Resampler,
    Sample,
)
from tokenunify.config.segmentation import (
    Baseline,
    Fragments,
    Multicut,
    Score,
    Segmentation,
    Solver,
    Tuned,
    Waterz,
    is_tuned,
)
from tokenunify.config.sources import DriveFile, FileSource, HubData, HubFile, Phantom, Source, WeightsSource
from tokenunify.config.volumes import (
    Application,
    Dataset,
    Intensity,
    LabelIds,
    Percentile,
    Rescale,
    RoiConfig,
    StatedVoxelSize,
    Terms,
    TestCube,
    Volume,
)
from tokenunify.layout import BASELINE

__all__ = [
    "BASELINE",
    "NEAREST",
    "NETWORKS",
    "STAGE_RESOURCES",
    "Application",
    "Architecture",
    "Augment",
    "Baseline",
    "Config",
    "Corpus",
    "CorpusVolume",
    "Count",
    "Dataset",
    "Downloads",
    "DriveFile",
    "EMmamba",
    "Evaluation",
    "FileSource",
    "Finetune",
    "Fragments",
    "HubData",
    "HubFile",
    "Intensity",
    "LabelIds",
    "Lora",
    "Mala",
    "Model",
    "Multicut",
    "Name",
    "Network",
    "Objective",
    "Optimisation",
    "Pea",
    "Percentile",
    "Phantom",
    "Predict",
    "Pretrain",
    "Pretraining",
    "RawAugment",
    "Relevance",
    "ResUnet",
    "Resampler",
    "Rescale",
    "Resources",
    "RoiConfig",
    "Sample",
    "Score",
    "Segmentation",
    "Shape",
    "Solver",
    "Source",
    "StageName",
    "StatedVoxelSize",
    "Storage",
    "Strict",
    "Superhuman",
    "SymmetricUNet",
    "Terms",
    "TestCube",
    "Train",
    "Tuned",
    "Unetr",
    "Vit",
    "Volume",
    "VoxelSize",
    "Waterz",
    "WeightsSource",
    "from_dict",
    "is_tuned",
    "load",
    "schema_text",
    "validate",
]


class Config(Sections):
    """The whole configuration file."""

    @model_validator(mode="after")
    def consistent(self) -> Self:
        checks.check(self)
        return self


def load(path: str | Path, *others: str | Path) -> Config:
    """Read and validate a configuration file; keys of `others` replace its keys, as with Snakemake's --configfile.

    Raises InputError naming every wrong key, what was expected and what was found.
    """
    paths = (path, *others)
    return from_dict(reduce(merged, map(text.read, paths)), " + ".join(map(str, paths)))


def from_dict(value: Any, name: str = "config") -> Config:
    """Validate a configuration that is already parsed; `name` is the file that messages point to."""
    return validate(Config, value, name)


def schema_text() -> str:
    """The text of `config/schema.json`."""
    return json.dumps(Config.model_json_schema(), indent=1) + "\n"
