"""Pre-training: the raw that it may see, its objectives and its optimiser."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from tokenunify.config.base import Count, Name, PositiveInt, Shape, Strict
from tokenunify.config.learning import Optimisation, RawAugment
from tokenunify.config.networks import Network
from tokenunify.config.volumes import RoiConfig, name_alone

Objective = Literal["random", "next", "next-all"]
Share = Annotated[float, Field(gt=0, lt=1)]
Weight = Annotated[float, Field(gt=0)]


class Sample(Strict):
    """Regions drawn by chance from a volume that is too large to be downloaded: each is fetched and ingested alone."""

    number: PositiveInt
    """Regions to draw."""
    shape: Shape
    """Voxels of a region; multiples of the source's chunks fetch nothing in vain."""
    seed: Count = 0
    """Seed of the random generator that draws them."""
    max_blank: Annotated[float, Field(ge=0, le=1)] = 0.2
    """Share of a region's voxels that may have one and the same value, as where there is no tissue.

    A region that has more is blank, and the next place is tried in its stead.
    """


class CorpusVolume(Strict):
    """A volume whose raw is learned from, labelled or not."""

    volume: Name
    """Name of the volume whose raw is read."""
    regions: tuple[RoiConfig, ...] = ()
    """Boxes of the volume, in its own voxels, each drawn equally often; none: the whole volume is one region."""
    sample: Sample | None = None
    """Regions drawn by chance, in place of those given."""

    @model_validator(mode="after")
    def given_or_drawn(self) -> Self:
        if self.regions and self.sample:
            raise ValueError("regions and sample exclude each other; remove one")
        return self

    @property
    def names(self) -> tuple[Name, ...]:
        """The volumes that are ingested: the volume itself, or its sampled regions."""
        if self.sample is None:
            return (self.volume,)
        return tuple(f"{self.volume}-region{index}" for index in range(self.sample.number))


class Excluded(RoiConfig):
    """A box of a volume, in its own voxels."""

    volume: Name
    """Name of the volume that the box is in."""


def one_dataset(value: Any) -> Any:
    """A list of volumes is a single data set."""
    return {"all": value} if isinstance(value, list) else value


CorpusVolumes = Annotated[
    tuple[Annotated[CorpusVolume, BeforeValidator(name_alone, json_schema_input_type=CorpusVolume | Name)], ...],
    Field(min_length=1),
]


class Corpus(Strict):
    """Raw to pre-train on: a data set is drawn, one of its regions, and a position there, each uniformly."""

    datasets: Annotated[
        dict[Name, CorpusVolumes],
        Field(min_length=1),
        BeforeValidator(one_dataset, json_schema_input_type=dict[Name, CorpusVolumes] | CorpusVolumes),
    ]
    """Name -> volumes that are drawn as often as those of any other; a list of volumes is one data set."""
    exclude: tuple[Excluded, ...] = ()
    """Boxes that no crop touches, in whichever volumes their raw is."""
    allow_test: bool = False
    """Also learn from the raw of validation and test volumes, and of known test cubes; the tables then say so."""

    @property
    def members(self) -> Iterator[CorpusVolume]:
        """The volumes of all data sets."""
        return (member for members in self.datasets.values() for member in members)

    @property
    def names(self) -> list[Name]:
        """The volumes that are ingested, sampled regions among them."""
        return list(dict.fromkeys(name for member in self.members for name in member.names))


class Relevance(Strict):
    """Tokens in the order of learned relevance scores, from attention to the tokens placed so far."""

    iterations: PositiveInt = 8
    """Rounds in which the order is made."""
    width: PositiveInt = 64
    """Channels of the attention that gives the scores."""


def relevance_by_name(value: Any) -> Any:
    """The word relevance is the section with its defaults."""
    return {} if value == "relevance" else value


Ordering = Annotated[
    Literal["raster"] | Relevance,
    BeforeValidator(relevance_by_name, json_schema_input_type=Literal["raster", "relevance"] | Relevance),
]


