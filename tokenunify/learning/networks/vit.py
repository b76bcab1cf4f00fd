"""A plain 3D vision transformer (Dosovitskiy et al., 2021, arXiv:2010.11929) with a linear decoder to voxels.

Letters: b batch, n tokens, d the width of a token, z y x the extent of the crop.

    x (b, 1, z, y, x) -> patches -> tokens (b, n, d) + position -> layers -> voxels (b, feature, z, y, x) -> out
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from tokenunify.config import Vit
from tokenunify.geometry import Coordinate
from tokenunify.learning.networks.base import Network
from tokenunify.learning.networks.transformer import Transformer, from_patches, to_patches

PERIOD = 10_000
"""Longest period of the position embedding, in tokens, over 2 pi."""


class ViT(Network):
    """The whole network; its layers keep torch's default initialisation."""

    HEAD = ("out.",)
    PARTS: Mapping[str, tuple[str, ...]] = {"encoder": ("embed.", "transformer."), "decoder": ("norm.", "decode.")}

    def __init__(self, config: Vit, out_channels: int):
        super().__init__(config)
        z, y, x = self.patch = config.patch
        self.feature_channels = config.feature
        self.embed = nn.Linear(z * y * x, config.hidden)
        self.transformer = Transformer(
            layers=config.layers,
            hidden=config.hidden,
            heads=config.heads,
            width=config.hidden // config.heads,
            mlp=config.mlp,
        )
        self.norm = nn.LayerNorm(config.hidden)
        self.decode = nn.Linear(config.hidden, config.feature * z * y * x)
        self.out = nn.Sequential(  # two convolutions that see across the borders of patches
            nn.Conv3d(config.feature, config.feature, 3, padding=1),
            nn.GELU(),
            nn.Conv3d(config.feature, out_channels, 1),
        )

    def features(self, raw: Tensor) -> Tensor:
        z, y, x = raw.shape[2:]
        tokens = self.embed(to_patches(raw, self.patch))
        grid = (z // self.patch[0], y // self.patch[1], x // self.patch[2])
        tokens = tokens + positions(grid, tokens.shape[-1], tokens.device).to(tokens.dtype)
        return from_patches(self.decode(self.norm(self.transformer(tokens)[-1])), self.patch, (z, y, x))

    def head(self, features: Tensor, extent: Coordinate) -> Tensor:
        return self.out(features)


def positions(grid: Coordinate, width: int, device: torch.device) -> Tensor:
    """Sinusoidal embedding (n, width) of a grid's places in raster order: a sixth each sine and cosine of z, y, x.

    What six does not divide stays 0.
    """
    frequencies = PERIOD ** -(torch.arange(width // 6, device=device) / (width // 6))
    axes = torch.meshgrid(*(torch.arange(n, device=device) for n in grid), indexing="ij")
    angles = torch.stack(axes, dim=-1).reshape(-1, 3, 1) * frequencies  # (n, 3, width // 6)
    waves = torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(1)
    return nn.functional.pad(waves, (0, width - waves.shape[1]))
