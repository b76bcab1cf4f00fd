"""The selective scan on the CPU: compiled kernels that hold the states of one chunk of tokens at a time.

A kernel scans one group of channels of one sample, chunk after chunk, and keeps the states between chunks alone, from
which the gradient makes those inside a chunk again. A group's channels are the lanes of the innermost loops, which the
compiler turns into vector instructions, and groups are what threads share: what is added up, and in which order, does
not depend on the number of threads.

Letters as in scan.py; t is a token of the chunk, j a lane; tiles are (t, j) or (t, n), states (n, j).
"""

import functools
import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numba import boolean, from_dtype, njit, types
from numba.extending import intrinsic, overload
from torch import Tensor
from torch.autograd.function import once_differentiable

from tokenunify.kernels.compiled import kept

LANES = 32
"""Channels of a group."""
CHUNK = 64
"""Tokens of a chunk."""

OPTIONS = {"nogil": True, "error_model": "numpy"}
# "reassoc", which sums over lanes need, would merge the two steps by which `exp` reduces its argument exactly.
exact = njit(**OPTIONS, fastmath={"contract", "nsz"})
summing = njit(**OPTIONS, fastmath={"contract", "nsz", "reassoc"})


@intrinsic
def _float_of_bits(typing_context, bits):
    """The float32 that an int32 represents."""

    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], context.get_value_type(types.float32))

    return types.float32(types.int32), generate


LOG2_E = np.float32(1.44269504)
LN2_HIGH, LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
LEAST, MOST = np.float32(-87.3), np.float32(88.3)
HALF, ONE, TWO = np.float32(0.5), np.float32(1), np.float32(2)
# (e^r - 1 - r) / r^2 for |r| <= ln 2 / 2, from the highest power: expf of the Cephes library (S. Moshier).
EXP = tuple(np.float32(x) for x in (1.98756915e-4, 1.39819995e-3, 8.33345191e-3, 4.16657959e-2, 1.66666655e-1, 0.5))
# artanh(s) / s - 1 for 0 <= s <= 1/3, in powers of s^2 from the highest: its series.
ARTANH = tuple(np.float32(1 / k) for k in (13, 11, 9, 7, 5, 3))


@exact
def _exp32(x):
    x = min(max(x, LEAST), MOST)
    k = np.float32(math.floor(x * LOG2_E + HALF))
    r = x - k * LN2_HIGH - k * LN2_LOW
    p = ((((EXP[0] * r + EXP[1]) * r + EXP[2]) * r + EXP[3]) * r + EXP[4]) * r + EXP[5]
    return (p * r * r + r + ONE) * _float_of_bits((np.int32(k) + np.int32(127)) << np.int32(23))


@exact
def _log1p32(x):
    s = x / (x + TWO)  # log(1 + x) = 2 artanh(s)
    q = s * s
    p = ((((ARTANH[0] * q + ARTANH[1]) * q + ARTANH[2]) * q + ARTANH[3]) * q + ARTANH[4]) * q + ARTANH[5]
    return TWO * (s + s * q * p)


def exp(x):
    """e^x; for float32 in vector instructions, to 1e-7 of it (between e^-87 and e^88)."""
    return math.exp(x)


def log1p(x):
    """log(1 + x) for 0 <= x <= 1; for float32 in vector instructions, to 2e-7 of it."""
    return math.log1p(x)


@overload(exp)
def _exp(x):
    return (lambda x: _exp32(x)) if x == types.float32 else (lambda x: math.exp(x))


@overload(log1p)
def _log1p(x):
    return (lambda x: _log1p32(x)) if x == types.float32 else (lambda x: math.log1p(x))


@exact
def _load(channels, first, tile):
    """Fill a tile with the tokens from `first` on of channels (j, l); returns how many they are."""
    num = min(CHUNK, channels.shape[1] - first)
    for j in range(channels.shape[0]):
        for t in range(num):
            tile[t, j] = channels[j, first + t]
    return num


@exact
def _store(tile, first, channels):
    """Write a tile to the tokens from `first` on of channels (j, l)."""
    num = min(CHUNK, channels.shape[1] - first)
    for j in range(channels.shape[0]):
        for t in range(num):
            channels[j, first + t] = tile[t, j]


@exact
def _enter(u, delta, D, bias, softplus, step, x, y):
    """The step, what enters the states, and what passes them by; delta gets its bias in place."""
    zero = step.dtype.type(0)
    for t in range(CHUNK):
        for j in range(LANES):
            raw = delta[t, j] + bias[j]
            delta[t, j] = raw
            step[t, j] = max(raw, zero) + log1p(exp(-abs(raw))) if softplus else raw
            x[t, j] = step[t, j] * u[t, j]
            y[t, j] = D[j] * u[t, j]


@exact
def _advance(num, step, x, A, B, C, h, y):
    """Take the states through the tokens of a chunk, and add what they give."""
    for t in range(num):
        for n in range(A.shape[0]):
            b, c = B[t, n], C[t, n]
            for j in range(LANES):
                state = exp(step[t, j] * A[n, j]) * h[n, j] + x[t, j] * b
                h[n, j] = state
                y[t, j] += state * c


