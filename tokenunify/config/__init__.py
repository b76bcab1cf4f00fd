"""The configuration: typed, frozen, strict; `config/schema.json` is generated from these classes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

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

    @field_validator("seeds")
    @classmethod
    def _different(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds):
            raise ValueError(f"expected different seeds, found {list(seeds)}: equal seeds are one run; remove one")
        return seeds


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
        # A shared section that is wrong is reported where it stands, not once more for each model.
        shared = {
            stage: value[stage]
            for stage, section in (("finetune", Finetune), ("predict", Predict))
            if _is_valid(section, value.get(stage))
        }
        defaults: dict[str, dict] = {stage: resources.model_dump() for stage, resources in STAGE_RESOURCES.items()}
        return value | _complete("models", value, lambda _: shared) | _complete("resources", value, defaults.get)

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
            if name in STAGE_FOLDERS or name.startswith(BASELINE):
                raise ValueError(
                    f"segmentations.{name}: {[*STAGE_FOLDERS, BASELINE]} are reserved; choose another name"
                )
            _check_segmentation(self, f"segmentations.{name}", segmentation, f"remove segmentations.{name}")
        _check_evaluation(self)
        return self

    def stage_resources(self, stage: StageName) -> Resources:
        """What the stage's jobs ask for."""
        return self.resources.get(stage, STAGE_RESOURCES[stage])


def _is_valid(section: type[Strict], value: Any) -> bool:
    try:
        section.model_validate(value)
    except ValidationError:
        return False
    return True


def _complete(section: str, value: dict, defaults: Callable[[str], Any]) -> dict:
    """The section, each of its entries completed; empty where it is absent or no section."""
    entries = value.get(section)
    if not isinstance(entries, dict):
        return {}
    return {section: {name: _merge(defaults(name), entry) for name, entry in entries.items()}}


def _merge(base: Any, override: Any) -> Any:
    """What is given, completed with the base where both have keys; else as given, for pydantic to judge."""
    if not (isinstance(base, dict) and isinstance(override, dict)):
        return override
    return base | {key: _merge(base.get(key), value) for key, value in override.items()}


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
            _check_labels(f"datasets.{name}.{role}", volume, config.volumes[volume])
    for role in ("train", "validation"):
        if both := set(names["test"]) & set(names[role]):
            raise ValueError(
                f"datasets.{name}.test and .{role} share {sorted(both)}: a test volume may do nothing else"
            )
    for train in dataset.train:
        shape = _declared_shape(config.volumes[train.volume])
        if shape and train.sections and train.sections[0] >= shape[0]:
            raise ValueError(
                f"datasets.{name}.train: sections of volume {train.volume} must begin inside its {shape[0]} sections, "
                f"got {list(train.sections)}; correct sections"
            )


def _check_labels(key: str, name: str, volume: Volume) -> None:
    lacking = [f"volumes.{name}.sources.{i}" for i, s in enumerate(volume.sources) if not (s.labels or s.phantom)]
    if lacking:
        raise ValueError(
            f"{key}: volume {name} needs labels in every source, found none in {', '.join(lacking)}; "
            "add labels there, or take the volume out of the dataset"
        )


def _check_crops(config: Config, name: str, model: Model) -> None:
    for stage, crop in (("finetune", model.finetune.crop), ("predict", model.predict.crop or model.finetune.crop)):
        if any(c % u for c, u in zip(crop, model.network.unit, strict=True)):
            raise ValueError(
                f"models.{name}.{stage}.crop must be a multiple of {list(model.network.unit)}, which the network's "
                f"strides and poolings divide, got {list(crop)}; change it or the network"
            )
    _check_stride(name, model)
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


def _check_stride(name: str, model: Model) -> None:
    crop, stride = model.predict.crop or model.finetune.crop, model.predict.stride
    if stride and any(s > c for s, c in zip(stride, crop, strict=True)):
        raise ValueError(
            f"models.{name}.predict.stride must be at most the crop {list(crop)} in every axis, got {list(stride)}: "
            "voxels between two crops would not be predicted; use a smaller stride"
        )


def _declared_shape(volume: Volume) -> Coordinate | None:
    if volume.roi is not None:
        return volume.roi.shape
    phantom = volume.sources[0].phantom
    return phantom.shape if phantom else None


def _check_segmentation(config: Config, key: str, segmentation: Waterz | Multicut, without: str) -> None:
    """`without` tells how to do without the segmentation."""
    value = f"{key}.{'threshold' if isinstance(segmentation, Waterz) else 'beta'}"
    for name, model in config.models.items() if is_tuned(segmentation) else ():
        if not config.datasets[model.dataset].validation:
            raise ValueError(
                f"{value}.tune needs validation volumes, but datasets.{model.dataset} of model {name} has none; "
                f"add validation volumes, give {value} a number, or {without}"
            )
    if segmentation.fragments.block_shape is not None:
        check_multiple(
            f"{key}.fragments.block_shape",
            segmentation.fragments.block_shape,
            "storage.shard_shape",
            config.storage.shard_shape,
        )


def _check_evaluation(config: Config) -> None:
    if baseline := config.evaluation.baseline:
        key = "evaluation.baseline"
        _check_segmentation(config, f"{key}.segmentation", baseline.segmentation, f"set {key}: null")
    for dataset, models in (config.evaluation.models or {}).items():
        _known("evaluation.models", dataset, config.datasets)
        for model in models:
            _known(f"evaluation.models.{dataset}", model, config.models)
            if (own := config.models[model].dataset) != dataset:
                raise ValueError(
                    f"evaluation.models.{dataset} must name models of dataset {dataset}, got {model} of dataset {own}; "
                    f"remove it here, or change models.{model}.dataset"
                )


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
