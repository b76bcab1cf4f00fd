"""Pre-training's task: random-token, next-token and next-all-token prediction with one network (eq. 2 to 4).

Every loss is half the squared error, the -log p of a Gaussian with unit variance, or, normalised, the mean squared
error over the target voxels. Letters: b batch, K patches, P voxels of a patch, n the cut.
"""

from collections.abc import Mapping
from math import prod

import torch
from torch import Tensor, nn

from tokenunify.config import Pretrain, Relevance
from tokenunify.learning.networks.base import Network
from tokenunify.learning.task import Batch, Task
from tokenunify.learning.tokens import masking
from tokenunify.learning.tokens.ordering import RelevanceOrdering
from tokenunify.learning.tokens.patches import PatchGrid
from tokenunify.learning.tokens.resampler import PerceiverResampler

SMALLEST_VARIANCE = 1e-3
"""Variance of a patch, in units of the intensity range, below which it is noise."""
ORDERING_WEIGHT = 0.01
"""Weight of the policy gradient beside the network's losses, with which it shares no parameter."""


PREFIX = {"next": masking.next_token, "next-all": masking.next_all_token}
"""The objectives that see a prefix of the order."""


class TokenTask(Task):
    """A network, the resampler that predicts single tokens, the order of the tokens and what hides them.

    Batches (see pretrain.TokenSamples) hold raw and noise (b, 1, z, y, x), permutation and gumbel (b, K), hidden and
    cut (b, 1), and the names of the step's objectives, separated by spaces.
    """

    def __init__(self, network: Network, config: Pretrain, grid: PatchGrid):
        super().__init__()
        self.network, self.config, self.grid = network, config, grid
        self.output = network.config.output_extent(config.crop)
        objectives = {str(name): weight for name, weight in config.loss_weights.items()}
        self.weights = {**objectives, "ordering": ORDERING_WEIGHT}
        self.fill = nn.Parameter(torch.tensor(0.5)) if config.fill == "learned" else None
        if "next" in config.objectives:
            stride = network.feature_stride
            self.resampler = PerceiverResampler(config.resampler, network.feature_channels, grid, stride)
        if isinstance(config.ordering, Relevance):
            self.ordering = RelevanceOrdering(config.ordering, grid.number, prod(grid.patch))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        names, patches, losses = self._names(batch), self._patches(batch), {}
        if "random" in names:
            hidden = masking.random_token(batch["permutation"], batch["hidden"])
            error = self._error(self.reconstruct(self.features(batch, hidden.visible)), patches, hidden.target)
            losses["random"] = self._loss("random", error, hidden.target)
        in_order = [name for name in names if name != "random"]
        if not in_order:
            return losses
        order, log_probabilities = self.order(patches, batch["gumbel"])
        ranks, cut = masking.ranks_of(order), batch["cut"]
        sets = {name: PREFIX[name](ranks, cut) for name in in_order}
        features = self.features(batch, sets[in_order[0]].visible)  # all see the same prefix
        errors = {}
        if "next" in names:
            number = order.gather(1, cut - 1)[:, 0]  # (b,)
            wanted = patches[torch.arange(len(patches)), number]
            errors["next"] = (self._next(features, number) - wanted).square().sum(1)
        if "next-all" in names:
            errors["next-all"] = self._error(self.reconstruct(features), patches, sets["next-all"].target)
        losses |= {name: self._loss(name, errors[name], sets[name].target) for name in in_order}
        if log_probabilities is not None:  # the order is judged by the share of the variance that was not predicted
            variances = patches.var(2, unbiased=False)  # (b, K)
            numbers = torch.stack([s.target.sum(1) for s in sets.values()])  # (objectives, b)
            of_targets = torch.stack([(s.target * variances).sum(1) for s in sets.values()]) / numbers
            mean_errors = torch.stack([errors[name].detach() for name in sets]) / (numbers * prod(self.grid.patch))
            shares = unexplained(mean_errors, of_targets).mean(0)  # (b,)
            losses["ordering"] = self.ordering.loss(log_probabilities, cut, shares)
            losses["unexplained"] = shares.mean()
            losses["variance_ratio"] = (of_targets.mean(0) / variances.mean(1).clamp(min=1e-12)).mean().detach()
        return losses

    def counts(self, batch: Batch) -> dict[str, float]:
        size = len(batch["raw"])
        targets = {name: size for name in self._names(batch)}
        if self.config.normalise:
            following = self.grid.number + 1 - batch["cut"]
            patches = {"random": batch["hidden"], "next": torch.ones(size), "next-all": following}
            targets = {name: patches[name].sum().item() for name in targets}
        return {**targets, "ordering": size, "unexplained": size, "variance_ratio": size}

    def observe(self, means: Mapping[str, float]) -> None:
        if "unexplained" in means:
            self.ordering.expect(means["unexplained"])

    @staticmethod
    def _names(batch: Batch) -> list[str]:
        return batch["objective"].split()

    def _patches(self, batch: Batch) -> Tensor:
        """Patches (b, K, P) of at least float32, and so are errors, whatever the network computes in."""
        raw = batch["raw"]
        return self.grid.split(self.grid.of_crop(raw)).to(torch.promote_types(raw.dtype, torch.float32))

    def order(self, patches: Tensor, noise: Tensor) -> tuple[Tensor, Tensor | None]:
        """Order sigma (b, K), and the log-probabilities of its choices where it is learned."""
        if isinstance(self.config.ordering, Relevance):
            with torch.autocast(patches.device.type, enabled=False):  # log-probabilities sum over all patches
                return self.ordering(patches, noise)
        return torch.arange(self.grid.number, device=patches.device).expand(len(patches), -1), None

    def fill_in(self, batch: Batch, visible: Tensor) -> Tensor:
        """Raw (b, 1, z, y, x) whose hidden patches are overwritten."""
        raw = batch["raw"]
        hidden = self.grid.hidden_in(raw, ~visible)
        return torch.where(hidden, batch["noise"] if self.fill is None else self.fill.to(raw.dtype), raw)

    def features(self, batch: Batch, visible: Tensor) -> Tensor:
        """The network's features of what is visible."""
        return self.network.features(self.fill_in(batch, visible))

    def reconstruct(self, features: Tensor) -> Tensor:
        """Every patch as the network's head predicts it, (b, K, P)."""
        return self.grid.split(self.grid.of_output(self.network.head(features, self.output)))

    def shown(self, batch: Batch, name: str) -> tuple[Tensor, Tensor]:
        """What the network sees and what it makes of it, two of (b, 1, z, y, x): the covered part with its targets."""
        patches = self._patches(batch)
        order, _ = self.order(patches, torch.zeros_like(batch["gumbel"]))
        number = order.gather(1, batch["cut"] - 1)[:, 0]
        if name == "random":
            sets = masking.random_token(batch["permutation"], batch["hidden"])
        else:
            sets = PREFIX[name](masking.ranks_of(order), batch["cut"])
        features = self.features(batch, sets.visible)
        made = self._next(features, number)[:, None] if name == "next" else self.reconstruct(features)
        seen = self.grid.of_crop(self.fill_in(batch, sets.visible))
        return seen, self.grid.join(torch.where(sets.target[:, :, None], made, self.grid.split(seen)))

    def _next(self, features: Tensor, number: Tensor) -> Tensor:
        """The patch with that number (b,) as the resampler predicts it, (b, P)."""
        return self.resampler(self.grid.of_features(features, self.network.feature_stride), number)

    @staticmethod
    def _error(predicted: Tensor, patches: Tensor, target: Tensor) -> Tensor:
        """Summed squared error (b,) over the target patches."""
        return ((predicted - patches).square().sum(2) * target).sum(1)

    def _loss(self, name: str, error: Tensor, target: Tensor) -> Tensor:
        if self.config.normalise:
            return error.sum() / (target.sum() * prod(self.grid.patch))
        orders = 1 if name == "random" else self.grid.number  # one cut of K stands for their sum
        return (orders * 0.5 * error).mean()


def unexplained(error: Tensor, variance: Tensor) -> Tensor:
    """Share in (0, 1] of a variance that is not predicted; an empty patch has nothing to explain, and its share is 1.

    error, variance: means over the same voxels, of any one shape.
    """
    return ((error + SMALLEST_VARIANCE) / (variance + SMALLEST_VARIANCE)).clamp(max=1)
