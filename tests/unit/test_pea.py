"""PEA: affinities from embeddings, against a slow loop and the published ones."""

import json

import numpy as np
import pytest
import torch

from tokenunify.config import NEAREST
from tokenunify.learning import checkpoint
from tokenunify.learning.networks import build
from tokenunify.learning.networks.pea import cosine

SHAPE = (3, 4, 6)


def reference(embedding, offset):
    """(z, y, x), voxel by voxel; NaN where the partner is outside."""
    result = np.full(embedding.shape[1:], np.nan)
    for voxel in np.ndindex(result.shape):
        partner = tuple(v + o for v, o in zip(voxel, offset, strict=True))
        if all(0 <= p < n for p, n in zip(partner, result.shape, strict=True)):
            result[voxel] = embedding[(slice(None), *voxel)] @ embedding[(slice(None), *partner)]
    return result


@pytest.mark.parametrize("offset", [*NEAREST, (1, 0, 0), (0, -3, 2), (-2, 0, -5)])
def test_cosines_match_reference(offset):
    embedding = torch.randn(2, 5, *SHAPE)
    result = cosine(embedding, offset)
    assert result.shape == (2, 1, *SHAPE)
    for crop in range(2):
        expected = reference(embedding[crop].numpy(), offset)
        known = ~np.isnan(expected)
        assert known.any()
        np.testing.assert_allclose(result[crop, 0].numpy()[known], expected[known], rtol=1e-5, atol=1e-6)


def test_a_voxel_without_partner_takes_the_nearest_value():
    result = cosine(torch.randn(1, 5, *SHAPE), (-1, 0, 2))[0, 0]
    torch.testing.assert_close(result[0], result[1])
    torch.testing.assert_close(result[..., 4:], result[..., 3:4].expand(-1, -1, 2))


def test_an_offset_longer_than_the_map_has_no_pair():
    result = cosine(torch.randn(1, 5, *SHAPE), (0, -4, 0))
    assert result.shape == (1, 1, *SHAPE) and not result.any()


def test_equal_and_opposite_embeddings_have_finite_log_odds():
    network = build({"name": "pea", "filters": [2, 3], "embedding": 1})
    logits = network.logits(torch.rand(1, 1, 3, 8, 8))  # one channel: the cosine is 1 or -1
    assert torch.isfinite(logits).all() and logits.abs().max() < 20
    logits.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters())


@pytest.fixture(params=["pea_a", "pea_deep_a"])
def published(request, golden):
    """The published arrays, and our network's affinities with the published weights."""
    arrays = golden(f"{request.param}.npz")
    keys = json.loads(str(arrays["constructor_json"]))
    network = build({"name": "pea", "filters": keys["filters"], "merge": keys["merge_mode"]}).eval()
    state = {key[3:]: torch.from_numpy(arrays[key]) for key in arrays if key.startswith("sd/")}
    assert not checkpoint.load_released(network, state).missing
    with torch.no_grad():
        return arrays, network(torch.from_numpy(arrays["input"])).numpy()


def inner(channel):
    """Voxels with a partner along the channel's axis."""
    return tuple(slice(1, None) if axis == channel else slice(None) for axis in range(3))


def test_published_affinities(published):
    arrays, affinities = published
    np.testing.assert_allclose(affinities, arrays["affs_norm2"], atol=1e-4)
    for channel in range(3):  # the other published variant is the cosine itself, 0 without a partner
        mine = np.zeros_like(affinities[0, channel])
        mine[inner(channel)] = 2 * affinities[0, channel][inner(channel)] - 1
        np.testing.assert_allclose(mine, arrays["affs_inf_norm1"][0, channel], atol=1e-4)


@pytest.mark.parametrize("variant", ["norm1", "norm2"])
def test_published_losses(published, variant):
    """A slow form of the published loss: the means over each channel's known voxels, added up."""
    arrays, affinities = published
    prediction = 2 * affinities - 1 if variant == "norm1" else affinities
    target, weight = arrays["loss_target"][0], arrays["loss_weight"][0]
    total = 0.0
    for channel in range(3):
        known = inner(channel)
        error = weight[channel][known] * (prediction[0, channel][known] - target[channel][known]) ** 2
        total += error.mean()
    assert total == pytest.approx(float(arrays[f"loss_{variant}_weightedmse"]), rel=1e-4)
