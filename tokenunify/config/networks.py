"""Networks: one class per architecture, its defaults the published form."""

from math import prod
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import Field, model_validator

from tokenunify.config.base import Fraction, PositiveInt, Shape, Strict
from tokenunify.geometry import Coordinate


class Architecture(Strict):
    """What every network's description can tell without building it."""

    CROP: ClassVar[Coordinate]
    """A crop that suits the defaults: the published one where there is one."""

    @property
    def unit(self) -> Coordinate:
        """The step between legal crops: what strides, poolings and patches divide."""
        raise NotImplementedError

    @property
    def legal_crops(self) -> str:
        """Which crops the network takes, in words."""
        return f"multiples of {list(self.unit)}"

    PARTS: ClassVar[tuple[str, ...]] = ("encoder", "decoder")
    """Parts that can be trained by themselves."""

    def output_extent(self, crop: Coordinate) -> Coordinate:
        """Extent (z, y, x) of the affinities that a crop gives: its own, or smaller where convolutions are valid.

        Raises ValueError, with the rule that it breaks, for a crop that the network cannot take.
        """
        check_unit(crop, self.unit)
        return crop


def check_unit(crop: Coordinate, unit: Coordinate) -> None:
    """Refuse a crop that strides and poolings do not divide."""
    if any(n % u for n, u in zip(crop, unit, strict=True)):
        raise ValueError(
            f"must be a multiple of {list(unit)}, which the network's strides and poolings divide, got {list(crop)}"
        )


def check_lengths(key: str, levels: int, lists: dict[str, tuple[tuple, int]]) -> None:
    """Refuse lists (values, expected length) that do not go with the levels that `key` gives."""
    for name, (values, expected) in lists.items():
        if len(values) != expected:
            raise ValueError(
                f"{name} must have {expected} entries for {levels} {key}, got {len(values)}; "
                "add or remove some of either"
            )


