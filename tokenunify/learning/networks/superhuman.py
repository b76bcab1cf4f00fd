"""Superhuman: the residual symmetric U-Net of Lee et al., 2017 (arXiv:1706.00120), for anisotropic and isotropic EM.

Letters: b batch, c channels, z y x the extent of a map; level 0 is full resolution, the last level the bottleneck.

    x (b, 1, z, y, x) -> embed_in -> [conv 0 -> pool] ... -> center -> [up, merge with the skip, conv] ... -> out

The modules carry the names of the published weights: conv0.. of the encoder, center, then up0/cat0 and the decoder's
conv blocks, whose numbers run on.
"""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenunify.config import Superhuman, SymmetricUNet, validate
from tokenunify.geometry import Coordinate
from tokenunify.learning.networks.base import Network
from tokenunify.learning.networks.recompute import Stage
from tokenunify.learning.networks.released import check_keys


def convolution(c_in: int, c_out: int, kernel: Coordinate, *, bias: bool, stride: Coordinate = (1, 1, 1)) -> nn.Conv3d:
    """A convolution that keeps the extent of the map, divided by the stride (odd kernels)."""
    z, y, x = kernel
    return nn.Conv3d(c_in, c_out, kernel, stride=stride, padding=(z // 2, y // 2, x // 2), bias=bias)


def normalisation(channels: int, config: SymmetricUNet) -> nn.Module:
    """Batch or instance normalisation with learned scale and shift."""
    if config.normalisation == "batch":
        return nn.BatchNorm3d(channels, momentum=config.norm_momentum)
    return nn.InstanceNorm3d(channels, affine=True)


class Block(Stage):
    """One convolution that changes the channels, then a residual pair."""

    def __init__(self, c_in: int, c_out: int, config: SymmetricUNet):
        super().__init__()
        first, pair = config.first_kernel, config.block_kernel
        self.block1 = nn.Sequential(
            convolution(c_in, c_out, first, bias=False), normalisation(c_out, config), nn.ELU(inplace=True)
        )
        self.block2 = nn.Sequential(
            convolution(c_out, c_out, pair, bias=False),
            normalisation(c_out, config),
            nn.ELU(inplace=True),
            convolution(c_out, c_out, pair, bias=False),
        )
        self.block3 = normalisation(c_out, config)
        self.activation = nn.ELU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        residual = self.block1(x)  # (b, c_out, z, y, x)
        return self.activation(self.block3(residual + self.block2(residual)))


def upsampling(c_in: int, c_out: int, config: SymmetricUNet) -> nn.Module:
    """Finer by the pooling factor, and 1x1x1 to the skip's channels.

    The 1x1x1 convolution, "1" in the published weights, commutes with interpolation (whose weights add up to one),
    so it runs first, on the small map.
    """
    pointwise = convolution(c_in, c_out, (1, 1, 1), bias=True)
    if config.upsampling == "trilinear":
        enlarge = nn.Upsample(scale_factor=config.pooling, mode="trilinear", align_corners=True)
        return nn.Sequential(OrderedDict([("1", pointwise), ("0", enlarge)]))
    stride = config.pooling
    return nn.Sequential(nn.ConvTranspose3d(c_in, c_in, stride, stride=stride, groups=c_in), pointwise)


class UNet(Network):
    """The whole network."""

    HEAD = ("out_put.",)
    config: SymmetricUNet

    def __init__(self, config: SymmetricUNet, out_channels: int):
        super().__init__(config)
        filters = config.filters
        self.feature_channels, self.feature_stride = filters[0], config.embed_stride
        self.depth = len(filters) - 1
        levels = range(self.depth)
        self.PARTS = {  # the numbers of the decoder's blocks depend on the depth
            "encoder": ("embed_in.", *(f"conv{level}." for level in levels), "center."),
            "decoder": (
                *(f"{name}." for step in levels for name in (f"up{step}", f"cat{step}", f"conv{self.depth + step}")),
                "embed_out.",
            ),
        }
        self.embed_in = nn.Sequential(
            convolution(1, filters[0], config.embed_kernel, bias=True, stride=config.embed_stride), nn.ELU(inplace=True)
        )
        for level in range(self.depth):
            self.add_module(f"conv{level}", Block(filters[max(level - 1, 0)], filters[level], config))
        self.center = Block(filters[-2], filters[-1], config)
        for step, level in enumerate(reversed(range(self.depth))):
            merged = filters[level] * (2 if config.merge == "cat" else 1)
            self.add_module(f"up{step}", upsampling(filters[level + 1], filters[level], config))
            self.add_module(f"cat{step}", nn.Sequential(normalisation(merged, config), nn.ELU(inplace=True)))
            self.add_module(f"conv{self.depth + step}", Block(merged, filters[level], config))
        self.embed_out = nn.Sequential(
            convolution(filters[0], filters[0], config.embed_kernel, bias=True), nn.ELU(inplace=True)
        )
        self.out_put = nn.Sequential(convolution(filters[0], out_channels, (1, 1, 1), bias=True))
        initialise(self)

    def features(self, raw: Tensor) -> Tensor:
        return self.embed_out(self.maps(raw)[-1])

    def maps(self, raw: Tensor) -> list[Tensor]:
        """The bottleneck's map and those of the decoder's levels, from coarse to fine."""
        skips = []
        x = self.embed_in(raw)  # (b, filters[0], z, y, x), divided by embed_stride
        for level in range(self.depth):
            x = self.get_submodule(f"conv{level}")(x)
            skips.append(x)
            x = F.max_pool3d(x, self.config.pooling)
        x = self.center(x)  # (b, filters[-1], z / pooling^depth, ...)
        maps = [x]
        for step, skip in enumerate(reversed(skips)):
            x = self.get_submodule(f"up{step}")(x)
            x = x + skip if self.config.merge == "add" else torch.cat([x, skip], dim=1)
            x = self.get_submodule(f"conv{self.depth + step}")(self.get_submodule(f"cat{step}")(x))
            maps.append(x)
        return maps

    def head(self, features: Tensor, extent: Coordinate) -> Tensor:
        x = self.out_put(features)
        return x if x.shape[2:] == extent else F.interpolate(x, extent, mode="trilinear", align_corners=True)


def initialise(network: nn.Module) -> None:
    """Kaiming normal (fan-in, gain sqrt 2) for convolutions, plain repetition for transposed ones, zero for biases."""
    for module in network.modules():
        if isinstance(module, nn.Conv3d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        elif isinstance(module, nn.ConvTranspose3d):
            nn.init.ones_(module.weight)
        else:
            continue
        if module.bias is not None:
            nn.init.zeros_(module.bias)


OPTIONS = {
    "in_planes": (1,),
    "upsample_mode": ("bilinear", "transposeS"),
    "merge_mode": ("cat", "add"),
    "pad_mode": ("zero",),
    "bn_mode": ("async", "sync"),
    "relu_mode": ("elu",),
}
"""Constructor keys of the published classes with the values that this network covers, their default first."""


def from_released(keys: dict) -> UNet:
    """The network that the published class builds from these constructor keys; its weights load by name."""
    check_keys(keys, {"cls": ("UNet_PNI",), **OPTIONS}, free=("out_planes", "filters"))
    return UNet(validate(Superhuman, released_options(keys), "network"), keys.get("out_planes", 3))


def released_options(keys: dict) -> dict:
    """Our names and values of the published constructor's keys."""
    return {
        "filters": keys.get("filters", Superhuman().filters),
        "merge": keys.get("merge_mode", "cat"),
        "norm_momentum": 0.001,
        "upsampling": "transpose" if keys.get("upsample_mode") == "transposeS" else "trilinear",
    }
