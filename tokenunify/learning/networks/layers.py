"""Residual blocks of UNETR (Hatamizadeh et al. 2022, arXiv:2103.10504), shared by the EMmamba and UNETR networks.

Letters: b batch, c channels, z y x the extent of a map. The modules carry the names that MONAI gives them, which are
those of the published weights. They are written here, and not taken from MONAI, because its import takes 13 s in
every job. Instance normalisation has neither learned parameters nor running statistics.
"""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenunify.geometry import Coordinate
from tokenunify.learning.networks.recompute import Stage

SLOPE = 0.01
"""Slope of the leaky ReLU below zero."""


def named(name: str, module: nn.Module) -> nn.Sequential:
    """A module one level deeper in the state dict."""
    return nn.Sequential(OrderedDict([(name, module)]))


def convolution(c_in: int, c_out: int, kernel: Coordinate, *, bias: bool = False) -> nn.Sequential:
    """A convolution that keeps the extent of the map (odd kernels)."""
    z, y, x = kernel
    return named("conv", nn.Conv3d(c_in, c_out, kernel, padding=(z // 2, y // 2, x // 2), bias=bias))


def upsampling(c_in: int, c_out: int, stride: Coordinate = (2, 2, 2)) -> nn.Sequential:
    """A transposed convolution that makes a map finer by the stride."""
    return named("conv", nn.ConvTranspose3d(c_in, c_out, stride, stride=stride, bias=False))


def instance_norm(x: Tensor) -> Tensor:
    """Every map (z, y, x) to mean 0 and variance 1: on a CPU in a third of the time of the function of this name."""
    return F.group_norm(x, x.shape[1])


class ResBlock(Stage):
    """Two convolutions and a shortcut: (b, c_in, z, y, x) -> (b, c_out, z, y, x)."""

    def __init__(self, c_in: int, c_out: int, kernel: Coordinate):
        super().__init__()
        self.conv1 = convolution(c_in, c_out, kernel)
        self.conv2 = convolution(c_out, c_out, kernel)
        self.conv3 = convolution(c_in, c_out, (1, 1, 1)) if c_in != c_out else None

    def forward(self, x: Tensor) -> Tensor:
        y = F.leaky_relu(instance_norm(self.conv1(x)), SLOPE, inplace=True)
        y = instance_norm(self.conv2(y))
        shortcut = x if self.conv3 is None else instance_norm(self.conv3(x))
        return F.leaky_relu(y.add_(shortcut), SLOPE, inplace=True)


class UpBlock(Stage):
    """A map made finer by the stride and joined with a skip: (b, c_in, z, y, x) -> (b, c_out, stride * (z, y, x))."""

    def __init__(self, c_in: int, c_out: int, kernel: Coordinate, stride: Coordinate = (2, 2, 2)):
        super().__init__()
        self.transp_conv = upsampling(c_in, c_out, stride)
        self.conv_block = ResBlock(2 * c_out, c_out, kernel)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.conv_block(torch.cat([self.transp_conv(x), skip], dim=1))
