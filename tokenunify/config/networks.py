"""Networks: one class per architecture, its defaults the published form."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from tokenunify.config.base import Fraction, PositiveInt, Shape, Strict
from tokenunify.geometry import Coordinate


class Architecture(Strict):
    """What every network's description can tell without building it."""

    PARTS: ClassVar[tuple[str, ...]] = ("encoder", "decoder")
    """Parts that can be trained by themselves."""

    def output_extent(self, crop: Coordinate) -> Coordinate:
        """Extent (z, y, x) of the affinities that a crop gives: its own, or smaller where convolutions are valid.

        Raises ValueError, with the rule that it breaks, for a crop that the network cannot take.
        """
        raise NotImplementedError


def check_unit(crop: Coordinate, unit: Coordinate) -> None:
    """Refuse a crop that strides and poolings do not divide."""
    if any(n % u for n, u in zip(crop, unit, strict=True)):
        raise ValueError(
            f"must be a multiple of {list(unit)}, which the network's strides and poolings divide, got {list(crop)}"
        )


class Superhuman(Architecture):
    """The residual symmetric U-Net of Lee et al. 2017; the defaults are the published network (1.478 M parameters)."""

    name: Literal["superhuman"] = "superhuman"
    filters: Annotated[tuple[PositiveInt, ...], Field(min_length=2)] = (28, 36, 48, 64, 80)
    """Feature maps per level, from full resolution to the bottleneck."""
    embed_kernel: Shape = (1, 5, 5)
    """Kernel of the first and the last but one convolution."""
    embed_stride: Shape = (1, 1, 1)
    """Stride of the first convolution; where it is coarser than 1 the log-odds are interpolated to full resolution."""
    first_kernel: Shape = (1, 3, 3)
    """Kernel of the first convolution of each block."""
    block_kernel: Shape = (3, 3, 3)
    """Kernel of the residual pair of each block."""
    pooling: Shape = (1, 2, 2)
    """Max-pooling between levels."""
    merge: Literal["add", "cat"] = "add"
    upsampling: Literal["trilinear", "transpose"] = "trilinear"
    normalisation: Literal["batch", "instance"] = "batch"
    norm_momentum: Fraction = 0.001
    """Momentum of the batch normalisation's running statistics."""

    def output_extent(self, crop: Coordinate) -> Coordinate:
        z, y, x = (s * p ** (len(self.filters) - 1) for s, p in zip(self.embed_stride, self.pooling, strict=True))
        check_unit(crop, (z, y, x))
        return crop


Network = Superhuman
"""A network's description, told apart by its name."""

NETWORKS: dict[str, type[Architecture]] = {"superhuman": Superhuman}
"""Class of each name."""
