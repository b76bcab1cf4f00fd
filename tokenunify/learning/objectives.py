"""The task of fine-tuning: its losses, each over the voxels where a mask says that the target is known.

Shapes: (b, c, z, y, x), or (c, z, y, x) for one crop.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tokenunify.config import Finetune
from tokenunify.learning.networks.base import Network
from tokenunify.learning.task import Batch, Task

Array = Tensor | np.ndarray
LOWEST, HIGHEST = 0.05, 0.99
"""The fraction of ones is clipped to this range before weights are made of it, as in the published code."""


def class_weights(
    targets: Array, mask: Array | None = None, *, max_weight: float | None = None, balance: str = "joint"
) -> Tensor:
    """Weights that give ones and zeros of a crop the same total; the more frequent class has weight 1.

    With p the fraction of ones: zeros weigh p / (1 - p) where p > 0.5, else ones weigh (1 - p) / p. It is taken over
    all channels of a crop (balance="joint", as published) or over each channel by itself (balance="channel").
    Where all targets are equal every weight is 1.
    """
    targets = _float(targets)
    known = torch.ones_like(targets) if mask is None else _float(mask)
    axes = (-4, -3, -2, -1) if balance == "joint" else (-3, -2, -1)
    total = known.sum(axes, keepdim=True)
    fraction = (targets * known).sum(axes, keepdim=True) / total.clamp(min=1)
    p = fraction.clamp(LOWEST, HIGHEST)
    ones, zeros = ((1 - p) / p).clamp(min=1), (p / (1 - p)).clamp(min=1)
    weights = torch.where(targets > 0.5, ones, zeros)
    weights = torch.where((fraction == 0) | (fraction == 1), torch.ones_like(weights), weights)
    return weights if max_weight is None else weights.clamp(max=max_weight)


def weighted_mse(prediction: Array, targets: Array, weights: Array | None = None, mask: Array | None = None) -> Tensor:
    """Sum of w (p - t)^2 over all channels, per known voxel: the sum over channels is not divided by their number."""
    error = (_float(prediction) - _float(targets)) ** 2
    weighted = error if weights is None else error * _float(weights)
    return _masked_mean(weighted, mask) * error.shape[-4]


def mse(prediction: Array, targets: Array, mask: Array | None = None) -> Tensor:
    """Mean squared error where the mask is set."""
    return _masked_mean((_float(prediction) - _float(targets)) ** 2, mask)


def bce(logits: Array, targets: Array, mask: Array | None = None) -> Tensor:
    """Mean binary cross-entropy, in nats, where the mask is set."""
    logits = _float(logits)
    entropy = F.binary_cross_entropy_with_logits(logits, _float(targets).to(logits.dtype), reduction="none")
    return _masked_mean(entropy, mask)


class AffinityTask(Task):
    """A network that learns affinities: batches hold raw (b, 1, z, y, x), targets and mask (b, c, z, y, x)."""

    def __init__(self, network: Network, config: Finetune):
        super().__init__()
        self.network, self.config = network, config
        self.weights = {"affinities": 1.0}

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        logits = self.network.logits(batch["raw"])
        return {"affinities": affinity_loss(logits, batch["targets"], batch["mask"], self.config)}

    def counts(self, batch: Batch) -> dict[str, float]:
        return {"affinities": batch["mask"].sum().item()}


def affinity_loss(logits: Tensor, targets: Tensor, mask: Tensor, config: Finetune) -> Tensor:
    """The configured loss, from the network's logits."""
    if config.loss == "bce":
        return bce(logits, targets, mask)
    affinities = torch.sigmoid(_float(logits))
    if config.loss == "mse":
        return mse(affinities, targets, mask)
    weights = class_weights(targets, mask, max_weight=config.max_weight, balance=config.balance)
    return weighted_mse(affinities, targets, weights, mask)


def _masked_mean(values: Tensor, mask: Array | None) -> Tensor:
    if mask is None:
        return values.mean()
    known = _float(mask)
    return (values * known).sum() / known.sum().clamp(min=1)


def _float(values: Array) -> Tensor:
    """In float64 if it is so already, else in float32."""
    values = torch.as_tensor(values)
    return values.to(torch.promote_types(values.dtype, torch.float32))