def check_normalisable(crop: Coordinate, unit: Coordinate) -> None:
    """Refuse a crop of which one voxel is left at the coarsest level: instance normalisation needs two."""
    if crop == unit:
        raise ValueError(f"must be larger than {list(unit)}, of which one voxel is left to normalise, got it")


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
    def legal_crops(self) -> str:
        return f"{list(self.SMALLEST)} plus multiples of {list(self.STEP)}"

    def output_extent(self, crop: Coordinate) -> Coordinate:
        below, above = ([self._legal(axis, n, up) for axis, n in enumerate(crop)] for up in (0, 1))
        if below != list(crop):
            nearest = " or ".join(str(n) for n in ([below] if below == above else [below, above]))
            raise ValueError(
                f"must be {self.legal_crops}, which its valid convolutions and poolings need, got {list(crop)}: "
                f"the nearest is {nearest}"
            )
        z, y, x = (n - lost for n, lost in zip(crop, self.LOST, strict=True))
        return z, y, x

    def _legal(self, axis: int, extent: int, up: int) -> int:
        """The largest legal extent up to the given one, or the smallest from there (up = 1)."""
        smallest, step = self.SMALLEST[axis], self.STEP[axis]
        return smallest + max(0, (extent - smallest + up * (step - 1)) // step) * step


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
    def _reachable(self) -> Self:
        if any(self.REFINEMENT % p for p in self.patch):
            raise ValueError(f"patch must divide {self.REFINEMENT} in every axis, got {list(self.patch)}; change it")
        return self


EMMAMBA_SIZES = {
    "emmamba-tiny": ((32, 64, 128, 256), 512),
    "emmamba-small": ((64, 128, 256, 512), 1024),
    "emmamba-middle": ((96, 192, 384, 768), 1024),
    "emmamba-large": ((144, 288, 576, 1104), 2048),
    "emmamba-huge": ((192, 384, 768, 1536), 3072),
}
"""Features and hidden of the published sizes: 28.30, 112.5, 206.6, 506.6 and 1008 M parameters."""


class EMmamba(Architecture):
    """The U-Net with a Mamba encoder of TokenUnify; the defaults are the published network of size tiny.

    A name with a size fixes features and hidden; one with `-released` also the form that the published weights need.
    """

    CROP = (16, 160, 160)
    FORM: ClassVar[tuple[str, ...]] = ("strides", "residual", "slices", "equal_initialisation")
    """Keys whose defaults are what the published weights need."""
    name: Literal[
        "emmamba",
        "emmamba-tiny",
        "emmamba-small",
        "emmamba-middle",
        "emmamba-large",
        "emmamba-huge",
        "emmamba-tiny-released",
        "emmamba-small-released",
        "emmamba-middle-released",
        "emmamba-large-released",
        "emmamba-huge-released",
    ] = "emmamba"
    """U-Net with a Mamba encoder; a name with a size fixes features and hidden."""
    features: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (32, 64, 128, 256)
    """Feature maps per stage; the first also at full resolution."""
    hidden: PositiveInt = 512
    """Feature maps of the bottleneck."""
    depths: tuple[PositiveInt, ...] = (2, 2, 2, 2)
    """Token layers per stage."""
    kernel: Shape = (1, 5, 5)
    """Kernel of the skip and decoder blocks."""
    strides: tuple[Shape, ...] = ((2, 2, 2),) * 4
    """Down-sampling before each stage. Its kernel spans one section: a stride of 2 in z skips every other section."""
    residual: bool = False
    """Whether a token layer adds its input to its output."""
    slices: Literal["fifths", "sections"] = "fifths"
    """The third order of the tokens interleaves fifths of the map, or its z sections."""
    equal_initialisation: bool = False
    """Whether all three directions, and not the forward one alone, start with the steps of Mamba."""

    @model_validator(mode="before")
    @classmethod
    def _fill_size(cls, values: Any) -> Any:
        if not isinstance(values, dict) or (size := _size(values.get("name"))) is None:
            return values
        return {"features": size[0], "hidden": size[1], **values}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        levels = len(self.features)
        check_lengths("features", levels, {"depths": (self.depths, levels), "strides": (self.strides, levels)})
        if any(k % 2 == 0 for k in self.kernel):
            raise ValueError(f"kernel must be odd in every axis, got {list(self.kernel)}; change it")
        if (size := _size(self.name)) and size != (self.features, self.hidden):
            raise ValueError(
                f"features and hidden of {self.name} are {list(size[0])} and {size[1]}, got {list(self.features)} and "
                f"{self.hidden}: remove these keys, or name the network emmamba"
            )
        if self.name.endswith("-released"):
            self._check_released()
        return self

    def _check_released(self) -> None:
        for key in self.FORM:
            found, expected = getattr(self, key), type(self).model_fields[key].default
            if found != expected:
                raise ValueError(
                    f"{key} of {self.name} must be {expected}, which published weights need, got {found}: remove this "
                    f"key, or name the network {self.name.removesuffix('-released')}"
                )

    @property
    def unit(self) -> Coordinate:
        z, y, x = (prod(axis) for axis in zip(*self.strides, strict=True))
        return z, y, x

    @property
    def legal_crops(self) -> str:
        fifths = ", tokens of each stage divisible by 5" if self.slices == "fifths" else ""
        return super().legal_crops + fifths

    def output_extent(self, crop: Coordinate) -> Coordinate:
        extent: list[int] = list(super().output_extent(crop))
        for stage, stride in enumerate(self.strides):
            extent = [n // s for n, s in zip(extent, stride, strict=True)]
            if self.slices == "fifths" and prod(extent) % 5:
                raise ValueError(
                    f"must give each stage a multiple of 5 tokens (slices: fifths), got {list(crop)}, which gives "
                    f"stage {stage} {extent} = {prod(extent)}: make one axis a multiple of 5 times {list(self.unit)}, "
                    "or take slices: sections"
                )
        check_normalisable(crop, self.unit)
        return crop


def _size(name: Any) -> tuple[tuple[int, ...], int] | None:
    """Features and hidden that a name fixes."""
    return EMMAMBA_SIZES.get(name.removesuffix("-released")) if isinstance(name, str) else None


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
    def _one_per_level(self) -> Self:
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
    def _divisible(self) -> Self:
        if self.hidden % self.heads:
            raise ValueError(f"hidden must be a multiple of heads {self.heads}, got {self.hidden}; change either")
        return self


Network = Annotated[Superhuman | Mala | Pea | Unetr | EMmamba | ResUnet | Vit, Field(discriminator="name")]
"""A network's description, told apart by its name."""

NETWORKS: dict[str, type[Architecture]] = {
    "superhuman": Superhuman,
    "mala": Mala,
    "pea": Pea,
    "unetr": Unetr,
    **dict.fromkeys(get_args(EMmamba.model_fields["name"].annotation), EMmamba),
    "resunet": ResUnet,
    "vit": Vit,
}
"""Class of each name."""
