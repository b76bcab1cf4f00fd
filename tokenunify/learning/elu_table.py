"""ELU in low precision by table: exp costs a CPU more than the convolutions that it follows.

Numbers of 16 bits have 65,536 values, so a table holds torch's own result of each: the same bits, several times faster.
"""

from functools import cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tokenunify.kernels.compiled import loop

MOST_THREADS = 4
"""One thread looks up as fast as some four compute."""


def use_tables(network: nn.Module) -> None:
    """Replace the ELUs of a network that only predicts on a CPU, with at most MOST_THREADS threads."""
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.ELU):
                setattr(module, name, TableELU(child))


class TableELU(nn.Module):
    """An ELU that overwrites its input, which may have any dtype and layout; no gradients."""

    def __init__(self, elu: nn.ELU):
        super().__init__()
        self.alpha = elu.alpha

    def forward(self, x: Tensor) -> Tensor:
        dense = x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last_3d)
        if x.dtype not in (torch.bfloat16, torch.float16) or not dense:
            return F.elu(x, self.alpha, inplace=True)
        look_up(_codes(x.as_strided((x.numel(),), (1,))), _table(x.dtype, self.alpha))
        return x


@cache
def _table(dtype: torch.dtype, alpha: float) -> np.ndarray:
    """The bits of the ELU of every number of the type, by the number's bits: one for all ELUs stays in the cache."""
    every = torch.from_numpy(np.arange(1 << 16, dtype=np.uint16).view(np.int16))
    return _codes(F.elu(every.view(dtype), alpha))


def _codes(values: Tensor) -> np.ndarray:
    """The bits of numbers of 16 bits, uint16, in the same memory."""
    return values.view(torch.int16).numpy().view(np.uint16)


@loop
def look_up(codes: np.ndarray, table: np.ndarray) -> None:
    """Replace each code by its entry in the table."""
    for i in range(len(codes)):
        codes[i] = table[codes[i]]
