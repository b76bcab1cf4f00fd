"""Running statistics of batch normalisation, taken anew where a training is too short for them.

Behind t steps a statistic still holds (1 - momentum)^t of the value that it began with, which says nothing of the data:
a network that learns well then predicts badly.
"""

from collections.abc import Iterable

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from tokenunify.learning.networks.base import Network

LEFT = 0.01
"""Share of the first value from which on a statistic is stale."""
CROPS = 32
"""Training crops, at least, whose mean takes its place."""


def stale(network: Network, step: int) -> list[_BatchNorm]:
    """Layers whose statistics, `step` steps old, hold too much of their first value; frozen ones keep theirs."""
    layers = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    return [
        layer
        for layer in layers
        if layer.momentum is not None and (1 - layer.momentum) ** step > LEFT and layer.weight.requires_grad
    ]


@torch.no_grad()
def renew(task: nn.Module, layers: Iterable[_BatchNorm], batches: Iterable) -> None:
    """Let the layers' statistics be the plain mean over batches that `task` is called with, all else being as it is."""
    tracked = [(layer, layer.num_batches_tracked) for layer in layers]
    kept = [(layer, layer.momentum, count, count.clone()) for layer, count in tracked if count is not None]
    task.eval()  # no dropout: predictions have none
    for layer, *_ in kept:
        layer.reset_running_stats()
        layer.momentum = None  # a cumulative mean
        layer.train()
    for batch in batches:
        task(batch)
    for layer, momentum, count, before in kept:
        layer.momentum = momentum
        count.copy_(before)
    task.train()