@exact
def _unroll(num, step, x, A, B, decay, h):
    """All states of a chunk, (t + 1, n, j) from those before it, and what each token left of the former."""
    for t in range(num):
        for n in range(A.shape[0]):
            b = B[t, n]
            for j in range(LANES):
                left = exp(step[t, j] * A[n, j])
                decay[t, n, j] = left
                h[t + 1, n, j] = left * h[t, n, j] + x[t, j] * b


@summing
def _return(num, step, x, A, B, C, decay, h, dy, dh, dA, dB, dC, dx, dstep):
    """Take the gradient of the states, dh, back through the tokens of a chunk; dA's share is added."""
    zero = step.dtype.type(0)
    for t in range(num - 1, -1, -1):
        for n in range(A.shape[0]):
            b, c = B[t, n], C[t, n]
            sum_b = sum_c = zero
            for j in range(LANES):
                adjoint = dh[n, j] + dy[t, j] * c
                sum_b += adjoint * x[t, j]
                sum_c += h[t + 1, n, j] * dy[t, j]
                dx[t, j] += adjoint * b
                dh[n, j] = adjoint
            for j in range(LANES):  # a loop of its own: with too many arrays in one the compiler gives up on vectors
                before = dh[n, j] * decay[t, n, j]
                dh[n, j] = before
                change = before * h[t, n, j]
                dstep[t, j] += change * A[n, j]
                dA[n, j] += change * step[t, j]
            dB[t, n] = sum_b
            dC[t, n] = sum_c


@exact
def _leave(num, u, delta, D, softplus, step, dy, dx, dstep, dD, dbias):
    """From the gradients of x and step to those of u and delta, in place; dD's and dbias's shares are added."""
    one = step.dtype.type(1)
    for t in range(num):
        for j in range(LANES):
            dD[j] += dy[t, j] * u[t, j]
            ddelta = dstep[t, j] + dx[t, j] * u[t, j]
            if softplus:
                ddelta /= one + exp(-delta[t, j])
            dstep[t, j] = ddelta
            dbias[j] += ddelta
            dx[t, j] = dx[t, j] * step[t, j] + D[j] * dy[t, j]


@exact
def _tile(A):
    return np.zeros((CHUNK, LANES), A.dtype)


@exact
def _row(A):
    return np.zeros((CHUNK, A.shape[0]), A.dtype)


def _forward(softplus, u, delta, A, B, C, D, bias, y, states):
    """Scan the channels (j, l) of a group into y; keeps the states before each chunk and after the last."""
    tile_u, tile_delta, step, x, tile_y = _tile(A), _tile(A), _tile(A), _tile(A), _tile(A)
    tile_B, tile_C, h = _row(A), _row(A), np.zeros_like(A)
    for chunk in range(states.shape[0] - 1):
        first = chunk * CHUNK
        states[chunk] = h
        num = _load(u, first, tile_u)
        _load(delta, first, tile_delta)
        _load(B, first, tile_B)
        _load(C, first, tile_C)
        _enter(tile_u, tile_delta, D, bias, softplus, step, x, tile_y)
        _advance(num, step, x, A, tile_B, tile_C, h, tile_y)
        _store(tile_y, first, y)
    states[states.shape[0] - 1] = h


def _backward(softplus, u, delta, A, B, C, D, bias, states, dy, du, ddelta, dB, dC, constant):
    """The gradients of a group, of B and C its share; those of A, D and bias, the rows of `constant`, are added.

    Within a chunk these add up apart: sums of sums lose less than one long sum.
    """
    num_states = A.shape[0]
    tile_u, tile_delta, step, x = _tile(A), _tile(A), _tile(A), _tile(A)
    tile_dy, dx, dstep = _tile(A), _tile(A), _tile(A)
    tile_B, tile_C, tile_dB, tile_dC = _row(A), _row(A), _row(A), _row(A)
    decay, h = np.zeros((CHUNK, *A.shape), A.dtype), np.zeros((CHUNK + 1, *A.shape), A.dtype)
    dh, share = np.zeros_like(A), np.zeros_like(constant)
    for chunk in range(states.shape[0] - 2, -1, -1):
        first = chunk * CHUNK
        h[0] = states[chunk]
        num = _load(u, first, tile_u)
        _load(delta, first, tile_delta)
        _load(B, first, tile_B)
        _load(C, first, tile_C)
        _load(dy, first, tile_dy)
        _enter(tile_u, tile_delta, D, bias, softplus, step, x, dx)
        _unroll(num, step, x, A, tile_B, decay, h)
        dx[:] = 0
        dstep[:] = 0
        share[:] = 0
        dD, dbias = share[num_states], share[num_states + 1]
        _return(num, step, x, A, tile_B, tile_C, decay, h, tile_dy, dh, share, tile_dB, tile_dC, dx, dstep)
        _leave(num, tile_u, tile_delta, D, softplus, step, tile_dy, dx, dstep, dD, dbias)
        constant += share
        _store(dx, first, du)
        _store(dstep, first, ddelta)
        _store(tile_dB, first, dB)
        _store(tile_dC, first, dC)


