"""Perceiver Resampler (Algorithm 3 of the paper): a feature map of any size becomes a few visual tokens.

Letters: b batch, t sections, s places per section, d width, r latents, P voxels of a patch.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenunify.config import Resampler
from tokenunify.geometry import Coordinate
from tokenunify.learning.tokens.patches import PatchGrid


class Attention(nn.Module):
    """Multi-head attention of queries to keys, both normalised first."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm_queries, self.norm_keys = nn.LayerNorm(width), nn.LayerNorm(width)
        self.queries = nn.Linear(width, width, bias=False)
        self.keys_values = nn.Linear(width, 2 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, queries: Tensor, keys: Tensor) -> Tensor:
        q = self._split(self.queries(self.norm_queries(queries)))  # (b, heads, queries, d / heads)
        k, v = map(self._split, self.keys_values(self.norm_keys(keys)).chunk(2, dim=-1))
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.out(mixed.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def feed_forward(width: int) -> nn.Sequential:
    """Norm and the usual two-layer perceptron."""
    return nn.Sequential(
        nn.LayerNorm(width), nn.Linear(width, 4 * width, bias=False), nn.GELU(), nn.Linear(4 * width, width, bias=False)
    )


class PerceiverResampler(nn.Module):
    """Predicts the patch at a given place from the features of a crop, through `latents` visual tokens.

    Time is the z section, with learned embeddings. Beyond Algorithm 3 a place in the section is embedded too:
    convolutions, unlike the image encoders that it was made for, do not tell their features where they are.
    """

    def __init__(self, config: Resampler, channels: int, grid: PatchGrid, stride: Coordinate):
        super().__init__()
        width, (_, ny, nx) = config.width, grid.count
        self.grid, self.places = grid, (grid.extent[0] // stride[0], ny, nx)
        self.project = nn.Linear(channels, width)
        self.sections = nn.Parameter(torch.randn(self.places[0], 1, width) * 0.02)
        self.in_section = nn.Parameter(torch.randn(1, ny * nx, width) * 0.02)
        self.latents = nn.Parameter(torch.randn(config.latents, width) * 0.02)
        self.layers = nn.ModuleList(
            nn.ModuleList([Attention(width, config.heads), feed_forward(width)]) for _ in range(config.layers)
        )
        self.query = nn.Embedding(grid.number, width)
        self.read = Attention(width, config.heads)
        z, y, x = grid.patch
        self.out = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, z * y * x))

    def forward(self, features: Tensor, patch: Tensor) -> Tensor:
        """Predicted patch (b, P) number `patch` (b,) from the features (b, c, z, y, x) of the covered part."""
        query = self.query(patch)[:, None]  # (b, 1, d)
        return self.out(query + self.read(query, self.resample(features)))[:, 0]

    def resample(self, features: Tensor) -> Tensor:
        """Visual tokens (b, r, d)."""
        cells = F.adaptive_avg_pool3d(features, self.places)  # (b, c, t, ny, nx): one feature per section and patch
        tokens = self.project(cells.flatten(3).permute(0, 2, 3, 1))  # (b, t, s, d)
        tokens = (tokens + self.sections + self.in_section).flatten(1, 2)
        latents = self.latents.expand(len(tokens), -1, -1)
        for layer in self.layers:
            attention, perceptron = layer.children()
            latents = latents + attention(latents, torch.cat([tokens, latents], dim=1))
            latents = latents + perceptron(latents)
        return latents
