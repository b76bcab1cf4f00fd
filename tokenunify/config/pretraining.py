"""Stand-in"""

from typing import Annotated, Literal
from pydantic import Field
from tokenunify.config.base import Count, Fraction, Name, PositiveInt, Shape, Strict
from tokenunify.config.learning import Finetune


class Resampler(Strict):
    latents: PositiveInt = 64
    width: PositiveInt = 256
    layers: PositiveInt = 2
    heads: PositiveInt = 8


class Relevance(Strict):
    iterations: PositiveInt = 8
    width: PositiveInt = 64


class Pretraining(Strict):
    crop: Shape = (16, 160, 160)
    patch: Shape = (4, 16, 16)
    schedule: tuple[Literal["random", "next", "next-all"], ...] = ("random", "next", "next-all")
    mode: Literal["alternate", "joint"] = "alternate"
    weights: dict[str, float] = {"random": 1.0, "next": 1.0, "next-all": 1.0}
    period_epochs: PositiveInt = 100
    samples_per_epoch: PositiveInt = 1000
    mask_ratio: Fraction | tuple[Fraction, Fraction] = 0.4
    fill: Literal["noise", "zero", "learned", "noise-released"] = "noise"
    normalise: bool = True
    ordering: Literal["raster"] | Relevance = "raster"
    resampler: Resampler = Resampler()
