"""PEA: a U-Net that embeds voxels (Huang et al., AAAI 2022, pixel-embedded affinity; its self-correlation only).

The affinity of two voxels is the cosine of the angle between their embeddings, moved to [0, 1]: (cos + 1) / 2.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenunify import affinities
from tokenunify.config import Pea, validate
from tokenunify.geometry import Coordinate
from tokenunify.learning.networks.released import check_keys
from tokenunify.learning.networks.superhuman import OPTIONS, UNet, convolution, initialise, released_options

CLAMP = 1e-6
"""Affinities are kept this far from 0 and 1, where log-odds are infinite."""


class AffinityNetwork(UNet):
    """The U-Net whose head compares the embeddings of a voxel and its partner at each offset."""

    def __init__(self, config: Pea, offsets: Sequence[Coordinate]):
        super().__init__(config, config.embedding)
        self.offsets = offsets

    def head(self, features: Tensor, extent: Coordinate) -> Tensor:
        embedding = F.normalize(super().head(features, extent).float(), dim=1)  # (b, embedding, *extent)
        cosines = torch.cat([cosine(embedding, offset) for offset in self.offsets], dim=1)
        return torch.logit((cosines + 1) / 2, eps=CLAMP)


def cosine(embedding: Tensor, offset: Coordinate) -> Tensor:
    """Dot product (b, 1, z, y, x) of the embedding (b, c, z, y, x) at a voxel v and at v + offset.

    A voxel whose partner is outside the map, which training masks, takes the value of the nearest voxel that has one;
    it is 0 where none has.
    """
    here, there = affinities.pairs(offset, embedding.shape[2:])
    whole = (slice(None), slice(None))
    product = (embedding[(*whole, *here)] * embedding[(*whole, *there)]).sum(1, keepdim=True)
    if product.numel() == 0:
        return embedding.new_zeros(len(embedding), 1, *embedding.shape[2:])
    z, y, x = ((max(0, -o), max(0, o)) for o in offset)
    return F.pad(product, (*x, *y, *z), mode="replicate")


class Embedding(UNet):
    """The published form: its output is the embedding (b, c, z, y, x)."""

    def __init__(self, config: Pea):
        super().__init__(config, config.embedding)

    def forward(self, raw: Tensor) -> Tensor:
        return self.logits(raw)


class DeepEmbedding(Embedding):
    """The published form that embeds the coarser maps of the decoder too.

    Its output are the embeddings (b, c, z, y, x) of the bottleneck and of every level, from coarse to fine.
    """

    HEAD = ("out_put",)

    def __init__(self, config: Pea):
        super().__init__(config)
        self.coarse = [f"out_put{number}" for number in range(1, self.depth + 1)]
        for name, channels in zip(self.coarse, reversed(config.filters[1:]), strict=True):
            self.add_module(name, nn.Sequential(convolution(channels, config.embedding, (1, 1, 1), bias=True)))
        initialise(self)

    def forward(self, raw: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]  # its output is not affinities
        *coarse, finest = self.maps(raw)
        embedded = [self.get_submodule(name)(x) for name, x in zip(self.coarse, coarse, strict=True)]
        return *embedded, self.out_put(self.embed_out(finest))


def from_released(keys: dict) -> Embedding:
    """The network that the published class builds from these constructor keys; its weights load by name."""
    return Embedding(_description(keys, "UNet_PNI_embedding"))


def deep_from_released(keys: dict) -> DeepEmbedding:
    """The same for the published class that embeds every level."""
    return DeepEmbedding(_description(keys, "UNet_PNI_embedding_deep"))


def _description(keys: dict, name: str) -> Pea:
    check_keys(keys, {"cls": (name,), **OPTIONS}, free=("filters", "emd"))
    return validate(Pea, {**released_options(keys), "embedding": keys.get("emd", Pea().embedding)}, "network")
