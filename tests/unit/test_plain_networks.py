"""The plain residual U-Net, the plain vision transformer, and the transformer that UNETR shares with it."""

import numpy as np
import pytest
import torch

from tokenunify.config import ResUnet
from tokenunify.learning.networks import build
from tokenunify.learning.networks.transformer import Attention, from_patches, to_patches
from tokenunify.learning.networks.vit import positions

EXTENT, PATCH = (4, 6, 10), (2, 3, 5)


def test_patches_are_cut_in_raster_order_and_their_voxels_in_the_order_y_x_z():
    raw = torch.rand(2, 1, *EXTENT)
    tokens = to_patches(raw, PATCH)
    assert tokens.shape == (2, 8, 30)
    for number, (k, j, i) in enumerate(np.ndindex(2, 2, 2)):
        patch = raw[0, 0, k * 2 : k * 2 + 2, j * 3 : j * 3 + 3, i * 5 : i * 5 + 5]
        for place, (y, x, z) in enumerate(np.ndindex(3, 5, 2)):
            assert tokens[0, number, place] == patch[z, y, x]


def test_decoded_tokens_lie_where_their_patch_was():
    values = torch.rand(2, 8, 7 * 30)
    result = from_patches(values, PATCH, EXTENT)
    assert result.shape == (2, 7, *EXTENT)
    for number, (k, j, i) in enumerate(np.ndindex(2, 2, 2)):
        patch = result[1, :, k * 2 : k * 2 + 2, j * 3 : j * 3 + 3, i * 5 : i * 5 + 5]
        assert torch.equal(patch, values[1, number].reshape(7, *PATCH))


def test_attention_matches_its_formula():
    attention, x = Attention(6, heads=2, width=5, dropout=0.0).double(), torch.rand(1, 4, 6).double()
    q, k, v = (part.reshape(4, 2, 5) for part in attention.to_qkv(x)[0].split(10, dim=1))
    rows = []
    for head in range(2):
        scores = torch.exp(q[:, head] @ k[:, head].T / 5**0.5)
        rows.append(scores / scores.sum(1, keepdim=True) @ v[:, head])
    expected = attention.to_out[0](torch.cat(rows, dim=1))
    torch.testing.assert_close(attention(x)[0], expected)


@pytest.mark.parametrize("width", [12, 16])
def test_positions_match_their_formula_and_differ(width):
    result = positions((2, 3, 5), width, torch.device("cpu"))
    assert result.shape == (30, width)
    assert len(torch.unique(result, dim=0)) == 30
    for number, place in enumerate(np.ndindex(2, 3, 5)):
        for axis, at in enumerate(place):
            sines, cosines = result[number, 4 * axis : 4 * axis + 4].split(2)
            for i in range(2):
                angle = torch.tensor(at / 10_000 ** (i / 2))
                torch.testing.assert_close(sines[i], angle.sin())
                torch.testing.assert_close(cosines[i], angle.cos())
    assert not result[:, 12:].any()


def test_the_transformer_takes_any_crop_and_sees_all_of_it():
    network = build({"name": "vit", "patch": [2, 4, 8], "hidden": 12, "mlp": 9, "heads": 2, "layers": 2}).eval()
    for extent in ((4, 12, 24), (2, 4, 40)):
        raw = torch.rand(1, 1, *extent, requires_grad=True)
        output = network(raw)
        assert output.shape == (1, 3, *extent)
        output[..., 0, 0, 0].sum().backward()
        assert raw.grad[0, 0, -1, -1, -1] != 0


def test_tokens_know_their_position():
    network = build({"name": "vit", "patch": [1, 2, 2], "hidden": 12, "mlp": 9, "heads": 2, "layers": 1}).eval()
    with torch.no_grad():
        features = network.features(torch.ones(1, 1, 2, 4, 4))
    assert not torch.allclose(features[..., 0, :2, :2], features[..., 1, :2, :2], atol=1e-6)


@pytest.mark.parametrize("normalisation", ["instance", "group"])
def test_residual_network_pools_as_told(normalisation):
    options = {"filters": [4, 6, 8], "kernels": [[1, 3, 3], [3, 3, 3], [3, 3, 3]], "poolings": [[1, 2, 2], [2, 2, 2]]}
    config = {"name": "resunet", **options, "normalisation": normalisation, "groups": 2}
    network = build(config)
    assert network.config.unit == (2, 4, 4)
    shapes = []
    for block in network.down:
        block.register_forward_hook(lambda _, __, output: shapes.append(tuple(output.shape[1:])))
    assert network(torch.rand(1, 1, 4, 8, 12)).shape == (1, 3, 4, 8, 12)
    assert shapes == [(4, 4, 8, 12), (6, 4, 4, 6), (8, 2, 2, 3)]
    kinds = {"instance": torch.nn.InstanceNorm3d, "group": torch.nn.GroupNorm}
    assert isinstance(network.down[0].first_norm, kinds[normalisation])


def test_one_voxel_at_the_bottleneck_cannot_be_normalised():
    with pytest.raises(ValueError, match=r"must be larger than \[8, 8, 8\]"):
        ResUnet().output_extent((8, 8, 8))
    assert ResUnet().output_extent((8, 8, 16)) == (8, 8, 16)
