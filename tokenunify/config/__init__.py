"""The configuration: typed, frozen, strict; `config/schema.json` is generated from these classes."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import Field, model_validator

from tokenunify.config.base import Count, Name, PositiveInt, Shape, Strict, VoxelSize, check_multiple, validate
from tokenunify.config.data import Dataset, FileSource, Phantom, RoiConfig, Source, Storage, Volume
from tokenunify.config.learning import NEAREST, Augment, Finetune, Network, Predict, Superhuman
from tokenunify.config.segmentation import Baseline, Fragments, Multicut, Segmentation, Tuned, Waterz, is_tuned
from tokenunify.errors import InputError
from tokenunify.geometry import Coordinate

__all__ = [
    "BASELINE",
    "NEAREST",
    "STAGE_FOLDERS",
    "STAGE_RESOURCES",
    "Augment",
    "Baseline",
    "Config",
    "Count",
    "Dataset",
    "Evaluation",
    "FileSource",
    "Finetune",
    "Fragments",
    "Model",
    "Multicut",
    "Name",
    "Network",
    "Phantom",
    "Predict",
    "Resources",
    "RoiConfig",
    "Segmentation",
    "Shape",
    "Source",
    "StageName",
    "Storage",
    "Strict",
    "Superhuman",
    "Tuned",
    "Volume",
    "VoxelSize",
    "Waterz",
    "check_multiple",
    "from_dict",
    "is_tuned",
    "load",
    "schema_text",
    "validate",
]

StageName = Literal[
    "download",
    "ingest",
    "finetune",
    "predict",
    "baseline",
    "fragments",
    "rag",
    "tune",
    "agglomerate",
    "relabel",
    "evaluate",
]
BASELINE = "raw-watershed"
STAGE_FOLDERS = ("predict", "fragments", "rag")


class Evaluation(Strict):
    """How segmentations are scored, and what is reported."""

    erode_labels: bool = False
    """Score against labels whose borders were eroded, as one of the paper's protocols does."""
    ignore_label: Count = 0
    baseline: Baseline | None = Baseline()
    models: dict[Name, tuple[Name, ...]] | None = None
    """Dataset -> models reported; null reports every model of the dataset."""


class Model(Strict):
    """A network, what it is trained on, and with which seeds."""

    network: Network
    dataset: Name
    seeds: Annotated[tuple[Count, ...], Field(min_length=1)] = (0,)
    finetune: Finetune = Finetune()
    """Keys given here replace those of the top-level section."""
    predict: Predict = Predict()
    """Keys given here replace those of the top-level section."""


class Resources(Strict):
    """What a stage's jobs ask for; none of it changes a result's identity."""

    parts: PositiveInt = 1
    """Jobs per volume, each a contiguous range of blocks (block-wise stages)."""
    threads: PositiveInt = 1
    mem_mb: PositiveInt = 4000
    runtime: PositiveInt = 120
    """Minutes."""


STAGE_RESOURCES: dict[StageName, Resources] = {
    "download": Resources(mem_mb=2000, runtime=720),
    "ingest": Resources(threads=2),
    "finetune": Resources(threads=2, mem_mb=16000, runtime=2880),
    "predict": Resources(threads=2, mem_mb=8000, runtime=720),
    "baseline": Resources(),
    "fragments": Resources(),
    "rag": Resources(),
    "tune": Resources(mem_mb=8000),
    "agglomerate": Resources(mem_mb=16000),
    "relabel": Resources(),
    "evaluate": Resources(),
}


class Config(Strict):
    """The whole configuration file."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU where one is visible; with cpu no job asks for one."""
    storage: Storage = Storage()
    resources: dict[StageName, Resources] = Field(default={})
    """Stage -> what its jobs ask for, where it differs from the default."""
    volumes: dict[Name, Volume]
    datasets: dict[Name, Dataset]
    finetune: Finetune = Finetune()
    """Training settings shared by the models."""
    predict: Predict = Predict()
    """Prediction settings shared by the models."""
    models: dict[Name, Model]
    segmentations: dict[Name, Segmentation]
    evaluation: Evaluation = Evaluation()

    @model_validator(mode="before")
    @classmethod
    def _inherit(cls, value: Any) -> Any:
        """Complete each model's finetune and predict from the top-level sections, and resources from the defaults."""
        if not isinstance(value, dict):
            return value
        models = {}
        for name, model in (value.get("models") or {}).items():
            model = dict(model) if isinstance(model, dict) else model
            for stage in ("finetune", "predict") if isinstance(model, dict) else ():
                model[stage] = _merge(value.get(stage) or {}, model.get(stage) or {})
            models[name] = model
        resources = dict(value.get("resources") or {})
        for stage, given in resources.items():
            if stage in STAGE_RESOURCES and isinstance(given, dict):
                resources[stage] = {**STAGE_RESOURCES[stage].model_dump(), **given}
        return {**value, "models": models, "resources": resources}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for name, dataset in self.datasets.items():
            _check_dataset(self, name, dataset)
        for name, model in self.models.items():
            _known(f"models.{name}.dataset", model.dataset, self.datasets)
            if name == BASELINE:
                raise ValueError(f"models.{name}: this name belongs to the built-in baseline; choose another name")
            _check_crops(self, name, model)
        for name, segmentation in self.segmentations.items():
            _check_segmentation(self, name, segmentation)
        _check_evaluation(self)
        return self

    def stage_resources(self, stage: StageName) -> Resources:
        """What the stage's jobs ask for."""
        return self.resources.get(stage, STAGE_RESOURCES[stage])


