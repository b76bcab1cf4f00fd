"""Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon): momentum made orthogonal, beside AdamW.

The gradient of a layer's weights is mostly of low rank: steps along its few large directions leave the others
untrained. Muon takes the momentum's nearest orthogonal matrix, whose directions are all of one size. A convolution's
weights (c_out, c_in, z, y, x) are the matrix (c_out, c_in z y x).
"""

import torch
from torch import Tensor

MOMENTUM = 0.95
ROOT_MEAN_SQUARE = 0.2
"""Root mean square of a step's entries in units of the learning rate, about AdamW's (Liu et al. 2025)."""
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5


class Muon(torch.optim.Optimizer):
    """For weights of two or more axes of hidden layers; AdamW is for all else."""

    def __init__(self, weights: list[Tensor], lr: float, weight_decay: float):
        super().__init__(weights, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: object = None) -> None:  # type: ignore[override]  # torch lets a caller pass a closure; none does
        """Move every weight."""
        for group in self.param_groups:
            for weights in group["params"]:
                if weights.grad is None:
                    continue
                momentum = self.state[weights].setdefault("momentum", torch.zeros_like(weights))
                momentum.lerp_(weights.grad, 1 - MOMENTUM)
                ahead = weights.grad.lerp(momentum, MOMENTUM).flatten(1)  # Nesterov
                size = ROOT_MEAN_SQUARE * max(ahead.shape) ** 0.5
                change = orthogonal(ahead).view_as(weights)
                weights.mul_(1 - group["lr"] * group["weight_decay"]).sub_(change, alpha=group["lr"] * size)


def orthogonal(matrix: Tensor) -> Tensor:
    """About U V^T of the singular value decomposition U S V^T, by Newton-Schulz iterations (quintic)."""
    a, b, c = COEFFICIENTS
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    x = wide / wide.norm().clamp(min=1e-7)
    for _ in range(ITERATIONS):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return x if wide is matrix else x.T
