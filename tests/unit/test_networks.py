"""The networks: published size, published names, published outputs."""

import json

import numpy as np
import pytest
import torch

from tokenunify.config import NEAREST
from tokenunify.errors import InputError
from tokenunify.learning import checkpoint
from tokenunify.learning.networks import build

SMALL = {"name": "superhuman", "filters": [3, 4, 5], "pooling": [1, 2, 2]}


def num_parameters(network):
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(("merge", "expected"), [("add", 1_477_659), ("cat", 1_554_331)])
def test_published_number_of_parameters(merge, expected):
    assert num_parameters(build({"name": "superhuman", "merge": merge})) == expected


@pytest.mark.parametrize("upsampling", ["trilinear", "transpose"])
@pytest.mark.parametrize("normalisation", ["batch", "instance"])
@pytest.mark.parametrize("merge", ["add", "cat"])
def test_output_has_the_extent_of_the_input(upsampling, normalisation, merge):
    torch.manual_seed(0)
    options = {"upsampling": upsampling, "normalisation": normalisation, "merge": merge}
    network = build({**SMALL, **options}, offsets=[*NEAREST, (0, -3, 0), (0, 0, -3)])
    affinities = network(torch.rand(2, 1, 3, 12, 20))
    assert affinities.shape == (2, 5, 3, 12, 20)
    assert affinities.min() > 0 and affinities.max() < 1


def test_isotropic_network_pools_every_axis():
    network = build({**SMALL, "pooling": [2, 2, 2], "first_kernel": [3, 3, 3], "embed_kernel": [3, 3, 3]})
    assert network(torch.rand(1, 1, 8, 12, 16)).shape == (1, 3, 8, 12, 16)


def test_strided_network_returns_to_full_resolution():
    network = build({**SMALL, "embed_kernel": [3, 3, 3], "embed_stride": [1, 2, 2]})
    assert network(torch.rand(1, 1, 3, 16, 24)).shape == (1, 3, 3, 16, 24)
    with pytest.raises(InputError, match=r"multiple of \[1, 8, 8\]"):
        network(torch.rand(1, 1, 3, 16, 20))


def test_crop_that_cannot_be_pooled_is_refused():
    with pytest.raises(InputError, match=r"multiple of \[1, 4, 4\].*crop"):
        build(SMALL)(torch.rand(1, 1, 3, 12, 18))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"name": "superhumam"}, "network.name: expected one of"),
        ({**SMALL, "filter": [3, 4]}, "filter: unknown key, did you mean filters"),
        ({"name": "superhuman-released", "relu_mode": "gelu"}, "relu_mode: expected one of .'elu'"),
    ],
)
def test_bad_description_is_explained(config, words):
    with pytest.raises(InputError, match=words):
        build(config)


def test_initialisation_follows_the_seed_and_is_kaiming():
    torch.manual_seed(5)
    first = build({"name": "superhuman"})
    torch.manual_seed(5)
    again = build({"name": "superhuman"})
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])
    weight = first.center.block2[0].weight
    assert weight.std().item() * weight[0].numel() ** 0.5 == pytest.approx(2**0.5, rel=0.02)
    assert not first.embed_in[0].bias.any()


def test_load_released_reports_what_did_not_load():
    network = build(SMALL)
    state = {f"module.{name}": torch.ones_like(tensor) for name, tensor in network.state_dict().items()}
    del state["module.out_put.0.bias"]
    state["module.embed_in.0.bias"] = torch.ones(7)
    state["module.head.weight"] = torch.ones(2)
    report = checkpoint.load_released(network, state)
    assert set(report.missing) == {"out_put.0.bias", "embed_in.0.bias"}
    assert report.unexpected == ["head.weight"]
    assert network.state_dict()["center.block3.weight"].eq(1).all()


def test_published_names_and_shapes(golden_folder):
    published = json.loads((golden_folder / "superhuman_bilinear_add_keys.json").read_text())
    own = {name: list(tensor.shape) for name, tensor in build({"name": "superhuman"}).state_dict().items()}
    assert own == published


@pytest.mark.parametrize("name", ["superhuman_a", "superhuman_b"])
def test_published_outputs(golden, name):
    arrays = golden(f"{name}.npz")
    network = build({"name": "superhuman-released", **json.loads(str(arrays["constructor_json"]))}).eval()
    state = {key[3:]: torch.from_numpy(arrays[key]) for key in arrays if key.startswith("sd/")}
    report = checkpoint.load_released(network, state)
    assert not report.missing and not report.unexpected
    with torch.no_grad():
        output = network(torch.from_numpy(arrays["input"])).numpy()
        planes = slice(*arrays["output_f64_z"])
        exact = network.double()(torch.from_numpy(arrays["input"]).double()).numpy()[:, :, planes]
    np.testing.assert_allclose(output, arrays["output"], atol=1e-5)
    np.testing.assert_allclose(exact, arrays["output_f64"], atol=1e-9)
