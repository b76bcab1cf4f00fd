"""A plain 3D U-Net (Çiçek et al., 2016, arXiv:1606.06650) with residual blocks (Zhang et al., 2018, arXiv:1711.10684).

Letters: b batch, c channels, z y x the extent of a map; level 0 is full resolution, the last level the bottleneck.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenunify.config import ResUnet
from tokenunify.geometry import Coordinate
from tokenunify.learning.networks.base import Network
from tokenunify.learning.networks.recompute import Stage


class Block(Stage):
    """Two convolutions and a shortcut: (b, c_in, z, y, x) -> (b, c_out, z, y, x)."""

    def __init__(self, c_in: int, c_out: int, kernel: Coordinate, config: ResUnet):
        super().__init__()
        z, y, x = kernel
        padding = (z // 2, y // 2, x // 2)
        self.first = nn.Conv3d(c_in, c_out, kernel, padding=padding, bias=False)
        self.first_norm = normalisation(c_out, config)
        self.second = nn.Conv3d(c_out, c_out, kernel, padding=padding, bias=False)
        self.second_norm = normalisation(c_out, config)
        self.shortcut = nn.Conv3d(c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.first_norm(self.first(x)), inplace=True)
        return F.relu(self.shortcut(x) + self.second_norm(self.second(y)), inplace=True)


def normalisation(channels: int, config: ResUnet) -> nn.Module:
    """Instance or group normalisation with learned scale and shift."""
    if config.normalisation == "group":
        return nn.GroupNorm(config.groups, channels)
    return nn.InstanceNorm3d(channels, affine=True)


class UNet(Network):
    """The whole network; its convolutions keep torch's default initialisation."""

    HEAD = ("out.",)
    MEMORY_FORMAT = torch.contiguous_format  # instance normalisation is several times slower in the other
    PARTS: Mapping[str, tuple[str, ...]] = {"encoder": ("down.",), "decoder": ("enlarge.", "up.")}

    def __init__(self, config: ResUnet, out_channels: int):
        super().__init__(config)
        filters, kernels, self.poolings = config.filters, config.kernels, config.poolings
        self.feature_channels = filters[0]
        self.down = nn.ModuleList(
            Block(c_in, c_out, kernel, config)
            for c_in, c_out, kernel in zip((1, *filters[:-1]), filters, kernels, strict=True)
        )
        levels = range(len(self.poolings))  # of the decoder, by the level that a step leads to
        self.enlarge = nn.ModuleList(
            nn.ConvTranspose3d(filters[i + 1], filters[i], self.poolings[i], stride=self.poolings[i]) for i in levels
        )
        self.up = nn.ModuleList(Block(2 * filters[i], filters[i], kernels[i], config) for i in levels)
        self.out = nn.Conv3d(filters[0], out_channels, 1)

    def features(self, raw: Tensor) -> Tensor:
        x, skips = self.down[0](raw), []
        for block, pooling in zip(self.down[1:], self.poolings, strict=True):
            skips.append(x)
            x = block(F.max_pool3d(x, pooling))
        for level in reversed(range(len(skips))):
            x = self.up[level](torch.cat([self.enlarge[level](x), skips[level]], dim=1))
        return x  # (b, filters[0], z, y, x)

    def head(self, features: Tensor, extent: Coordinate) -> Tensor:
        return self.out(features)
