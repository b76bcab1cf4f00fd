"""The selective scan, the recurrence of Mamba (Gu and Dao 2023, arXiv:2312.00752, algorithm 2): one name, three ways.

Letters: b sample, d channel, l token, n state; u input, delta step, A decay, B what enters a state, C what it gives,
D what passes it by, z gate:

    h[l] = exp(delta[l] A) h[l - 1] + delta[l] B[l] u[l],   h[-1] = 0
    y[l] = C[l] . h[l] + D u[l],   times silu(z[l]) where there is a gate
"""

import functools
import importlib.util
import logging
import os

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenunify.errors import InputError
from tokenunify.learning import scan_cpu, scan_loop

logger = logging.getLogger(__name__)

VARIABLE = "TOKENUNIFY_SCAN"
"""The environment variable that chooses the backend where the caller does not."""


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """The scan's output (b, d, l), and with `return_last_state` the last states (b, d, n), which have no gradient.

    Means what mamba_ssm's `selective_scan_fn` means, for real tensors. u, delta, z (b, d, l); A (d, n); B, C (b, n, l),
    or (d, n) where they are the same for all tokens; D, delta_bias (d). `delta_softplus` takes the step to be
    softplus(delta + delta_bias). Computed in float32, or in float64 if u is; the output is of u's type.

    `backend`: "loop" (plain torch, the reference), "cpu" (compiled, with memory proportional to b d l), "cuda" (the
    kernel of mamba-ssm), or "auto": what the environment's TOKENUNIFY_SCAN says, else the fastest for the device.
    """
    tensors = {"u": u, "delta": delta, "A": A, "B": B, "C": C, "D": D, "z": z, "delta_bias": delta_bias}
    given = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    _check(given)
    backend = _choose(backend, os.environ.get(VARIABLE, "auto"), u.device.type)
    if backend == "cuda":
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

        return selective_scan_fn(u, delta, A, B, C, D, z, delta_bias, delta_softplus, return_last_state)
    dtype = torch.promote_types(u.dtype, torch.float32)
    zeros = u.new_zeros(u.shape[1])
    inputs = (u, delta, A, B, C, zeros if D is None else D, zeros if delta_bias is None else delta_bias)
    scan = scan_loop.scan if backend == "loop" else scan_cpu.scan
    y, last = scan(*(x.to(dtype) for x in inputs), softplus=delta_softplus)
    y = y if z is None else y * F.silu(z.to(dtype))
    return (y.to(u.dtype), last) if return_last_state else y.to(u.dtype)


@functools.cache
def _choose(backend: str, variable: str, device: str) -> str:
    """The backend for tensors on a device, logged once for each kind of call."""
    name, asked = ("backend", backend) if backend != "auto" else (VARIABLE, variable)
    if asked not in ("auto", "loop", "cpu", "cuda"):
        raise InputError(f"{name}: expected auto, loop, cpu or cuda, found {asked!r}; correct it")
    if asked in ("cpu", "cuda") and asked != device:
        raise InputError(f"{name}: {asked} needs tensors on that device, found them on {device}; choose auto")
    if asked == "cuda" and not importlib.util.find_spec("mamba_ssm"):
        raise InputError(f"{name}: cuda needs the package mamba-ssm, which is not installed; install tokenunify[gpu]")
    if asked == "auto":
        kernels = {"cpu": "cpu", "meta": "cpu"} | ({"cuda": "cuda"} if importlib.util.find_spec("mamba_ssm") else {})
        asked = kernels.get(device, "loop")
    logger.info("selective scan of %s tensors: backend %s", device, asked)
    return asked


def _check(tensors: dict[str, Tensor]) -> None:
    """Refuse shapes that do not belong together, and complex numbers and integers, of which floats drop a part."""
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise InputError(
                f"selective_scan: {name} must hold real floating-point numbers, got {tensor.dtype}; convert it"
            )
    u, A = tensors["u"], tensors["A"]
    if u.dim() != 3 or A.dim() != 2:
        raise InputError(
            f"selective_scan: expected u (b, d, l) and A (d, n), found {tuple(u.shape)} and {tuple(A.shape)}; "
            "reshape them"
        )
    (b, d, length), n = u.shape, A.shape[1]
    maps: list[tuple[int, ...]] = [(b, d, length)]
    mixing: list[tuple[int, ...]] = [(b, n, length), (d, n)]
    legal = dict.fromkeys(("u", "delta", "z"), maps) | {"A": [(d, n)], "B": mixing, "C": mixing}
    legal |= {"D": [(d,)], "delta_bias": [(d,)]}
    for name, tensor in tensors.items():
        if tuple(tensor.shape) not in legal[name]:
            expected = " or ".join(map(str, legal[name]))
            raise InputError(
                f"selective_scan: {name} must be {expected} to go with u {tuple(u.shape)} and A {tuple(A.shape)}, "
                f"got {tuple(tensor.shape)}; reshape it"
            )
