"""Convolutional U-Nets: superhuman, pea, mala and the plain residual one."""

from math import prod
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from tokenunify.config.base import Fraction, PositiveInt, Shape
from tokenunify.config.networks.base import Architecture, check_lengths, check_normalisable
from tokenunify.geometry import Coordinate


class SymmetricUNet(Architecture):
    """The options of the residual symmetric U-Net of Lee et al. 2017; the defaults are the published network."""

    CROP = (18, 160, 160)
    filters: Annotated[tuple[PositiveInt, ...], Field(min_length=2)] = (28, 36, 48, 64, 80)
    """Feature maps per level, from full resolution to the bottleneck."""
    embed_kernel: Shape = (1, 5, 5)
    """Kernel of the first and the last but one convolution."""
    embed_stride: Shape = (1, 1, 1)
    """Stride of the first convolution; where it is coarser than 1 the output is interpolated to full resolution."""
    first_kernel: Shape = (1, 3, 3)
    """Kernel of the first convolution of each block."""
    block_kernel: Shape = (3, 3, 3)
    """Kernel of the residual pair of each block."""
    pooling: Shape = (1, 2, 2)
    """Max-pooling between levels."""
    merge: Literal["add", "cat"] = "add"
    """How the decoder joins skip connections: sum or concatenation."""
    upsampling: Literal["trilinear", "transpose"] = "trilinear"
    """Interpolation, or transposed convolution."""
    normalisation: Literal["batch", "instance"] = "batch"
    """Over the batch, or over each crop."""
    norm_momentum: Fraction = 0.1
    """Momentum of the batch normalisation's running statistics; the published networks' 0.001 suits long trainings.

    Where a training is too short for them they are taken anew, before validation and at the end, from training crops.
    """

    @property
    def unit(self) -> Coordinate:
        z, y, x = (s * p ** (len(self.filters) - 1) for s, p in zip(self.embed_stride, self.pooling, strict=True))
        return z, y, x


class Superhuman(SymmetricUNet):
    """The residual symmetric U-Net that predicts affinities (1.478 M parameters)."""

    name: Literal["superhuman"] = "superhuman"
    """Residual symmetric U-Net."""


class Pea(SymmetricUNet):
    """The residual symmetric U-Net that embeds voxels; affinities compare the embeddings (1.478 M parameters)."""

    name: Literal["pea"] = "pea"
    """Residual symmetric U-Net with voxel embeddings."""
    embedding: PositiveInt = 16
    """Channels of the embedding."""


class Mala(Architecture):
    """The U-Net with valid convolutions of Funke et al. 2019 (84.02 M parameters)."""

    CROP = (53, 268, 268)
    SMALLEST: ClassVar[Coordinate] = (29, 214, 214)
    STEP: ClassVar[Coordinate] = (1, 27, 27)
    LOST: ClassVar[Coordinate] = (28, 212, 212)
    """Extent of a crop less that of its output, half of it on each side."""
    name: Literal["mala"] = "mala"
    """U-Net with valid convolutions."""
    filters: tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt] = (12, 60, 300, 1500)
    """Feature maps per level, from full resolution to the bottleneck."""

    @property
    def unit(self) -> Coordinate:
        return self.STEP

    @property
    def smallest(self) -> Coordinate:
        return self.SMALLEST

    @property
    def legal_crops(self) -> str:
        return f"{list(self.SMALLEST)} plus multiples of {list(self.STEP)}"

    def output_extent(self, crop: Coordinate) -> Coordinate:
        # Along each axis, the largest legal extent up to that of the crop, and the smallest from there.
        axes = list(zip(crop, self.SMALLEST, self.STEP, strict=True))
        below = [least + max(0, (n - least) // step) * step for n, least, step in axes]
        above = [least + max(0, (n - least + step - 1) // step) * step for n, least, step in axes]
        if below != list(crop):
            nearest = " or ".join(str(n) for n in ([below] if below == above else [below, above]))
            raise ValueError(
                f"must be {self.legal_crops}, which its valid convolutions and poolings need, got {list(crop)}: "
                f"the nearest is {nearest}"
            )
        z, y, x = (n - lost for n, lost in zip(crop, self.LOST, strict=True))
        return z, y, x


class ResUnet(Architecture):
    """A plain 3D U-Net with residual blocks."""

    CROP = (64, 64, 64)
    name: Literal["resunet"] = "resunet"
    """Plain residual U-Net."""
    filters: Annotated[tuple[PositiveInt, ...], Field(min_length=2)] = (32, 64, 128, 256)
    """Feature maps per level, from full resolution to the bottleneck."""
    kernels: tuple[Shape, ...] = ((3, 3, 3),) * 4
    """Kernel of each level's convolutions."""
    poolings: tuple[Shape, ...] = ((2, 2, 2),) * 3
    """Max-pooling between a level and the next."""
    normalisation: Literal["instance", "group"] = "instance"
    """Over each channel of a crop, or over groups of channels."""
    groups: PositiveInt = 8
    """Groups of channels (normalisation: group)."""

    @model_validator(mode="after")
    def one_per_level(self) -> Self:
        levels = len(self.filters)
        check_lengths("filters", levels, {"kernels": (self.kernels, levels), "poolings": (self.poolings, levels - 1)})
        if self.normalisation == "group" and any(f % self.groups for f in self.filters):
            raise ValueError(
                f"filters must be multiples of groups {self.groups}, got {list(self.filters)}; change either"
            )
        return self

    @property
    def unit(self) -> Coordinate:
        z, y, x = (prod(axis) for axis in zip(*self.poolings, strict=True))
        return z, y, x

    def output_extent(self, crop: Coordinate) -> Coordinate:
        super().output_extent(crop)
        check_normalisable(crop, self.unit)
        return crop
