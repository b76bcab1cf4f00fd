"""The Mamba block: published values and gradients, its initialisation, and the orders in which it reads a map."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tokenunify.errors import InputError
from tokenunify.learning import checkpoint
from tokenunify.learning.mamba import Mamba, interleave
from tokenunify.learning.networks import build


def published(golden, dtype):
    arrays = golden("mamba_v3_a.npz")
    block = build({"name": "mamba-v3-released", **json.loads(str(arrays["constructor_json"]))})
    state = {key[3:]: torch.from_numpy(arrays[key]) for key in arrays if key.startswith("sd/")}
    report = checkpoint.load_released(block, state)
    assert not report.missing and not report.unexpected
    return arrays, block.to(dtype)


@pytest.mark.parametrize(("dtype", "suffix", "tolerance"), [(torch.float32, "", 2e-6), (torch.float64, "_f64", 1e-12)])
def test_published_output_and_gradients(golden, dtype, suffix, tolerance):
    arrays, block = published(golden, dtype)
    tokens = torch.from_numpy(arrays["input"]).to(dtype).requires_grad_()
    output = block(tokens)
    (output * torch.from_numpy(arrays["loss_weight"])).sum().backward()
    found = {"output": output.detach(), "grad_input": tokens.grad}
    for name, tensor in found.items():
        expected = arrays[name + suffix]
        np.testing.assert_allclose(tensor.numpy(), expected, atol=tolerance * np.abs(expected).max())
    for name, parameter in block.named_parameters():
        expected = arrays[f"grad/{name}"]
        np.testing.assert_allclose(parameter.grad.numpy(), expected, atol=2e-6 * np.abs(expected).max(), err_msg=name)


def test_published_names_and_initialisation(golden_folder):
    """Fixed values are met exactly, and random ones stay within the bounds that the published block showed."""
    statistics = json.loads((golden_folder / "mamba_v3_init_stats.json").read_text())
    torch.manual_seed(0)
    state = Mamba(32).state_dict()
    assert set(state) == {name for name in statistics if "(" not in name}
    for name, tensor in state.items():
        assert list(tensor.shape) == statistics[name]["shape"]
        width = statistics[name]["max"] - statistics[name]["min"]
        for key, found in (("min", tensor.min()), ("max", tensor.max()), ("mean", tensor.mean())):
            assert found.item() == pytest.approx(statistics[name][key], abs=0.15 * width), (name, key)


@pytest.mark.parametrize("equal", [False, True])
def test_initial_steps(equal):
    torch.manual_seed(0)
    block = Mamba(64, equal_initialisation=equal)
    steps = {name: F.softplus(block.get_submodule(f"dt_proj{name}").bias) for name in ("", "_b", "_s")}
    for name, step in steps.items():
        if equal or name == "":
            assert 0.001 <= step.min() < 0.0015 and 0.07 < step.max() <= 0.1
            assert 0.3 < (step < 0.01).float().mean() < 0.7  # log-uniform: half of them below the geometric mean
        else:
            assert step.min() > 0.4 and step.max() < 1.11


def test_third_order_takes_the_first_token_of_each_slice_then_the_second():
    tokens = torch.arange(15)
    order = interleave(tokens, 5)
    length = 3
    assert all(order[m * 5 + s] == s * length + m for m in range(length) for s in range(5))
    assert torch.equal(interleave(order, length), tokens)


def by_direction(block, x, order, suffix):
    """One direction of a block, written out for one sample: x (l, d) in raster order, order[i] the i-th token read."""
    weights = {name: tensor.detach() for name, tensor in block.named_parameters()}
    conv, bias = weights[f"conv1d{suffix}.weight"][:, 0], weights[f"conv1d{suffix}.bias"]
    A, D = -weights[f"A{suffix}_log"].exp(), weights[f"D{suffix}"]
    h, result, ordered = torch.zeros_like(A), torch.zeros_like(x), x[order]
    for i, token in enumerate(order):
        v = bias.clone()
        for k in range(conv.shape[1]):
            if i - k >= 0:
                v += conv[:, -1 - k] * ordered[i - k]
        v = F.silu(v)
        dt, B, C = (weights[f"x_proj{suffix}.weight"] @ v).split([block.rank, block.num_states, block.num_states])
        step = F.softplus(weights[f"dt_proj{suffix}.weight"] @ dt + weights[f"dt_proj{suffix}.bias"])
        h = torch.exp(step[:, None] * A) * h + (step * v)[:, None] * B
        result[token] = h @ C + D * v
    return result


@pytest.mark.parametrize(("slices", "extent"), [(5, (2, 5, 3)), ("sections", (3, 2, 4)), ("sections", (1, 2, 3))])
def test_block_is_the_sum_of_three_directions(slices, extent):
    torch.manual_seed(1)
    block = Mamba(6, num_states=3, slices=slices).double()
    num = extent[0] * extent[1] * extent[2]
    tokens = torch.randn(1, num, 6, dtype=torch.float64)
    x, gate = (tokens[0] @ block.in_proj.weight.detach().T).chunk(2, dim=1)
    pieces = extent[0] if slices == "sections" else slices
    orders = {
        "": list(range(num)),
        "_b": list(reversed(range(num))),
        "_s": [s * (num // pieces) + m for m in range(num // pieces) for s in range(pieces)],
    }
    total = sum(by_direction(block, x, order, suffix) for suffix, order in orders.items())
    expected = (total * F.silu(gate)) @ block.out_proj.weight.detach().T
    np.testing.assert_allclose(block(tokens, extent)[0].detach().numpy(), expected.numpy(), atol=1e-12)


@pytest.mark.parametrize(
    ("options", "extent", "words"),
    [
        ({}, (2, 3, 2), "12 tokens cannot be cut into 5 chunks"),
        ({"slices": "sections"}, None, "extent of the map of 12 tokens was None"),
        ({"slices": "sections"}, (2, 3, 3), r"extent of the map of 12 tokens was \(2, 3, 3\)"),
    ],
)
def test_tokens_that_do_not_fit_are_explained(options, extent, words):
    with pytest.raises(InputError, match=words):
        Mamba(4, **options)(torch.zeros(1, 12, 4), extent)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({}, "d_model: this key is required"),
        ({"d_model": 4, "bimamba_type": "v2"}, "bimamba_type: expected one of .'v3'"),
        ({"d_model": 4, "d_states": 8}, "d_states: expected a key among"),
    ],
)
def test_bad_released_keys_are_explained(keys, words):
    with pytest.raises(InputError, match=words):
        build({"name": "mamba-v3-released", **keys})
