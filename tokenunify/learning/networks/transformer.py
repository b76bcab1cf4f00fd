"""A pre-norm transformer on voxel patches (Dosovitskiy et al., 2021, arXiv:2010.11929).

Letters: b batch, n tokens, h heads, d the width of a token. The modules carry the names of the published UNETR weights.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from tokenunify.geometry import Coordinate
from tokenunify.learning.networks.recompute import Stage


def to_patches(raw: Tensor, patch: Coordinate) -> Tensor:
    """Tokens (b, n, voxels) of raw (b, 1, z, y, x): patches in raster order, their voxels in the order y, x, z."""
    b, _, z, y, x = raw.shape
    dz, dy, dx = patch
    split = raw.reshape(b, z // dz, dz, y // dy, dy, x // dx, dx)
    return split.permute(0, 1, 3, 5, 4, 6, 2).reshape(b, -1, dz * dy * dx)


def from_patches(values: Tensor, patch: Coordinate, extent: Coordinate) -> Tensor:
    """The map (b, c, z, y, x) of tokens (b, n, c * voxels), voxels in raster order."""
    grid = [n // p for n, p in zip(extent, patch, strict=True)]
    split = values.reshape(len(values), *grid, -1, *patch)  # (b, gz, gy, gx, c, dz, dy, dx)
    return split.permute(0, 4, 1, 5, 2, 6, 3, 7).reshape(len(values), -1, *extent)


class PreNorm(Stage):
    """Layer normalisation before a module."""

    def __init__(self, hidden: int, module: nn.Module):
        super().__init__()
        self.norm, self.fn = nn.LayerNorm(hidden), module

    def forward(self, x: Tensor) -> Tensor:
        return self.fn(self.norm(x))


class Attention(nn.Module):
    """Self-attention of all tokens, (b, n, d) -> (b, n, d); each head is `width` wide."""

    def __init__(self, hidden: int, heads: int, width: int, dropout: float):
        super().__init__()
        self.heads = heads
        self.to_qkv = nn.Linear(hidden, 3 * heads * width, bias=False)
        self.to_out = nn.Sequential(nn.Linear(heads * width, hidden), nn.Dropout(dropout))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.to_qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # each (b, h, n, width)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.to_out(y.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """Two layers that see each token by itself, (b, n, d) -> (b, n, d)."""

    def __init__(self, hidden: int, mlp: int, dropout: float):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(hidden, mlp), nn.GELU(), nn.Dropout(dropout), nn.Linear(mlp, hidden), nn.Dropout(dropout)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Transformer(nn.Module):
    """The layers: attention and feed-forward, each added to its input."""

    def __init__(self, *, layers: int, hidden: int, heads: int, width: int, mlp: int, dropout: float = 0.0):
        super().__init__()

        def layer() -> nn.ModuleList:
            attention, feed_forward = Attention(hidden, heads, width, dropout), FeedForward(hidden, mlp, dropout)
            return nn.ModuleList([PreNorm(hidden, attention), PreNorm(hidden, feed_forward)])

        self.layers = nn.ModuleList(layer() for _ in range(layers))

    def forward(self, x: Tensor) -> list[Tensor]:
        """The tokens (b, n, d) behind every layer."""
        outputs = []
        for layer in self.layers:
            attention, feed_forward = layer.children()
            x = x + attention(x)
            x = x + feed_forward(x)
            outputs.append(x)
        return outputs
