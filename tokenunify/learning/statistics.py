"""Running statistics of batch normalisation: a short training leaves them near their start, where they fit no data.

After n steps the start still weighs (1 - momentum)^n: 37 % after 1000 steps at a momentum of 0.001. A network that is
evaluated with such statistics gives anything, however well it trains, so they are estimated anew from training crops.
"""

from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import update_bn

CROPS = 16
"""Training crops whose statistics are averaged."""
FORGOTTEN = 0.01
"""Weight of the start that no longer matters."""


def remember_start(module: nn.Module, steps: int) -> bool:
    """Whether some running statistics of the module still depend on those that it started with."""
    layers = [layer for layer in module.modules() if isinstance(layer, _BatchNorm) and layer.track_running_stats]
    return any(layer.momentum is not None and (1 - layer.momentum) ** steps > FORGOTTEN for layer in layers)


def estimate(module: nn.Module, batches: Iterable[Any]) -> None:
    """Replace the running statistics by their mean over the batches, which the module is called with."""
    update_bn(batches, module)