class Resampler(Strict):
    """The Perceiver Resampler, through which next-token prediction reads the features."""

    latents: PositiveInt = 64
    """Visual tokens."""
    width: PositiveInt = 256
    """Channels of a visual token."""
    layers: PositiveInt = 2
    """Blocks of cross-attention."""
    heads: PositiveInt = 8
    """Attention heads; they divide the width."""

    @model_validator(mode="after")
    def heads_divide(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width must be a multiple of heads {self.heads}, got {self.width}; change either")
        return self


class Pretrain(Optimisation):
    """Self-supervised training of a network; the defaults are the paper's, batch size and rate those of its 32 GPUs."""

    objectives: Annotated[tuple[Objective, ...], Field(min_length=1)] = ("random", "next", "next-all")
    """random alone is a masked autoencoder (MAE), next alone an autoregressive model."""
    mode: Literal["alternate", "joint"] = "alternate"
    """One objective after the other, again and again, or all in every step."""
    period_epochs: PositiveInt = 100
    """Epochs before the next objective's turn (mode alternate)."""
    samples_per_epoch: PositiveInt = 10_000
    """Crops that make an epoch."""
    loss_weights: dict[Objective, Weight] = Field(default={}, validate_default=True)
    """Weights of the objectives' losses in their sum; 1 where not given."""
    patch: Shape = (4, 16, 16)
    """Voxels of a token."""
    mask_ratio: Share | tuple[Share, Share] = 0.4
    """Share of the tokens that random hides and predicts; of two, one between them is drawn for each crop."""
    fill: Literal["noise", "zero", "learned", "noise-released"] = "noise"
    """What hides tokens: noise of the corpus's mean and deviation, zeros, a learned value, or noise of N(0, 1)."""
    normalise: bool = True
    """Divide losses by the number of target voxels; else they are sums over the sequence (eq. 2 to 4)."""
    ordering: Ordering = "raster"
    """Order of the tokens for next and next-all."""
    resampler: Resampler = Resampler()
    """Size of the Perceiver Resampler."""

    batch_size: PositiveInt = 256
    """Samples of one step, over all GPUs."""
    steps: PositiveInt = 15_625
    """Steps of the optimiser."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    """Decay of weights; biases and normalisation are not decayed."""
    augment: RawAugment = RawAugment()
    """Probability of each augmentation of the raw crops."""
    picture_every: PositiveInt = 1000
    """Steps between pictures of reconstructions, in the training's folder."""

    @property
    def mask_range(self) -> tuple[float, float]:
        """Lowest and highest share of hidden tokens."""
        return self.mask_ratio if isinstance(self.mask_ratio, tuple) else (self.mask_ratio, self.mask_ratio)

    @field_validator("objectives")
    @classmethod
    def different(cls, objectives: tuple[Objective, ...]) -> tuple[Objective, ...]:
        if len(set(objectives)) < len(objectives):
            raise ValueError(f"expected different objectives, found {list(objectives)}; give each once, and its weight")
        return objectives

    @field_validator("loss_weights")
    @classmethod
    def complete(cls, loss_weights: dict[Objective, float]) -> dict[Objective, float]:
        return {"random": 1.0, "next": 1.0, "next-all": 1.0, **loss_weights}

    @model_validator(mode="after")
    def consistent(self) -> Self:
        low, high = self.mask_range
        if low > high:
            raise ValueError(f"mask_ratio must be the lowest and the highest share, got {[low, high]}; exchange them")
        turn = self.samples_per_epoch * self.period_epochs
        trained = 1 + (self.steps - 1) * self.batch_size // turn if self.mode == "alternate" else len(self.objectives)
        if trained < len(self.objectives):
            raise ValueError(
                f"{list(self.objectives[trained:])} would never be trained: steps x batch_size are "
                f"{self.steps * self.batch_size} samples, but each objective's turn takes samples_per_epoch x "
                f"period_epochs = {turn}; lower samples_per_epoch or period_epochs, raise steps, or use mode joint"
            )
        return self


class Pretraining(Pretrain):
    """A network, the corpus that it is pre-trained on, and how."""

    network: Network
    """The architecture and its options; models that start from this pre-training need the same."""
    corpus: Name
    """Name of the corpus of unlabelled raw."""
