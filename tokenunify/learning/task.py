"""What is trained: samples, the batches that they are stacked to, and a network with its losses."""

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor, nn

from tokenunify.learning.networks.base import Network

Batch = dict[str, Any]
"""Samples stacked by name: tensors (b, ...), and what all samples of a batch share as it is."""


class Samples(Protocol):
    """Anything whose i-th sample, values by name, is a function of i."""

    def __getitem__(self, index: int) -> Mapping[str, Any]: ...


class Task(nn.Module):
    """A network and what it is trained for."""

    network: Network
    weights: Mapping[str, float]
    """Weight of each loss in their sum."""

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Losses by name, each a mean over the targets of this share of the batch; other names are only logged."""
        raise NotImplementedError

    def counts(self, batch: Batch) -> dict[str, float]:
        """Number of targets behind each loss: means of the shares of a batch are weighed by it."""
        raise NotImplementedError

    def observe(self, means: Mapping[str, float]) -> None:
        """Take note, behind each step, of the losses' means over all of its batches and processes."""
