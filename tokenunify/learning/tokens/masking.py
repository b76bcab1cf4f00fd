"""The objectives of pre-training as two disjoint sets of patches: what the network sees, and what it must predict.

`ranks` (b, K) holds the place of each patch in the order sigma, counted from 0; `cut` (b, 1) the number n of the first
patch that is not seen, counted from 1 as in the paper, so that sigma(<n) are the patches of rank < n - 1.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Sets(NamedTuple):
    """bool (b, K) each; what is in neither is hidden and not predicted."""

    visible: Tensor
    target: Tensor


def random_token(ranks: Tensor, hidden: Tensor) -> Sets:
    """Eq. 2: the `hidden` (b, 1) patches that a random order puts first are predicted from all others."""
    target = ranks < hidden
    return Sets(~target, target)


def next_token(ranks: Tensor, cut: Tensor) -> Sets:
    """Eq. 3: patch n is predicted from those before it."""
    return Sets(ranks < cut - 1, ranks == cut - 1)


def next_all_token(ranks: Tensor, cut: Tensor) -> Sets:
    """Eq. 4: patch n and all that follow are predicted from those before it."""
    return Sets(ranks < cut - 1, ranks >= cut - 1)


def ranks_of(order: Tensor) -> Tensor:
    """Place of each patch in the order sigma (b, K), which names the patch at each place."""
    places = torch.arange(order.shape[1], device=order.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, places)
