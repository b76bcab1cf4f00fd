"""The selective scan in plain torch: the reference, for every device and for gradients of gradients.

Letters as in scan.py.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, bias: Tensor, *, softplus: bool
) -> tuple[Tensor, Tensor]:
    """The recurrence token by token; arguments and result as in scan_cpu.scan."""
    step = delta + bias[:, None]
    step = F.softplus(step) if softplus else step
    b = B.transpose(1, 2).unsqueeze(2).unbind(1) if B.dim() == 3 else [B] * u.shape[2]
    c = C.transpose(1, 2).unsqueeze(2).unbind(1) if C.dim() == 3 else [C] * u.shape[2]
    h, y = u.new_zeros(len(u), *A.shape), []  # (b, d, n)
    for step_t, u_t, b_t, c_t in zip(step.unbind(-1), u.unbind(-1), b, c, strict=True):
        h = torch.exp(step_t[..., None] * A) * h + (step_t * u_t)[..., None] * b_t
        y.append((h * c_t).sum(-1))
    return torch.stack(y, dim=-1) + D[:, None] * u, h.detach()
