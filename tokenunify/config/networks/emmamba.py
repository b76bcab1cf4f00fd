"""EMmamba, TokenUnify's network, in its published sizes."""

from math import prod
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from tokenunify.config.base import PositiveInt, Shape
from tokenunify.config.networks.base import Architecture, check_lengths, check_normalisable
from tokenunify.geometry import Coordinate

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
    def fill_size(cls, values: Any) -> Any:
        if not isinstance(values, dict) or (size := _size(values.get("name"))) is None:
            return values
        return {"features": size[0], "hidden": size[1], **values}

    @model_validator(mode="after")
    def consistent(self) -> Self:
        levels = len(self.features)
        check_lengths("features", levels, {"depths": (self.depths, levels), "strides": (self.strides, levels)})
        if any(k % 2 == 0 for k in self.kernel):
            raise ValueError(f"kernel must be odd in every axis, got {list(self.kernel)}; change it")
        if (size := _size(self.name)) and size != (self.features, self.hidden):
            raise ValueError(
                f"features and hidden of {self.name} are {list(size[0])} and {size[1]}, got {list(self.features)} and "
                f"{self.hidden}: remove these keys, or name the network emmamba"
            )
        for key in self.FORM if self.name.endswith("-released") else ():
            found, expected = getattr(self, key), type(self).model_fields[key].default
            if found != expected:
                raise ValueError(
                    f"{key} of {self.name} must be {expected}, which published weights need, got {found}: remove this "
                    f"key, or name the network {self.name.removesuffix('-released')}"
                )
        return self

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
