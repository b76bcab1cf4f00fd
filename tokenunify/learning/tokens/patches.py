"""A crop as a sequence of patches, the tokens of pre-training.

Letters: b batch, K number of patches, P voxels of a patch; patches are numbered in raster order, z slowest.
"""

from dataclasses import dataclass
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenunify.config import Architecture
from tokenunify.geometry import Coordinate


@dataclass(frozen=True)
class PatchGrid:
    """The whole patches of the region of a crop that the network's output covers."""

    origin: Coordinate
    """First voxel of the output in the crop; 0 unless the network's convolutions are valid."""
    count: Coordinate
    patch: Coordinate

    @classmethod
    def of(cls, network: Architecture, crop: Coordinate, patch: Coordinate) -> "PatchGrid":
        """The patches of a network's output, from the output's first voxel on."""
        output = network.output_extent(crop)
        z, y, x = ((c - o) // 2 for c, o in zip(crop, output, strict=True))
        nz, ny, nx = (o // p for o, p in zip(output, patch, strict=True))
        return cls((z, y, x), (nz, ny, nx), patch)

    @property
    def number(self) -> int:
        """K"""
        return prod(self.count)

    @property
    def extent(self) -> Coordinate:
        """Voxels that all patches cover."""
        z, y, x = (n * p for n, p in zip(self.count, self.patch, strict=True))
        return z, y, x

    def of_crop(self, crop: Tensor) -> Tensor:
        """(b, 1, z, y, x) as the network is given it, to the part that the patches cover."""
        z, y, x = (slice(o, o + n) for o, n in zip(self.origin, self.extent, strict=True))
        return crop[:, :, z, y, x]

    def of_output(self, output: Tensor) -> Tensor:
        """(b, c, z, y, x) as the network gives it, to the part that the patches cover."""
        z, y, x = self.extent
        return output[:, :, :z, :y, :x]

    def of_features(self, features: Tensor, stride: Coordinate) -> Tensor:
        """A feature map (b, c, z, y, x), coarser than the output by the stride, to the part that the patches cover."""
        z, y, x = (n // s for n, s in zip(self.extent, stride, strict=True))
        return features[:, :, :z, :y, :x]

    def split(self, covered: Tensor) -> Tensor:
        """(b, 1, z, y, x) of the covered part to patches (b, K, P)."""
        (nz, ny, nx), (pz, py, px) = self.count, self.patch
        cells = covered.reshape(len(covered), nz, pz, ny, py, nx, px)
        return cells.permute(0, 1, 3, 5, 2, 4, 6).reshape(len(covered), self.number, -1)

    def join(self, patches: Tensor) -> Tensor:
        """Patches (b, K, P) to the covered part (b, 1, z, y, x)."""
        (nz, ny, nx), (pz, py, px) = self.count, self.patch
        cells = patches.reshape(len(patches), nz, ny, nx, pz, py, px)
        return cells.permute(0, 1, 4, 2, 5, 3, 6).reshape(len(patches), 1, *self.extent)

    def voxels(self, chosen: Tensor) -> Tensor:
        """A choice of patches (b, K) as voxels of the covered part, bool (b, 1, z, y, x)."""
        return self.join(chosen[:, :, None].expand(-1, -1, prod(self.patch)))

    def hidden_in(self, crop: Tensor, hidden: Tensor) -> Tensor:
        """Hidden patches (b, K) as voxels of the whole crop; what no patch covers is never hidden."""
        before, extent = self.origin, crop.shape[2:]
        after = [n - o - e for n, o, e in zip(extent, before, self.extent, strict=True)]
        padding = [width for pair in zip(reversed(before), reversed(after), strict=True) for width in pair]
        return F.pad(self.voxels(hidden).to(torch.uint8), padding).bool()
