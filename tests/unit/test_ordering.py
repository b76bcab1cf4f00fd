"""Orders of relevance: causal, a distribution that can be learned, and no way to hide what is empty."""

import pytest
import torch

from tests.unit.test_masking import make_batch, make_task
from tokenunify.config import Relevance
from tokenunify.learning.tokens import masking, token_prediction
from tokenunify.learning.tokens.ordering import RelevanceOrdering

K, P = 12, 6
ITERATIONS = [1, 5, 12, 20]


def make_ordering(iterations=5, seed=0):
    """One whose scores depend much on contents and differ much."""
    torch.manual_seed(seed)
    ordering = RelevanceOrdering(Relevance(iterations=iterations, width=8), K, P).double()
    with torch.no_grad():
        for parameter in ordering.parameters():
            parameter.mul_(3)
    return ordering


def gumbel(*shape, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return -torch.empty(shape, dtype=torch.float64).exponential_(generator=generator).log()


@pytest.mark.parametrize("iterations", ITERATIONS)
def test_order_is_a_permutation(iterations):
    order, log_probabilities = make_ordering(iterations)(torch.rand(7, K, P).double(), gumbel(7, K))
    assert order.shape == log_probabilities.shape == (7, K)
    assert torch.equal(order.sort(1).values, torch.arange(K).expand(7, -1))
    assert len({tuple(row) for row in order.tolist()}) == 7


@pytest.mark.parametrize("iterations", ITERATIONS)
def test_a_choice_does_not_depend_on_what_is_not_yet_placed(iterations):
    ordering, patches, noise = make_ordering(iterations), torch.rand(1, K, P).double(), gumbel(1, K) * 0.1
    order, log_probabilities = ordering(patches, noise)
    changed_later = 0
    for i in range(K):
        other = patches.clone()
        other[0, order[0, i:]] = 5 * torch.rand(K - i, P).double()
        changed, changed_log = ordering(other, noise)
        assert torch.equal(changed[:, : i + 1], order[:, : i + 1])
        assert torch.equal(changed_log[:, : i + 1], log_probabilities[:, : i + 1])
        changed_later += not torch.equal(changed, order)
    assert (changed_later > 0) == (iterations > 1)  # and does on what is placed


@pytest.mark.parametrize("iterations", ITERATIONS)
def test_log_probabilities_are_plackett_luce(iterations):
    """Choice by choice: the softmax of the scores of those that are left."""
    ordering, patches = make_ordering(iterations), torch.rand(3, K, P).double()
    order, log_probabilities = ordering(patches, gumbel(3, K))
    for b in range(3):
        placed, chosen = torch.zeros(1, K, dtype=torch.bool), []
        for count in ordering.rounds:
            scores = ordering.scores(patches[b : b + 1], placed)[0]
            for _ in range(count):
                number = order[b, len(chosen)].item()
                left = [j for j in range(K) if j not in chosen]
                expected = scores[number] - torch.stack([scores[j] for j in left]).exp().sum().log()
                torch.testing.assert_close(log_probabilities[b, len(chosen)], expected)
                chosen.append(number)
            placed[0, chosen] = True


def test_orders_are_drawn_with_their_probabilities():
    """First two of one patch's contents, many times: frequencies against exp(log-probability)."""
    ordering, number = make_ordering(), 20_000
    patches = torch.rand(1, K, P).double().expand(number, -1, -1)
    with torch.no_grad():
        order, log_probabilities = ordering(patches, gumbel(number, K))
    for name in range(K):
        drawn = order[:, 0] == name
        if drawn.any():
            p = log_probabilities[drawn, 0].exp()[0].item()
            assert abs(drawn.double().mean().item() - p) < 4.5 * (p * (1 - p) / number) ** 0.5


def test_no_noise_gives_descending_scores():
    ordering, patches = make_ordering(1), torch.rand(1, K, P).double()
    order, _ = ordering(patches, torch.zeros(1, K).double())
    scores = ordering.scores(patches, torch.zeros(1, K, dtype=torch.bool))
    assert torch.equal(order, scores.argsort(descending=True))


def test_every_parameter_learns():
    ordering = make_ordering()
    _, log_probabilities = ordering(torch.rand(4, K, P).double(), gumbel(4, K))
    ordering.loss(log_probabilities, torch.full((4, 1), K), torch.rand(4).double()).backward()
    for name, parameter in ordering.named_parameters():
        assert parameter.grad.abs().max() > 1e-9, name


def test_a_rewarded_order_becomes_more_likely():
    """One in which patch 3 comes first and patch 7 next."""
    ordering = RelevanceOrdering(Relevance(iterations=4, width=8), K, P)
    optimizer, patches = torch.optim.Adam(ordering.parameters(), lr=1e-2), torch.rand(64, K, P)
    shares = []
    for step in range(120):
        order, log_probabilities = ordering(patches, gumbel(64, K, seed=step).float())
        good = ((order[:, 0] == 3).float() + (order[:, 1] == 7)) / 2
        optimizer.zero_grad()
        ordering.loss(log_probabilities, torch.full((64, 1), 2), 1 - good).backward()
        optimizer.step()
        shares.append(good.mean().item())
        ordering.expect(1 - shares[-1])
    assert sum(shares[:10]) / 10 < 0.2 and sum(shares[-10:]) / 10 > 0.8


def test_an_order_is_judged_against_the_running_mean_of_steps():
    ordering, log_probabilities = make_ordering().train(), torch.full((2, K), -1.0, dtype=torch.float64)
    expected = 1.0
    for step, shares in enumerate(torch.rand(3, 2).double()):
        loss = ordering.loss(log_probabilities, torch.tensor([[K], [K]]), shares)
        assert loss.item() == pytest.approx(expected - shares.mean().item()), step
        ordering.expect(shares.mean().item())
        expected = 0.98 * expected + 0.02 * shares.mean().item()


def test_choices_behind_the_cut_are_not_judged():
    ordering, log_probabilities = make_ordering(), torch.zeros(2, K, dtype=torch.float64, requires_grad=True)
    ordering.loss(log_probabilities, torch.tensor([[3], [K]]), torch.rand(2).double()).backward()
    assert torch.equal(log_probabilities.grad != 0, torch.arange(K) < torch.tensor([[3], [K]]))


def test_a_relevance_that_happens_to_be_raster_is_the_plain_case():
    relevant = make_task(ordering=Relevance(iterations=4, width=8))
    plain = make_task()
    plain.load_state_dict(relevant.state_dict(), strict=False)
    descending = -1e3 * torch.arange(plain.grid.number).expand(2, -1).float()
    batch = make_batch(plain, gumbel=descending)
    patches = plain.grid.split(batch["raw"])
    assert torch.equal(relevant.order(patches, descending)[0], plain.order(patches, descending)[0])
    losses, expected = relevant(batch), plain(batch)
    assert losses.keys() - expected.keys() == {"ordering", "unexplained", "variance_ratio"}
    assert all(losses[name].item() == expected[name].item() for name in expected)


class HalfSeen(token_prediction.TokenTask):
    """In place of a network: half of what a patch differs from its mean by is known, and the mean up to a little."""

    def features(self, batch, visible):
        return self.grid.split(batch["raw"])

    def reconstruct(self, features):
        mean = features.mean(2, keepdim=True)
        return mean + 0.5 * (features - mean) + 0.01


def trained_ratio(reward, monkeypatch):
    """Variance of the targets relative to all patches, behind training on crops whose right half is empty."""
    monkeypatch.setattr(token_prediction, "unexplained", reward)
    made = make_task(objectives=("next-all",), ordering=Relevance(iterations=4, width=8))
    task = HalfSeen(made.network, made.config, made.grid).train()
    optimizer, ratios = torch.optim.Adam(task.ordering.parameters(), lr=3e-2), []
    for step in range(260):
        batch = make_batch(task, size=32, seed=step, objective="next-all")
        batch["raw"][..., 8:] = 0.7
        losses = task(batch)
        optimizer.zero_grad()
        losses["ordering"].backward()
        optimizer.step()
        task.observe({name: loss.item() for name, loss in losses.items()})
        ratios.append(losses["variance_ratio"].item())
    return sum(ratios[-40:]) / 40


def test_training_does_not_learn_to_hide_empty_patches(monkeypatch):
    """As it does where the error itself is the reward, here in units of about its mean."""
    assert trained_ratio(token_prediction.unexplained, monkeypatch) > 1
    assert trained_ratio(lambda error, variance: 20 * error, monkeypatch) < 0.5


def test_unexplained_share():
    error, variance = torch.tensor([0.0, 0.0, 0.02, 0.04, 0.5]), torch.tensor([0.0, 0.04, 0.04, 0.04, 0.0])
    expected = [1, 0.001 / 0.041, 0.021 / 0.041, 1, 1]
    assert token_prediction.unexplained(error, variance).tolist() == pytest.approx(expected)


def test_variance_ratio_is_that_of_the_targets():
    task = make_task(objectives=("next-all",), ordering=Relevance(iterations=4, width=8))
    batch = make_batch(task, objective="next-all")
    patches = task.grid.split(batch["raw"])
    order, _ = task.order(patches, batch["gumbel"])
    targets = masking.next_all_token(masking.ranks_of(order), batch["cut"]).target
    variances = patches.var(2, unbiased=False)
    ratios = [variances[b][targets[b]].mean() / variances[b].mean() for b in range(2)]
    assert task(batch)["variance_ratio"].item() == pytest.approx(sum(ratios).item() / 2, rel=1e-5)