def _merge(base: dict, override: dict) -> dict:
    merged = dict(base)
    for key, value in override.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict)
        merged[key] = _merge(base[key], value) if both else value
    return merged


def _known(key: str, name: str, known: dict) -> None:
    if name not in known:
        raise ValueError(f"{key} names {name!r}, expected one of {sorted(known)}; define it or correct the name")


def _check_dataset(config: Config, name: str, dataset: Dataset) -> None:
    names = {
        "train": [t.volume for t in dataset.train],
        "validation": dataset.validation,
        "test": dataset.test,
    }
    for role, volumes in names.items():
        for volume in volumes:
            _known(f"datasets.{name}.{role}", volume, config.volumes)
    for role in ("train", "validation"):
        if both := set(names["test"]) & set(names[role]):
            raise ValueError(
                f"datasets.{name}.test and .{role} share {sorted(both)}: a test volume may do nothing else"
            )


def _check_crops(config: Config, name: str, model: Model) -> None:
    for stage, crop in (("finetune", model.finetune.crop), ("predict", model.predict.crop or model.finetune.crop)):
        if any(c % u for c, u in zip(crop, model.network.unit, strict=True)):
            raise ValueError(
                f"models.{name}.{stage}.crop must be a multiple of {list(model.network.unit)}, which the network's "
                f"strides and poolings divide, got {list(crop)}; change it or the network"
            )
    for train in config.datasets[model.dataset].train:
        shape = _declared_shape(config.volumes[train.volume])
        if shape is None:
            continue
        if train.sections is not None:
            shape = (min(shape[0], train.sections[1]) - train.sections[0], *shape[1:])
        if any(c > n for c, n in zip(model.finetune.crop, shape, strict=True)):
            raise ValueError(
                f"models.{name}.finetune.crop must fit into training volume {train.volume} of shape {list(shape)}, "
                f"got {list(model.finetune.crop)}; use a smaller crop"
            )


def _declared_shape(volume: Volume) -> Coordinate | None:
    if volume.roi is not None:
        return volume.roi.shape
    phantom = volume.sources[0].phantom
    return phantom.shape if phantom else None


def _check_segmentation(config: Config, name: str, segmentation: Waterz | Multicut) -> None:
    if name in STAGE_FOLDERS or name.startswith(BASELINE):
        raise ValueError(f"segmentations.{name}: {[*STAGE_FOLDERS, BASELINE]} are reserved; choose another name")
    key = "threshold" if isinstance(segmentation, Waterz) else "beta"
    tuned = is_tuned(segmentation)
    for model_name, model in config.models.items():
        if tuned and not config.datasets[model.dataset].validation:
            raise ValueError(
                f"segmentations.{name}.{key}.tune needs validation volumes, but datasets.{model.dataset} of model "
                f"{model_name} has none; add one, or give a number"
            )
    if segmentation.fragments.block_shape is not None:
        check_multiple(
            f"segmentations.{name}.fragments.block_shape",
            segmentation.fragments.block_shape,
            "storage.shard_shape",
            config.storage.shard_shape,
        )


def _check_evaluation(config: Config) -> None:
    for dataset, models in (config.evaluation.models or {}).items():
        _known("evaluation.models", dataset, config.datasets)
        for model in models:
            _known(f"evaluation.models.{dataset}", model, config.models)


def load(path: str | Path) -> Config:
    """Read and validate a configuration file.

    Raises InputError naming every wrong key, what was expected and what was found.
    """
    try:
        text = Path(path).read_text()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): give an existing configuration file") from None
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not valid YAML: {error}") from None
    return from_dict(value, str(path))


def from_dict(value: Any, name: str = "config") -> Config:
    """Validate a configuration that is already parsed; `name` is the file that messages point to."""
    return validate(Config, value, name)


def schema_text() -> str:
    """The text of `config/schema.json`."""
    return json.dumps(Config.model_json_schema(), indent=1) + "\n"
