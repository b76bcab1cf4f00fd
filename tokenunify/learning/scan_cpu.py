"""The selective scan on the CPU: torch's tensors and gradients around the compiled kernels.

Groups of channels are what threads share: what is added up, and in which order, does not depend on their number.

Letters as in scan.py.
"""

import functools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tokenunify.learning import scan_kernels
from tokenunify.learning.scan_kernels import CHUNK, LANES

Groups = Sequence[Tensor] | Tensor
"""A tensor for each group of channels, each (sample, ...)."""


@functools.cache
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """Threads of this process; numba's own are safe neither in several Python threads nor beside torch's."""
    return ThreadPoolExecutor(threads)


def _run(function: Callable, softplus: bool, *arguments: Groups) -> None:
    """Call a kernel for every group and sample of its arguments (group, sample, ...), in as many threads as torch."""
    if arguments[0][0].is_meta:  # no values: the shapes are what was asked for
        return
    kernel = scan_kernels.compiled(function, arguments[0][0].dtype)
    items = [item for group in zip(*arguments, strict=True) for item in zip(*(x.numpy() for x in group), strict=True)]
    threads = torch.get_num_threads()
    each = map if threads == 1 else _pool(os.getpid(), threads).map
    list(each(lambda item: kernel(softplus, *item), items))


def _channels(lanes: Tensor, num: int) -> Tensor:
    """Values in lanes, (..., group, n, lane) -> (..., channel, n)."""
    return lanes.transpose(-1, -2).flatten(-3, -2)[..., :num, :]


def _sum(parts: Tensor) -> Tensor:
    """The sum over the first axis, in its order whatever the number of threads."""
    total = parts[0].clone()
    for part in parts[1:]:
        total += part
    return total


class _Scan(torch.autograd.Function):
    """The scan with B and C (b, n, l), whose gradient makes the states again."""

    @staticmethod
    def forward(ctx: Any, softplus: bool, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        u, num_states = inputs[0], inputs[2].shape[1]
        batch, num, length = u.shape
        y = torch.empty_like(u)
        states = u.new_empty(-(-num // LANES), batch, -(-length // CHUNK) + 1, num_states, LANES)
        _run(scan_kernels.forward, softplus, *_arguments(inputs), y.split(LANES, 1), states)
        last = _channels(states[:, :, -1].movedim(0, 1), num)
        ctx.save_for_backward(*inputs, states)
        ctx.softplus = softplus
        ctx.mark_non_differentiable(last)
        return y, last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, _last: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, states = ctx.saved_tensors
        u, delta, A, B, C, *_ = inputs
        groups, batch = states.shape[:2]
        du, ddelta = torch.empty_like(u), torch.empty_like(delta)
        dB, dC = (x.new_empty(groups, *x.shape) for x in (B, C))
        constant = u.new_zeros(groups, batch, A.shape[1] + 2, LANES)
        maps = (x.split(LANES, 1) for x in (dy, du, ddelta))
        _run(scan_kernels.backward, ctx.softplus, *_arguments(inputs), states, *maps, dB, dC, constant)
        constant = _channels(_sum(constant.movedim(1, 0)), u.shape[1])
        dA, dD, dbias = constant[:, :-2], constant[:, -2], constant[:, -1]
        return None, du, ddelta, dA, _sum(dB), _sum(dC), dD, dbias


def _arguments(inputs: Sequence[Tensor]) -> list[Groups]:
    """The inputs as kernels take them, (group, sample, ...)."""
    u, delta, A, B, C, D, bias = inputs
    groups, shared = u.split(LANES, 1), []
    for values in (A, D, bias):  # (d, ...) -> (sample, ..., lane) in each group, padded with zeros
        padded = values.new_zeros(len(groups), LANES, *values.shape[1:])
        padded.flatten(0, 1)[: len(values)] = values
        shared.append([lanes.expand(len(u), *lanes.shape) for lanes in padded.movedim(1, -1).contiguous()])
    rates, passed, biases = shared
    return [groups, delta.split(LANES, 1), rates, [B] * len(groups), [C] * len(groups), passed, biases]


def scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, bias: Tensor, *, softplus: bool
) -> tuple[Tensor, Tensor]:
    """The output (b, d, l) and the last states (b, d, n), the latter without a gradient, of float32 or float64 tensors.

    u, delta (b, d, l), in any memory layout; A (d, n); B, C (b, n, l) or (d, n); D, bias (d).
    """
    if B.dim() == C.dim() == 3:
        return _Scan.apply(softplus, u, delta, A, B, C, D, bias)
    # What is constant leaves the recurrence: one scan with B = C = 1 per state, whose output it weights.
    y, states = D[:, None] * u, []
    one, nothing = u.new_ones(len(u), 1, u.shape[2]), torch.zeros_like(D)
    for n in range(A.shape[1]):
        B_n, b = (B[:, n : n + 1], 1.0) if B.dim() == 3 else (one, B[:, n, None])
        C_n, c = (C[:, n : n + 1], 1.0) if C.dim() == 3 else (one, C[:, n, None])
        y_n, last_n = _Scan.apply(softplus, u, delta, A[:, n : n + 1], B_n, C_n, nothing, bias)
        y = y + y_n * (b * c)
        states.append((last_n * b).detach())
    return y, torch.cat(states, dim=2)