@functools.cache
def _kernel(function: Callable, dtype: torch.dtype) -> Callable:
    """A kernel compiled for one type; float32 alone is kept on disk, so that jobs at once only ever write the same."""
    number = from_dtype(np.dtype(str(dtype).removeprefix("torch.")))
    channels, lanes, states = types.Array(number, 2, "A"), number[::1], number[:, :, ::1]
    inputs = (channels, channels, number[:, ::1], channels, channels, lanes, lanes)
    gradients = (channels, channels, channels, channels, number[:, ::1])
    rest = (channels, states) if function is _forward else (states, channels, *gradients)
    compiled = kept if dtype == torch.float32 else njit
    return compiled(types.void(boolean, *inputs, *rest), **OPTIONS)(function)


@functools.cache
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """Threads of this process; numba's own are safe neither in several Python threads nor beside torch's."""
    return ThreadPoolExecutor(threads)


def _run(function: Callable, softplus: bool, *arguments: Sequence[Tensor]) -> None:
    """Call a kernel for every group and sample of its arguments (group, sample, ...), in as many threads as torch."""
    if arguments[0][0].is_meta:  # no values: the shapes are what was asked for
        return
    kernel = _kernel(function, arguments[0][0].dtype)
    items = [item for group in zip(*arguments, strict=True) for item in zip(*(x.numpy() for x in group), strict=True)]
    threads = torch.get_num_threads()
    each = map if threads == 1 else _pool(os.getpid(), threads).map
    list(each(lambda item: kernel(softplus, *item), items))


def _shared(values: Tensor, batch: int) -> list[Tensor]:
    """Values of channels, (d, ...) -> a list over groups of (sample, ..., lane), padded with zeros."""
    padded = values.new_zeros(-(-len(values) // LANES), LANES, *values.shape[1:])
    padded.flatten(0, 1)[: len(values)] = values
    return [group.expand(batch, *group.shape) for group in padded.movedim(1, -1).contiguous()]


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
    def forward(ctx, softplus: bool, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        u, num_states = inputs[0], inputs[2].shape[1]
        batch, num, length = u.shape
        y = torch.empty_like(u)
        states = u.new_empty(-(-num // LANES), batch, -(-length // CHUNK) + 1, num_states, LANES)
        _run(_forward, softplus, *_arguments(inputs), y.split(LANES, 1), states)
        last = _channels(states[:, :, -1].movedim(0, 1), num)
        ctx.save_for_backward(*inputs, states)
        ctx.softplus = softplus
        ctx.mark_non_differentiable(last)
        return y, last

    @staticmethod
    @once_differentiable
    def backward(ctx, dy: Tensor, _last: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, states = ctx.saved_tensors
        u, delta, A, B, C, *_ = inputs
        groups, batch = states.shape[:2]
        du, ddelta = torch.empty_like(u), torch.empty_like(delta)
        dB, dC = (x.new_empty(groups, *x.shape) for x in (B, C))
        constant = u.new_zeros(groups, batch, A.shape[1] + 2, LANES)
        maps = (x.split(LANES, 1) for x in (dy, du, ddelta))
        _run(_backward, ctx.softplus, *_arguments(inputs), states, *maps, dB, dC, constant)
        constant = _channels(_sum(constant.movedim(1, 0)), u.shape[1])
        dA, dD, dbias = constant[:, :-2], constant[:, -2], constant[:, -1]
        return None, du, ddelta, dA, _sum(dB), _sum(dC), dD, dbias


def _arguments(inputs: Sequence[Tensor]) -> list[Sequence[Tensor]]:
    """The inputs as kernels take them, (group, sample, ...)."""
    u, delta, A, B, C, D, bias = inputs
    samples = len(u)
    groups = u.split(LANES, 1)
    A, D, bias = (_shared(x, samples) for x in (A, D, bias))
    return [groups, delta.split(LANES, 1), A, [B] * len(groups), [C] * len(groups), D, bias]


def scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, bias: Tensor, *, softplus: bool
) -> tuple[Tensor, Tensor]:
    """The output (b, d, l) and the last states (b, d, n), the latter without a gradient, of float32 or float64 tensors.

    u, delta (b, d, l), in any memory layout; A (d, n); B, C (b, n, l) or (d, n); D, bias (d).
    """
    if B.dim() == C.dim() == 3:
        return _Scan.apply(softplus, u, delta, A, B, C, D, bias)
    # What is constant leaves the recurrence: one scan with B = C = 1 per state, whose output it weights.
    y, last = D[:, None] * u, []
    one, nothing = u.new_ones(len(u), 1, u.shape[2]), torch.zeros_like(D)
    for n in range(A.shape[1]):
        B_n, b = (B[:, n : n + 1], 1.0) if B.dim() == 3 else (one, B[:, n, None])
        C_n, c = (C[:, n : n + 1], 1.0) if C.dim() == 3 else (one, C[:, n, None])
        y_n, last_n = _Scan.apply(softplus, u, delta, A[:, n : n + 1], B_n, C_n, nothing, bias)
        y = y + y_n * (b * c)
        last.append((last_n * b).detach())
    return y, torch.cat(last, dim=2)
