"""Activation checkpointing (Chen et al. 2016, arXiv:1604.06174): a stage's maps are made again in the backward pass."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


class Stage(nn.Module):
    """A part of a network's body, of which training keeps nothing but the inputs where it is `recomputed`."""

    recomputed = False

    def __call__(self, *inputs: Any) -> Any:
        if not (self.recomputed and torch.is_grad_enabled()):
            return super().__call__(*inputs)

        def contexts() -> tuple:
            return nullcontext(), buffers_kept(self)

        return checkpoint(super().__call__, *inputs, use_reentrant=False, context_fn=contexts)


def recompute(module: nn.Module) -> None:
    """Have the outermost stages of a module recomputed: one inside another would be computed three times."""
    if isinstance(module, Stage):
        module.recomputed = True
    else:
        for child in module.children():
            recompute(child)


@contextmanager
def buffers_kept(module: nn.Module) -> Iterator[None]:
    """Batch normalisation has seen these maps already: its running statistics must not take them in once more."""
    kept = [(buffer, buffer.clone()) for buffer in module.buffers()]
    try:
        yield
    finally:  # recomputation stops with an exception once it has all that the backward pass needs
        for buffer, value in kept:
            buffer.copy_(value)
