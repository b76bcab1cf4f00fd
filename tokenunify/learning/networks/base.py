"""What training and prediction know of every network: a body that makes features, and a head that reads them."""

from collections.abc import Mapping
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tokenunify.config import Architecture
from tokenunify.errors import InputError
from tokenunify.geometry import Coordinate


class Network(nn.Module):
    """Affinities (b, c, z, y, x) in [0, 1] from raw (b, 1, z, y, x) in [0, 1], one channel per offset.

    With offsets=None it has one channel, whose `logits` are predicted raw intensities. All else is the body, which
    pre-training hands on to fine-tuning.
    """

    HEAD: tuple[str, ...]
    """Prefixes of the head's names in the state dict."""
    PARTS: Mapping[str, tuple[str, ...]]
    """Prefixes of the parts, as the description names them, that fine-tuning can train by themselves."""
    UNUSED: tuple[str, ...] = ()
    """Prefixes of published tensors that no output depends on."""
    MEMORY_FORMAT = torch.channels_last_3d
    """The layout that the network is fast in: this one suits convolutions in low precision."""
    feature_channels: int
    feature_stride: Coordinate = (1, 1, 1)
    """Voxels of the output per voxel of the features."""

    def __init__(self, config: Architecture):
        super().__init__()
        self.config = config

    def features(self, raw: Tensor) -> Tensor:
        """The last feature map (b, feature_channels, z, y, x); it may be coarser than the output."""
        raise NotImplementedError

    def head(self, features: Tensor, extent: Coordinate) -> Tensor:
        """Log-odds (or intensities), (b, c, *extent), of the output that belongs to the features."""
        raise NotImplementedError

    def forward(self, raw: Tensor) -> Tensor:
        return torch.sigmoid(self.logits(raw))

    def logits(self, raw: Tensor) -> Tensor:
        """The affinities' log-odds, or predicted intensities; smaller than the crop where convolutions are valid."""
        extent = output_extent(self.config, extent_of(raw))  # first, for it refuses a crop that does not suit
        return self.head(self.features(raw), extent)

    def train(self, mode: bool = True) -> Self:
        """As for every module, but frozen batch normalisation keeps to its running statistics, and keeps them."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, _BatchNorm) and module.affine and not module.weight.requires_grad:
                module.eval()
        return self


def extent_of(x: Tensor) -> Coordinate:
    """Extent (z, y, x) of a map (b, c, z, y, x)."""
    depth, height, width = x.shape[2:]
    return depth, height, width


def output_extent(config: Architecture, crop: Coordinate) -> Coordinate:
    """Extent of a crop's output; raises InputError for a crop that the network cannot take."""
    try:
        return config.output_extent(crop)
    except ValueError as error:
        raise InputError(f"the crop {error}; change finetune.crop or predict.crop") from None
