"""The Mamba block that reads a map in three orders (Xing et al. 2024, SegMamba, arXiv:2401.13560, figure 3).

Letters: b batch, l tokens, c channels of the map, d = expand * c channels inside, n states, r rank of the step;
z y x the extent of the map, whose tokens stand in raster order: x fastest, z slowest.

    tokens (b, l, c) -> in_proj -> x, gate (b, d, l)
    in each order: x -> causal convolution -> silu -> x_proj -> step, B, C -> selective scan (b, d, l)
    sum of the three orders, times silu(gate) -> out_proj -> (b, l, c)

Orders are forward, backward and by slices: the first token of each slice, then the second of each, and so on. The
names are those of the published weights: conv1d, x_proj, dt_proj, A_log and D, with _b and _s for the other orders.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenunify.errors import InputError
from tokenunify.geometry import Coordinate
from tokenunify.learning.scan import selective_scan

LEAST_STEP, MOST_STEP = 0.001, 0.1
"""Bounds of the step at which a direction starts."""


class Mamba(nn.Module):
    """The block, without residual.

    `slices`: how many chunks of equal length the tokens are cut into for the third order, or "sections" for one per
    z section of the map. `equal_initialisation` lets all three directions start with the steps of Mamba; in the
    published code the forward one alone does, and the others start with steps around 0.7.
    """

    def __init__(
        self,
        channels: int,
        *,
        num_states: int = 16,
        kernel: int = 4,
        expand: int = 2,
        rank: int | None = None,
        slices: int | Literal["sections"] = 5,
        equal_initialisation: bool = False,
    ):
        super().__init__()
        inner = expand * channels
        self.num_states, self.rank, self.slices = num_states, rank or math.ceil(channels / 16), slices
        self.in_proj = nn.Linear(channels, 2 * inner, bias=False)
        for direction in ("", "_b", "_s"):
            self.add_module(f"conv1d{direction}", nn.Conv1d(inner, inner, kernel, groups=inner, padding=kernel - 1))
            self.add_module(f"x_proj{direction}", nn.Linear(inner, self.rank + 2 * num_states, bias=False))
            self.add_module(f"dt_proj{direction}", steps := nn.Linear(self.rank, inner))
            rates = torch.arange(1.0, num_states + 1).log().repeat(inner, 1)  # S4D-real: A = -1, -2, ..., -n
            self.register_parameter(f"A{direction}_log", nn.Parameter(rates))
            self.register_parameter(f"D{direction}", nn.Parameter(torch.ones(inner)))
            if direction == "" or equal_initialisation:
                initialise_steps(steps)
        self.out_proj = nn.Linear(inner, channels, bias=False)

    def forward(self, tokens: Tensor, extent: Coordinate | None = None) -> Tensor:
        """Tokens (b, l, c) of a map of this extent (z, y, x), which "sections" alone need; the result is (b, l, c)."""
        length = tokens.shape[1]
        if self.slices == "sections":
            if extent is None or math.prod(extent) != length:
                raise InputError(f"Mamba: the extent of the map of {length} tokens was {extent}; pass its z, y, x")
            num = extent[0]
        elif length % self.slices:
            raise InputError(
                f"Mamba: {length} tokens cannot be cut into {self.slices} chunks of equal length; change the crop"
            )
        else:
            num = self.slices
        x, gate = self.in_proj(tokens).transpose(1, 2).chunk(2, dim=1)  # (b, d, l) each
        y = self._scan(x, "")
        y = y + self._scan(x.flip(-1), "_b").flip(-1)
        y = y + interleave(self._scan(interleave(x, num), "_s"), length // num)
        return self.out_proj((y * F.silu(gate)).transpose(1, 2))

    def _scan(self, x: Tensor, direction: str) -> Tensor:
        """Convolution and scan with one direction's weights, in the order of x (b, d, l)."""
        conv, x_proj, dt_proj = (self.get_submodule(name + direction) for name in ("conv1d", "x_proj", "dt_proj"))
        A, D = -torch.exp(self.get_parameter(f"A{direction}_log")), self.get_parameter(f"D{direction}")
        x = F.silu(conv(x)[..., : x.shape[2]])
        dt, B, C = x_proj(x.transpose(1, 2)).split((self.rank, self.num_states, self.num_states), dim=2)
        delta = dt_proj(dt).transpose(1, 2)
        y = selective_scan(x, delta, A, B.transpose(1, 2), C.transpose(1, 2), D, delta_softplus=True)
        assert isinstance(y, Tensor)  # the last states were not asked for
        return y


def interleave(x: Tensor, num: int) -> Tensor:
    """Cut the last axis into `num` chunks and take the first of each, the second of each, ...

    Interleaving again with the length of a chunk gives the former order back.
    """
    return x.unflatten(-1, (num, -1)).transpose(-1, -2).flatten(-2)


def initialise_steps(projection: nn.Linear) -> None:
    """Weights uniform within 1 / sqrt(rank), and biases whose softplus is log-uniform between the bounds."""
    bound = projection.in_features**-0.5
    nn.init.uniform_(projection.weight, -bound, bound)
    with torch.no_grad():
        step = torch.empty_like(projection.bias).uniform_(math.log(LEAST_STEP), math.log(MOST_STEP)).exp()
        projection.bias.copy_(step + torch.log(-torch.expm1(-step)))  # the inverse of softplus
