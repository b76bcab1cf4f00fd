"""Vision transformers: unetr and the plain one."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from tokenunify.config.base import Fraction, PositiveInt, Shape
from tokenunify.config.networks.base import Architecture
from tokenunify.geometry import Coordinate


class Unetr(Architecture):
    """The transformer encoder with a convolutional decoder of Hatamizadeh et al. 2022, without position embedding."""

    CROP = (32, 160, 160)
    REFINEMENT: ClassVar[int] = 16
    """How much finer than the tokens the decoder gets, in every axis."""
    name: Literal["unetr"] = "unetr"
    """Transformer encoder with a convolutional decoder."""
    patch: Shape = (4, 16, 16)
    """Voxels of a token."""
    feature: PositiveInt = 16
    """Feature maps at full resolution; twice as many at each coarser level."""
    hidden: PositiveInt = 768
    """Width of a token."""
    mlp: PositiveInt = 2048
    """Width of the hidden layer of each feed-forward network."""
    heads: PositiveInt = 8
    """Attention heads, each 64 wide."""
    layers: Annotated[int, Field(ge=4)] = 12
    """Transformer blocks, at least 4."""
    kernel: Shape = (1, 3, 3)
    """Kernel of the residual blocks."""
    dropout: Fraction = 0.1
    """Share of activations that training drops."""

    @property
    def unit(self) -> Coordinate:
        return self.patch

    @model_validator(mode="after")
    def reachable(self) -> Self:
        if any(self.REFINEMENT % p for p in self.patch):
            raise ValueError(f"patch must divide {self.REFINEMENT} in every axis, got {list(self.patch)}; change it")
        return self


class Vit(Architecture):
    """A plain 3D vision transformer: patches to tokens, and each token back to the voxels of its patch."""

    CROP = (16, 160, 160)
    name: Literal["vit"] = "vit"
    """Plain vision transformer."""
    patch: Shape = (4, 16, 16)
    """Voxels of a token."""
    hidden: PositiveInt = 384
    """Width of a token."""
    mlp: PositiveInt = 1536
    """Width of the hidden layer of each feed-forward network."""
    heads: PositiveInt = 6
    """Attention heads; they divide hidden."""
    layers: PositiveInt = 12
    """Transformer blocks."""
    feature: PositiveInt = 16
    """Feature maps that tokens are decoded to, at full resolution."""

    @property
    def unit(self) -> Coordinate:
        return self.patch

    @model_validator(mode="after")
    def divisible(self) -> Self:
        if self.hidden % self.heads:
            raise ValueError(f"hidden must be a multiple of heads {self.heads}, got {self.hidden}; change either")
        return self
