"""EMmamba: published sizes, names and feature maps, our options, and the crops it takes."""

import json

import numpy as np
import pytest
import torch

from tokenunify.config import EMmamba, validate
from tokenunify.errors import InputError
from tokenunify.learning import checkpoint
from tokenunify.learning.networks import build

PARAMETERS = {
    "tiny": 28_296_131,
    "small": 112_534_403,
    "middle": 206_577_475,
    "large": 506_567_395,
    "huge": 1_008_908_931,
}
SMALL = {"name": "emmamba", "features": [4, 6], "hidden": 8, "depths": [1, 2], "strides": [[1, 2, 2], [2, 2, 2]]}
SECTIONS = {**SMALL, "slices": "sections"}


@pytest.mark.parametrize("size", PARAMETERS)
@pytest.mark.parametrize("form", ["", "-released"])
def test_published_number_of_parameters(size, form):
    with torch.device("meta"):
        network = build({"name": f"emmamba-{size}{form}"})
    assert sum(p.numel() for p in network.parameters()) == PARAMETERS[size]


def test_published_names_and_shapes(golden_folder):
    published = json.loads((golden_folder / "emmamba_tiny_keys.json").read_text())
    for name in ("emmamba", "emmamba-tiny-released", "emmamba-released"):
        with torch.device("meta"):
            own = {key: list(tensor.shape) for key, tensor in build({"name": name}).state_dict().items()}
        assert own == published


@pytest.mark.parametrize("size", PARAMETERS)
def test_published_shapes_of_features(golden_folder, size):
    published = json.loads((golden_folder / "feature_shapes.json").read_text())[f"emmamba_{size}"]
    with torch.device("meta"):
        network = build({"name": f"emmamba-{size}-released"})
        found = {}
        for name in published["shapes"]:
            network.get_submodule(name).register_forward_hook(
                lambda module, args, output, name=name: found.update({name: list(output.shape)})
            )
        output = network(torch.zeros(published["input"]))
    assert found == published["shapes"]
    assert list(output.shape) == published["output"]


def test_published_feature_maps(golden):
    arrays = golden("emmamba_a.npz")
    network = build({"name": "emmamba-released", **json.loads(str(arrays["constructor_json"]))})
    checkpoint.load_released(network, {k[3:]: torch.from_numpy(arrays[k]) for k in arrays if k.startswith("sd/")})
    names, found = [key[5:] for key in arrays if key.startswith("feat/")], {}
    for name in names:
        network.get_submodule(name).register_forward_hook(
            lambda module, args, output, name=name: found.update({name: output.numpy()})
        )
    with torch.no_grad():
        network(torch.from_numpy(arrays["input"]))
    for name in names:
        np.testing.assert_allclose(found[name], arrays[f"feat/{name}"], atol=2e-3, err_msg=name)


def respond_to_odd_sections(config):
    """Whether the trunk of a network tells two crops apart that differ in their odd sections alone."""
    torch.manual_seed(0)
    network, raw = build(config), torch.rand(1, 1, 4, 20, 40)
    other = raw.clone()
    other[:, :, 1::2] = torch.rand(1, 1, 2, 20, 40)
    with torch.no_grad():
        return not torch.equal(network.vit(raw)[-1], network.vit(other)[-1])


def test_stride_of_one_in_z_skips_no_section():
    assert not respond_to_odd_sections({**SMALL, "strides": [[2, 2, 2], [1, 2, 2]]})
    assert respond_to_odd_sections({**SMALL, "strides": [[1, 2, 2], [1, 2, 2]]})


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("slices", ["fifths", "sections"])
def test_maps_and_heads_of_our_form(residual, slices):
    torch.manual_seed(0)
    config = {**SMALL, "residual": residual, "slices": slices, "equal_initialisation": True}
    network, raw = build(config, offsets=None), torch.rand(2, 1, 4, 20, 8)
    assert network.features(raw).shape == (2, network.feature_channels, 4, 20, 8)
    assert network.logits(raw).shape == (2, 1, 4, 20, 8)
    affinities = build(config)(raw)
    assert affinities.shape == (2, 3, 4, 20, 8)
    assert affinities.min() > 0 and affinities.max() < 1


def test_residual_adds_the_layers_input():
    torch.manual_seed(0)
    plain, residual = (build({**SMALL, "residual": on}) for on in (False, True))
    residual.load_state_dict(plain.state_dict())
    x = torch.rand(1, 4, 2, 5, 3)
    layers = [network.vit.stages[0][0] for network in (plain, residual)]
    with torch.no_grad():
        torch.testing.assert_close(layers[1](x), x + layers[0](x))


def test_sections_read_another_order_than_fifths():
    torch.manual_seed(0)
    fifths, sections = build(SMALL), build(SECTIONS)
    sections.load_state_dict(fifths.state_dict())
    raw = torch.rand(1, 1, 4, 20, 8)
    with torch.no_grad():
        assert not torch.allclose(fifths(raw), sections(raw), atol=1e-4)


@pytest.mark.parametrize(
    "crop", [(16, 160, 160), (32, 160, 160), (32, 320, 320), (16, 80, 80), (16, 128, 160), (80, 16, 16)]
)
def test_crops_of_the_published_network(crop):
    assert EMmamba().output_extent(crop) == crop


@pytest.mark.parametrize(
    ("config", "crop", "words"),
    [
        ({}, (16, 256, 256), r"multiple of 5 tokens.*got \[16, 256, 256\].*stage 0 \[8, 128, 128\] = 131072: make"),
        ({}, (16, 96, 96), "multiple of 5 tokens"),
        ({}, (16, 64, 64), "multiple of 5 tokens"),
        ({}, (18, 160, 160), r"multiple of \[16, 16, 16\]"),
        ({}, (8, 160, 160), r"multiple of \[16, 16, 16\]"),
        ({"slices": "sections"}, (16, 16, 16), r"must be larger than \[16, 16, 16\]"),
        ({"strides": [[1, 2, 2]] * 4, "slices": "sections"}, (3, 24, 32), r"multiple of \[1, 16, 16\]"),
    ],
)
def test_illegal_crops_are_explained(config, crop, words):
    with pytest.raises(ValueError, match=words):
        validate(EMmamba, config, "network").output_extent(crop)


def test_sections_take_any_multiple_of_the_strides():
    assert validate(EMmamba, {"slices": "sections"}, "network").output_extent((16, 96, 32)) == (16, 96, 32)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"name": "emmamba-tiny", "features": [4, 4, 4, 4]}, r"features and hidden of emmamba-tiny are \[32, 64"),
        ({"name": "emmamba-tiny-released", "residual": True}, "residual of emmamba-tiny-released must be False"),
        ({"name": "emmamba", "features": [4, 4]}, "depths must have 2 entries for 2 features, got 4"),
        ({**SMALL, "kernel": [1, 4, 5]}, r"kernel must be odd in every axis, got \[1, 4, 5\]"),
        ({**SMALL, "slices": "thirds"}, "slices: expected 'fifths' or 'sections'"),
        ({"name": "emmamba-released", "feature_size": [4]}, "feature_size: expected a key among"),
        ({"name": "emmamba-released", "cls": "UNETR"}, "cls: expected one of .'SegMamba'"),
    ],
)
def test_bad_descriptions_are_explained(config, words):
    with pytest.raises(InputError, match=words):
        build(config)


def test_description_survives_a_checkpoint():
    config = validate(EMmamba, {"name": "emmamba-large"}, "network")
    assert (config.features, config.hidden) == ((144, 288, 576, 1104), 2048)
    assert validate(EMmamba, config.model_dump(mode="json"), "network") == config
