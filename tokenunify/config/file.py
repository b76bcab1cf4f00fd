"""The sections of a configuration file: models, evaluation, and what each entry takes from shared sections."""

from collections.abc import Callable
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, ValidationError, field_validator, model_validator

from tokenunify.config.base import Count, Name, Shape, Strict
from tokenunify.config.learning import Finetune, Lora, Predict, Train
from tokenunify.config.machine import STAGE_RESOURCES, Downloads, Resources, StageName, Storage
from tokenunify.config.networks import Network
from tokenunify.config.pretraining import Corpus, Pretraining
from tokenunify.config.segmentation import Baseline, Segmentation
from tokenunify.config.sources import WeightsSource
from tokenunify.config.volumes import Dataset, Volume


def none_as_null(value: Any) -> Any:
    """The word none is null."""
    return None if value == "none" else value


class Evaluation(Strict):
    """How segmentations are scored, and what is reported."""

    erode_labels: bool = False
    """Score against labels whose borders were eroded, as one of the paper's protocols does."""
    ignore_label: Annotated[int, Field(ge=0, lt=2**64)] = 0
    """Label that is not scored: an id of the source, also where `label_ids` numbers the stored ones anew."""
    skeleton_spacing_nm: Annotated[float, Field(gt=0)] | None = 40.0
    """Distance of the samples from which the labels' skeletons are made, for expected run lengths; null: none are."""
    baseline: Baseline | None = Baseline()
    """Watershed of smoothed raw, to compare the models with; null: none."""
    models: dict[Name, tuple[Name, ...]] | None = None
    """Dataset -> models reported; null reports every model of the dataset."""
    blockings: tuple[Shape, ...] = ()
    """Block shapes in which the report's fragments are made anew, to compare the segmentations; none: not done."""

    @field_validator("blockings")
    @classmethod
    def comparable(cls, shapes: tuple[Shape, ...]) -> tuple[Shape, ...]:
        if len(shapes) == 1 or len(set(shapes)) < len(shapes):
            raise ValueError(
                f"expected two or more different block shapes, or none, found {list(map(list, shapes))}: "
                "they are compared with one another; add or remove one"
            )
        return shapes


class Model(Strict):
    """A network, what it is trained on, and with which seeds."""

    network: Network
    """The architecture and its options, for example `{name: emmamba-tiny}`; `tokenunify networks` lists them."""
    dataset: Name
    """Name of the data set that trains, validates and tests the model."""
    seeds: Annotated[tuple[Count, ...], Field(min_length=1)] = (0,)
    """The training is repeated with each of these random seeds, for example `[0, 1, 2]`."""
    pretraining: Annotated[Name | None, BeforeValidator(none_as_null)] = None
    """Whose body the network starts from, of the same seed; none starts from scratch."""
    weights: WeightsSource | None = None
    """Published weights that the network starts from, in place of a pretraining."""
    transfer: Literal["strict", "partial"] = "strict"
    """Strict: all tensors but the head's must load; partial: those that do not fit are left out, see transfer.csv."""
    train: Train = "all"
    """What fine-tuning changes, beside the head."""
    lora: Lora = Lora()
    """The adapters of `train: lora`."""
    finetune: Finetune = Finetune()
    """Keys given here replace those of the top-level section."""
    predict: Predict = Predict()
    """Keys given here replace those of the top-level section."""

    @field_validator("seeds")
    @classmethod
    def different(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds):
            raise ValueError(f"expected different seeds, found {list(seeds)}: equal seeds are one run; remove one")
        return seeds

    @model_validator(mode="after")
    def consistent(self) -> Self:
        if self.pretraining is not None and self.weights is not None:
            raise ValueError("pretraining and weights exclude each other; remove one")
        known = self.network.PARTS
        if self.train not in ("all", "lora") and (lacking := set(self.train.split("+")) - set(known)):
            raise ValueError(
                f"train: network {self.network.name} has no {' and no '.join(sorted(lacking))}, expected all, lora or "
                f"some of {list(known)} with + between, got {self.train!r}; correct it or change the network"
            )
        return self

    @property
    def start(self) -> str:
        """What the network starts from: the name of a pretraining, `published` weights, or `none`."""
        return self.pretraining or ("published" if self.weights else "none")


class Sections(Strict):
    """All sections of a configuration file; `Config` checks that they go together."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU where one is visible; with cpu no job asks for one."""
    storage: Storage = Storage()
    """Sizes of chunks, of files and of the unit of work."""
    resources: dict[StageName, Resources] = Field(default={})
    """Stage -> what its jobs ask for, where it differs from the default."""
    download: Downloads = Downloads()
    """Limits of downloads."""
    accept_licenses: tuple[Name, ...] = ()
    """Names of the volumes' terms that you have read and keep to."""
    volumes: dict[Name, Volume]
    """Name -> an EM volume: its sources, voxel size and rights."""
    datasets: dict[Name, Dataset] = Field(default={})
    """Name -> which volumes train, choose and test; volumes alone can be ingested."""
    corpora: dict[Name, Corpus] = Field(default={})
    """Name -> raw to pre-train on."""
    pretrainings: dict[Name, Pretraining] = Field(default={})
    """Name -> a pre-training, which is run with the seeds of the models that name it."""
    finetune: Finetune = Finetune()
    """Training settings shared by the models."""
    predict: Predict = Predict()
    """Prediction settings shared by the models."""
    models: dict[Name, Model] = Field(default={})
    """Name -> a network, the data set that trains it, and its seeds."""
    segmentations: dict[Name, Segmentation] = Field(default={})
    """Name -> how affinities become segments: waterz or multicut."""
    evaluation: Evaluation = Evaluation()
    """How segmentations are scored and what is reported."""

    @model_validator(mode="before")
    @classmethod
    def inherit(cls, value: Any) -> Any:
        """Complete each model's finetune and predict from the top-level sections, and resources from the defaults."""
        if not isinstance(value, dict):
            return value
        shared = {}
        for stage, section in (("finetune", Finetune), ("predict", Predict)):
            try:
                section.model_validate(value.get(stage))
            except ValidationError:
                continue  # it is reported where it stands, not once more for each model
            shared[stage] = value[stage]
        defaults: dict[str, dict] = {stage: resources.model_dump() for stage, resources in STAGE_RESOURCES.items()}
        return value | _complete("models", value, lambda _: shared) | _complete("resources", value, defaults.get)

    def stage_resources(self, stage: StageName) -> Resources:
        """What the stage's jobs ask for."""
        return self.resources.get(stage, STAGE_RESOURCES[stage])


def _complete(section: str, value: dict, defaults: Callable[[str], Any]) -> dict:
    """The section, each of its entries completed with its defaults; empty where the value has no such section."""
    entries = value.get(section)
    if not isinstance(entries, dict):
        return {}
    return {section: {name: merged(defaults(name), entry) for name, entry in entries.items()}}


def merged(base: Any, override: Any) -> Any:
    """The override, completed with the base where both are sections; else the override alone, for pydantic to judge."""
    if not (isinstance(base, dict) and isinstance(override, dict)):
        return override
    return base | {key: merged(base.get(key), value) for key, value in override.items()}
