"""Compiled loops of the selective scan, which hold the states of one chunk of tokens at a time.

A kernel scans one group of channels of one sample, chunk after chunk, and keeps the states between chunks alone, from
which the gradient makes those inside a chunk again. A group's channels are the lanes of the innermost loops, which the
compiler turns into vector instructions.

Letters as in scan.py; t is a token of the chunk, j a lane; tiles are (t, j) or (t, n), states (n, j). All stands in one
file: numba compares the age of a kernel's own file alone with that of the machine code that it kept.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import torch
from numba import boolean, from_dtype, types
from numba.extending import overload

from tokenunify.kernels.compiled import kept

LANES = 32
"""Channels of a group."""
CHUNK = 64
"""Tokens of a chunk."""

njit: Any = numba.njit  # untyped: its stubs take no options from a dictionary
EXACT: Any = {"nogil": True, "error_model": "numpy", "fastmath": {"contract", "nsz"}}
exact = njit(**EXACT)
# "reassoc", which sums over lanes need, would merge the two steps by which `exp` reduces its argument exactly.
summing = njit(**EXACT | {"fastmath": {"contract", "nsz", "reassoc"}})

LOG2_E = np.float32(1.44269504)
LN2_HIGH, LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
LEAST, MOST = np.float32(-87.3), np.float32(88.3)
HALF, ONE, TWO = np.float32(0.5), np.float32(1), np.float32(2)
# (e^r - 1 - r) / r^2 for |r| <= ln 2 / 2, from the highest power: expf of the Cephes library (S. Moshier).
EXP = tuple(np.float32(x) for x in (1.98756915e-4, 1.39819995e-3, 8.33345191e-3, 4.16657959e-2, 1.66666655e-1, 0.5))
# artanh(s) / s - 1 for 0 <= s <= 1/3, in powers of s^2 from the highest: its series.
ARTANH = tuple(np.float32(1 / k) for k in (13, 11, 9, 7, 5, 3))


def exp(x):
    """e^x; for float32 in vector instructions, to 1e-7 of it (between e^-87 and e^88)."""
    return math.exp(x)


@overload(exp, jit_options=EXACT)
def _exp(x):
    def exp32(x):
        x = min(max(x, LEAST), MOST)
        k = np.float32(math.floor(x * LOG2_E + HALF))
        r = x - k * LN2_HIGH - k * LN2_LOW
        p = ((((EXP[0] * r + EXP[1]) * r + EXP[2]) * r + EXP[3]) * r + EXP[4]) * r + EXP[5]
        power = (np.int32(k) + np.int32(127)) << np.int32(23)  # the bits of 2^k
        return (p * r * r + r + ONE) * np.int32(power).view(np.float32)

    return exp32 if x == types.float32 else (lambda x: math.exp(x))


def log1p(x):
    """log(1 + x) for 0 <= x <= 1; for float32 in vector instructions, to 2e-7 of it."""
    return math.log1p(x)


@overload(log1p, jit_options=EXACT)
def _log1p(x):
    def log1p32(x):
        s = x / (x + TWO)  # log(1 + x) = 2 artanh(s)
        q = s * s
        p = ((((ARTANH[0] * q + ARTANH[1]) * q + ARTANH[2]) * q + ARTANH[3]) * q + ARTANH[4]) * q + ARTANH[5]
        return TWO * (s + s * q * p)

    return log1p32 if x == types.float32 else (lambda x: math.log1p(x))


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
def _tile(A):
    return np.zeros((CHUNK, LANES), A.dtype)


@exact
def _row(A):
    return np.zeros((CHUNK, A.shape[0]), A.dtype)


def forward(softplus, u, delta, A, B, C, D, bias, y, states):
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
        for t in range(num):
            for n in range(A.shape[0]):
                b, c = tile_B[t, n], tile_C[t, n]
                for j in range(LANES):
                    state = exp(step[t, j] * A[n, j]) * h[n, j] + x[t, j] * b
                    h[n, j] = state
                    tile_y[t, j] += state * c
        _store(tile_y, first, y)
    states[states.shape[0] - 1] = h


@summing
def back_through_states(num, step, x, A, B, C, decay, h, dy, dh, dA, dB, dC, dx, dstep):
    """Take the gradient of the states, dh, back through the tokens of a chunk; dA's share is added.

    Not a part of `backward`: its sums over lanes, and no others, may be added up in any order.
    """
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


def backward(softplus, u, delta, A, B, C, D, bias, states, dy, du, ddelta, dB, dC, constant):
    """The gradients of a group, of B and C its share; those of A, D and bias, the rows of `constant`, are added.

    Within a chunk these add up apart: sums of sums lose less than one long sum.
    """
    tile_u, tile_delta, step, x = _tile(A), _tile(A), _tile(A), _tile(A)
    tile_dy, dx, dstep = _tile(A), _tile(A), _tile(A)
    tile_B, tile_C, tile_dB, tile_dC = _row(A), _row(A), _row(A), _row(A)
    decay, h = np.zeros((CHUNK, *A.shape), A.dtype), np.zeros((CHUNK + 1, *A.shape), A.dtype)
    dh, share, one = np.zeros_like(A), np.zeros_like(constant), A.dtype.type(1)
    dD, dbias = share[A.shape[0]], share[A.shape[0] + 1]
    for chunk in range(states.shape[0] - 2, -1, -1):
        first = chunk * CHUNK
        num = _load(u, first, tile_u)
        _load(delta, first, tile_delta)
        _load(B, first, tile_B)
        _load(C, first, tile_C)
        _load(dy, first, tile_dy)
        _enter(tile_u, tile_delta, D, bias, softplus, step, x, dx)
        h[0] = states[chunk]
        for t in range(num):  # all states of the chunk, and what each token left of those before it
            for n in range(A.shape[0]):
                b = tile_B[t, n]
                for j in range(LANES):
                    left = exp(step[t, j] * A[n, j])
                    decay[t, n, j] = left
                    h[t + 1, n, j] = left * h[t, n, j] + x[t, j] * b
        dx[:] = dstep[:] = 0
        share[:] = 0
        back_through_states(num, step, x, A, tile_B, tile_C, decay, h, tile_dy, dh, share, tile_dB, tile_dC, dx, dstep)
        for t in range(num):  # from the gradients of x and step to those of u and delta, in place
            for j in range(LANES):
                dD[j] += tile_dy[t, j] * tile_u[t, j]
                gradient = dstep[t, j] + dx[t, j] * tile_u[t, j]
                if softplus:
                    gradient /= one + exp(-tile_delta[t, j])
                dstep[t, j] = gradient
                dbias[j] += gradient
                dx[t, j] = dx[t, j] * step[t, j] + D[j] * tile_dy[t, j]
        constant += share
        _store(dx, first, du)
        _store(dstep, first, ddelta)
        _store(tile_dB, first, dB)
        _store(tile_dC, first, dC)


@functools.cache
def compiled(function: Callable, dtype: torch.dtype) -> Callable:
    """A kernel compiled for one type; float32 alone is kept on disk, so that jobs at once only ever write the same."""
    number = from_dtype(np.dtype(str(dtype).removeprefix("torch.")))
    channels, lanes, states = types.Array(number, 2, "A"), number[::1], number[:, :, ::1]
    inputs = (channels, channels, number[:, ::1], channels, channels, lanes, lanes)
    gradients = (channels, channels, channels, channels, number[:, ::1])
    rest = (channels, states) if function is forward else (states, channels, *gradients)
    decorator = kept if dtype == torch.float32 else njit
    return decorator(types.void(boolean, *inputs, *rest), **EXACT)(function)
