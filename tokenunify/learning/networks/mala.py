"""MALA: the U-Net with valid convolutions of Funke et al., 2019 (doi:10.1109/TPAMI.2018.2835450).

Letters: b batch, c channels, z y x the extent of a map. Poolings are (1, 3, 3); no convolution pads, so that every one
takes two planes of each axis, and a skip is cut to the centre of its map.

    x (b, 1, z, y, x) -> [conv conv pool] x 3 -> conv conv -> [up, 1x1x1, join with the skip, conv conv] x 3 -> out

The modules carry the names of the published weights: conv1..conv18 and dconv1..dconv3 in the order of their use.
"""

from collections.abc import Mapping
from itertools import count, pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenunify.config import Mala, validate
from tokenunify.geometry import Coordinate, centre
from tokenunify.learning.networks.base import Network, extent_of
from tokenunify.learning.networks.recompute import Stage
from tokenunify.learning.networks.released import check_keys

SLOPE = 0.005
"""Slope of the leaky ReLU below zero."""
POOLING = (1, 3, 3)


class Pair(Stage):
    """Two convolutions, each with its activation; the network holds them, so that their names stay flat."""

    def forward(self, x: Tensor, *convolutions: nn.Conv3d) -> Tensor:
        for convolution in convolutions:
            x = F.leaky_relu(convolution(x), SLOPE, inplace=True)
        return x


class UNet(Network):
    """The whole network."""

    HEAD = ("conv18.",)
    conv18: nn.Conv3d
    PARTS: Mapping[str, tuple[str, ...]] = {
        "encoder": tuple(f"conv{i}." for i in range(1, 9)),
        "decoder": (*(f"conv{i}." for i in range(9, 18)), *(f"dconv{i}." for i in range(1, 4))),
    }

    def __init__(self, config: Mala, out_channels: int):
        super().__init__(config)
        self.feature_channels = config.filters[0]
        self.pair = Pair()
        number = count(1)

        def add(c_in: int, c_out: int, kernel: int = 3) -> None:
            self.add_module(f"conv{next(number)}", nn.Conv3d(c_in, c_out, kernel))

        for c_in, c_out in zip((1, *config.filters[:-1]), config.filters, strict=True):
            add(c_in, c_out)
            add(c_out, c_out)
        for step, (c_in, c_out) in enumerate(pairwise(config.filters[::-1]), 1):
            up = nn.ConvTranspose3d(c_in, c_in, POOLING, stride=POOLING, groups=c_in, bias=False)
            self.add_module(f"dconv{step}", up)
            add(c_in, c_out, kernel=1)
            add(2 * c_out, c_out)
            add(c_out, c_out)
        add(config.filters[0], out_channels, kernel=1)
        initialise(self)

    def features(self, raw: Tensor) -> Tensor:
        skips, x = [], raw
        for first in (1, 3, 5):
            skips.append(self._pair(x, first))
            x = F.max_pool3d(skips[-1], POOLING)
        x = self._pair(x, 7)
        for step, first in enumerate((9, 12, 15), 1):
            skip = skips.pop()
            x = self.get_submodule(f"conv{first}")(self.get_submodule(f"dconv{step}")(x))
            x = torch.cat([x, skip[(..., *centre(extent_of(skip), extent_of(x)))]], dim=1)
            x = self._pair(x, first + 1)
        return x  # (b, filters[0], z - 28, y - 212, x - 212)

    def _pair(self, x: Tensor, first: int) -> Tensor:
        return self.pair(x, *(self.get_submodule(f"conv{number}") for number in (first, first + 1)))

    def head(self, features: Tensor, extent: Coordinate) -> Tensor:
        return self.conv18(features)


def initialise(network: nn.Module) -> None:
    """Kaiming normal (fan-in) for weights, for the leaky ReLU's slope; biases keep torch's default."""
    for module in network.modules():
        if isinstance(module, (nn.Conv3d, nn.ConvTranspose3d)):
            nn.init.kaiming_normal_(module.weight, a=SLOPE)


def from_released(keys: dict) -> UNet:
    """The network that the published class builds from these constructor keys, and from other widths."""
    check_keys(keys, {"cls": ("UNet3D_MALA",), "if_sigmoid": (True,)}, free=("output_nc", "widths"))
    filters = keys.get("widths", Mala().filters)
    return UNet(validate(Mala, {"filters": filters}, "network"), keys.get("output_nc", 3))
