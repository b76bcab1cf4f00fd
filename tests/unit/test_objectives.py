"""Losses and class weights against their formulas."""

import numpy as np
import pytest
import torch

from tokenunify.config import Finetune
from tokenunify.learning import objectives as o


def reference_weights(targets, mask):
    """One crop (c, z, y, x), jointly over its channels."""
    ones, known = 0, 0
    for t, m in zip(targets.ravel(), mask.ravel(), strict=True):
        known += bool(m)
        ones += bool(m and t)
    p = min(max(ones / known, 0.05), 0.99)
    if ones in (0, known):
        return np.ones_like(targets)
    if p > 0.5:
        return np.where(targets > 0, 1, p / (1 - p))
    return np.where(targets > 0, (1 - p) / p, 1)


@pytest.fixture(params=[0.2, 0.5, 0.93, 0.001])
def batch(request):
    """Targets, mask and prediction (2, 3, 2, 5, 4)."""
    rng = np.random.default_rng(7)
    shape = (2, 3, 2, 5, 4)
    targets = (rng.random(shape) < request.param).astype(np.float32)
    return targets, rng.random(shape) < 0.8, rng.random(shape, np.float32)


def test_class_weights_match_reference(batch):
    targets, mask, _ = batch
    weights = o.class_weights(targets, mask).numpy()
    for crop in range(2):
        np.testing.assert_allclose(weights[crop], reference_weights(targets[crop], mask[crop]), rtol=1e-5)


def test_class_weights_of_each_channel(batch):
    targets, mask, _ = batch
    weights = o.class_weights(targets[0], mask[0], balance="channel").numpy()
    for channel in range(3):
        one = slice(channel, channel + 1)
        np.testing.assert_allclose(weights[one], reference_weights(targets[0][one], mask[0][one]), rtol=1e-5)


@pytest.mark.parametrize(("ones", "expected"), [(1, (19, 1)), (30, (70 / 30, 1)), (95, (1, 19)), (999, (1, 99))])
def test_published_weights_at_given_fractions(ones, expected):
    total = 1000 if ones == 999 else 100
    targets = (np.arange(total) < ones).astype(np.float32).reshape(1, 1, 1, total)
    weights = o.class_weights(targets).numpy().ravel()
    assert (weights[0], weights[-1]) == pytest.approx(expected, rel=1e-5)
    assert o.class_weights(targets, max_weight=5.0).max() <= 5


def test_weighted_mse_is_not_divided_by_the_channels(batch):
    targets, _, prediction = batch
    weights = o.class_weights(targets)
    expected = (weights.numpy() * (prediction - targets) ** 2).sum() / (2 * 2 * 5 * 4)
    assert o.weighted_mse(prediction, targets, weights).item() == pytest.approx(expected, rel=1e-5)


def test_mask_hides_targets_from_every_loss(batch):
    targets, mask, prediction = batch
    hidden = np.where(mask, targets, 1 - targets)
    logits = torch.logit(torch.from_numpy(prediction).clamp(0.01, 0.99))
    for loss in ("mse", "weighted_mse", "bce"):
        options = {"loss": loss, "max_weight": 20.0, "balance": "joint"}
        a, b = (
            o.affinity_loss(logits, torch.from_numpy(t), torch.from_numpy(mask), Finetune(**options))
            for t in (targets, hidden)
        )
        assert a.item() == b.item()


def test_bce_and_mse_match_their_formulas(batch):
    targets, mask, prediction = batch
    p = prediction.clip(0.01, 0.99).astype(np.float64)
    entropy = -(targets * np.log(p) + (1 - targets) * np.log(1 - p))[mask].mean()
    assert o.bce(np.log(p / (1 - p)), targets, mask).item() == pytest.approx(entropy, rel=1e-4)
    assert o.mse(p, targets, mask).item() == pytest.approx(((p - targets) ** 2)[mask].mean(), rel=1e-4)


@pytest.mark.parametrize("loss", ["mse", "weighted_mse", "bce"])
def test_losses_keep_double_precision_and_raise_half(batch, loss):
    """A change of the logits that single precision cannot tell is seen."""
    targets, mask, prediction = (torch.from_numpy(values) for values in batch)
    logits = torch.logit(prediction.double().clamp(0.01, 0.99))

    def computed(logits):
        return o.affinity_loss(logits, targets.to(logits.dtype), mask, Finetune(loss=loss))

    exact, single, half = (computed(logits.to(dtype)) for dtype in (torch.float64, torch.float32, torch.bfloat16))
    assert (exact.dtype, single.dtype, half.dtype) == (torch.float64, torch.float32, torch.float32)
    assert 0 < abs(computed(logits + 1e-11) - exact) < 1e-10
    assert single.item() == pytest.approx(exact.item(), rel=1e-5)


def test_nothing_known_costs_nothing():
    targets = torch.zeros(1, 3, 2, 2, 2)
    logits = torch.ones_like(targets, requires_grad=True)
    loss = o.affinity_loss(logits, targets, targets.bool(), Finetune())
    loss.backward()
    assert loss.item() == 0 and not logits.grad.any()


def test_published_weights_and_losses(golden):
    arrays = golden("affinity_a.npz")
    targets, prediction = arrays["affs"], torch.from_numpy(arrays["pred_u8"] / np.float32(255)).requires_grad_()
    weights = o.class_weights(targets)
    np.testing.assert_allclose(weights, arrays["weight"], rtol=1e-6)
    loss = o.weighted_mse(prediction, targets, weights)
    loss.backward()
    assert loss.item() == pytest.approx(float(arrays["loss_weighted_mse"]), rel=1e-6)
    np.testing.assert_allclose(prediction.grad, arrays["loss_weighted_mse_grad"], atol=1e-9)
    plain = o.weighted_mse(prediction, targets).item()
    assert plain == pytest.approx(float(arrays["loss_weighted_mse_noweight"]), rel=1e-6)
    assert o.mse(prediction, targets).item() == pytest.approx(float(arrays["loss_mse"]), rel=1e-6)
    both = torch.stack([prediction, 1 - prediction]).detach(), np.stack([targets] * 2), torch.stack([weights] * 2)
    expected = float(arrays["loss_weighted_mse_batch2_pred_then_1minus"])
    assert o.weighted_mse(*both).item() == pytest.approx(expected, rel=1e-6)
