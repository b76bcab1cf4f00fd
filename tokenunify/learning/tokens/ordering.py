"""Mamba ordering (eq. 5): which patch comes next, raster or by learned relevance.

Relevance: in each of a few rounds attention from every patch's position to the contents of the patches placed so far
gives a score, and the best scored of those left are placed. So sigma(i) depends on the contents of sigma(<i) alone,
and an order can be used to hide what follows. The choice is not differentiable: scores are the parameters of a
Plackett-Luce distribution, orders are drawn from it by Gumbel noise, and its log-probabilities carry a policy gradient.

Letters: b batch, K patches, P voxels of a patch, d width.
"""

import torch
from torch import Tensor, nn

from tokenunify.config import Relevance

LOWEST = float("-inf")
MOMENTUM = 0.02
"""Momentum of the running mean that is the policy gradient's baseline."""


class RelevanceOrdering(nn.Module):
    """Scores patches by attention to those already placed, and learns from how well what follows is predicted."""

    expected: Tensor
    """The baseline: a running mean of the share that is not predicted."""

    def __init__(self, config: Relevance, number: int, voxels: int):
        super().__init__()
        self.rounds = [len(places) for places in torch.arange(number).tensor_split(config.iterations)]
        width = config.width
        self.position = nn.Parameter(torch.randn(number, width) * 0.02)
        self.start = nn.Parameter(torch.randn(width) * 0.02)
        self.content = nn.Linear(voxels, width)
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width)
        self.score = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, 1, bias=False)
        )
        self.register_buffer("expected", torch.tensor(1.0))

    def forward(self, patches: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Order sigma (b, K) and the log-probability of each of its choices (b, K).

        patches (b, K, P); noise (b, K): Gumbel noise draws an order, zeros give descending scores.
        """
        placed = torch.zeros(patches.shape[:2], dtype=torch.bool, device=patches.device)
        orders, log_probabilities = [], []
        for count in self.rounds:
            scores = self.scores(patches, placed).masked_fill(placed, LOWEST)
            order = (scores.detach() + noise).argsort(dim=1, descending=True, stable=True)
            ranked = scores.gather(1, order)
            left = ranked.flip(1).logcumsumexp(1).flip(1)  # of this choice and all that were possible after it
            orders.append(order[:, :count])
            log_probabilities.append((ranked - left)[:, :count])
            placed = placed.scatter(1, orders[-1], True)
        return torch.cat(orders, 1), torch.cat(log_probabilities, 1)

    def scores(self, patches: Tensor, placed: Tensor) -> Tensor:
        """(b, K) from positions and the contents of the placed patches."""
        tokens = self.content(torch.where(placed[:, :, None], patches, 0)) + self.position
        start = self.start.expand(len(tokens), 1, -1)
        tokens = torch.cat([start, tokens], dim=1)  # the start is there to be looked at when nothing is placed
        queries = self.query(self.position)  # (K, d)
        logits = queries @ self.key(tokens).transpose(1, 2) / queries.shape[-1] ** 0.5  # (b, K, 1 + K)
        seen = torch.cat([torch.ones_like(placed[:, :1]), placed], dim=1)
        attention = logits.masked_fill(~seen[:, None], LOWEST).softmax(-1)
        return self.score(attention @ self.value(tokens) + self.position).squeeze(-1)

    def loss(self, log_probabilities: Tensor, cut: Tensor, unexplained: Tensor) -> Tensor:
        """Policy gradient (REINFORCE with a running mean as baseline): good orders become more likely.

        log_probabilities (b, K); cut (b, 1); unexplained (b,): the share of the targets' variance that was not
        predicted. A share, so that an order gains nothing by leaving empty patches for the end.
        """
        advantage = self.expected - unexplained.detach()
        places = torch.arange(log_probabilities.shape[1], device=cut.device)
        chosen = torch.where(places < cut, log_probabilities, 0).mean(1)
        return -(advantage * chosen).mean()

    def expect(self, unexplained: float) -> None:
        """Move the baseline towards a step's mean, which is that of all processes: so theirs stay equal."""
        self.expected.lerp_(torch.full_like(self.expected, unexplained), MOMENTUM)
