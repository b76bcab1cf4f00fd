"""The networks: published size, published names, published outputs."""

import copy
import json

import numpy as np
import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tokenunify.config import NEAREST
from tokenunify.errors import InputError
from tokenunify.learning import checkpoint
from tokenunify.learning.networks import BUILDERS, RELEASED, build
from tokenunify.learning.networks.recompute import recompute

SMALL = {"name": "superhuman", "filters": [3, 4, 5], "pooling": [1, 2, 2]}


def num_parameters(network):
    return sum(p.numel() for p in network.parameters())


SMALLEST = {
    "superhuman": (SMALL, (3, 12, 20)),
    "pea": ({**SMALL, "name": "pea", "embedding": 5}, (3, 12, 20)),
    "mala": ({"name": "mala", "filters": [2, 3, 4, 5]}, (30, 214, 241)),
    "unetr": ({"name": "unetr", "feature": 2, "hidden": 6, "mlp": 8, "heads": 1, "layers": 4}, (8, 16, 48)),
    "emmamba": (
        {"name": "emmamba", "features": [3, 4], "hidden": 5, "depths": [1, 2], "strides": [[1, 2, 2]] * 2},
        (3, 12, 20),
    ),
    "resunet": ({"name": "resunet", "filters": [2, 3], "kernels": [[1, 3, 3]] * 2, "poolings": [[1, 2, 2]]}, (3, 6, 8)),
    "vit": ({"name": "vit", "patch": [2, 4, 8], "hidden": 8, "mlp": 9, "heads": 2, "layers": 2}, (4, 12, 24)),
}
"""A small form of each network, and a crop for it."""


def test_every_network_is_tested():
    assert set(SMALLEST) == {name.split("-")[0] for name in BUILDERS}  # emmamba-tiny: a size


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"name": "superhuman"}, 1_477_659),
        ({"name": "superhuman", "merge": "cat"}, 1_554_331),
        ({"name": "mala"}, 84_020_475),
        ({"name": "pea"}, 1_478_036),
        ({"name": "pea", "merge": "cat"}, 1_554_708),
        ({"name": "pea", "upsampling": "transpose"}, 1_479_176),
        ({"name": "pea", "merge": "cat", "upsampling": "transpose"}, 1_555_848),
        ({"name": "pea-deep-released", "merge_mode": "add"}, 1_481_748),
        ({"name": "pea-deep-released"}, 1_558_420),
        ({"name": "unetr"}, 60_559_827),
        ({"name": "unetr-released"}, 129_071_547),
    ],
)
def test_published_number_of_parameters(config, expected):
    with torch.device("meta"):
        assert num_parameters(build(config)) == expected


@pytest.mark.parametrize("name", SMALLEST)
def test_output_is_an_affinity_or_intensities_of_the_promised_extent(name):
    config, crop = SMALLEST[name]
    raw = torch.rand(2, 1, *crop)
    network = build(config, offsets=[*NEAREST, (0, -3, 0)])
    extent = network.config.output_extent(crop)
    affinities = network(raw)
    assert affinities.shape == (2, 4, *extent)
    assert affinities.min() >= 0 and affinities.max() <= 1 and affinities.std() > 0
    pretraining = build(config, offsets=None)
    assert pretraining.logits(raw).shape == (2, 1, *extent)
    assert pretraining.features(raw).shape[:2] == (2, pretraining.feature_channels)


@pytest.mark.parametrize("name", SMALLEST)
def test_every_parameter_is_used_and_belongs_to_one_part(name):
    config, crop = SMALLEST[name]
    network = build(config)
    network(torch.rand(2, 1, *crop)).square().sum().backward()
    prefixes = [*network.HEAD, *(prefix for part in network.PARTS.values() for prefix in part)]
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None, key
        assert sum(key.startswith(prefix) for prefix in prefixes) == 1, key
    for prefix in prefixes:
        assert any(key.startswith(prefix) for key in network.state_dict()), prefix


def after_two_passes(network, raw):
    """Gradients, and what batch normalisation has seen, of two forward and backward passes with dropout."""
    torch.manual_seed(1)
    for _ in range(2):
        network(raw).square().sum().backward()
    return {name: p.grad for name, p in network.named_parameters()} | dict(network.named_buffers())


@pytest.mark.parametrize("name", SMALLEST)
def test_recomputed_stages_give_the_same_gradients(name):
    config, crop = SMALLEST[name]
    network, raw = build(config), torch.rand(1, 1, *crop)
    other = copy.deepcopy(network)
    recompute(other)
    other = copy.deepcopy(other)  # as the running average is
    runs = []
    stages = [module for module in other.modules() if getattr(module, "recomputed", False)]
    for stage in stages:
        stage.register_forward_pre_hook(lambda stage, _: runs.append(stage))
    found, expected = (after_two_passes(n, raw) for n in (other, network))
    assert found.keys() == expected.keys() and other.state_dict().keys() == network.state_dict().keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert len(runs) == 2 * 2 * {"mala": 7}.get(name, len(stages)) > 0


class Memory(TorchDispatchMode):
    """Counts the bytes of all tensors that are made and not yet gone."""

    def __init__(self):
        super().__init__()
        self.sizes, self.peak = {}, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self.sizes[StorageWeakRef(storage)] = storage.nbytes()
        self.sizes = {storage: size for storage, size in self.sizes.items() if not storage.expired()}
        self.peak = max(self.peak, sum(self.sizes.values()))
        return made


def test_recomputed_stages_save_memory():
    """Of a forward and a backward pass, gradients included."""
    torch.manual_seed(0)
    network = build(
        {"name": "emmamba", "features": [4, 8, 16], "hidden": 16, "depths": [3] * 3, "strides": [[1, 2, 2]] * 3}
    )
    peaks = []
    for _ in range(2):
        with Memory() as memory:
            network(torch.rand(1, 1, 5, 64, 80)).square().sum().backward()
        peaks.append(memory.peak)
        network.zero_grad()
        recompute(network)
    assert peaks[1] < 0.6 * peaks[0]


@pytest.mark.parametrize("name", SMALLEST)
def test_only_the_head_depends_on_the_task(name):
    config, _ = SMALLEST[name]
    body, other = ({k: t.shape for k, t in build(config, offsets=o).state_dict().items()} for o in (NEAREST, None))
    differing = {k for k in {**body, **other} if body.get(k) != other.get(k)}
    assert differing and all(k.startswith(build(config).HEAD) for k in differing)


@pytest.mark.parametrize("name", SMALLEST)
def test_a_crop_that_does_not_suit_the_network_is_refused(name):
    config, (z, y, x) = SMALLEST[name]
    with pytest.raises(InputError, match=r"the crop must be .*; change finetune\.crop"):
        build(config)(torch.rand(1, 1, z, y + 1, x))


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
        ({"name": "mala-released", "width": [2, 4, 6, 8]}, "width: expected a key among .*'widths'"),
        ({"name": "mala-released", "widths": [2, 4]}, "filters.2: this key is required"),
        ({"name": "pea-released", "cls": "UNet_PNI"}, "cls: expected one of .'UNet_PNI_embedding'"),
        ({"name": "unetr", "patch": [3, 16, 16]}, "patch must divide 16 in every axis, got .3, 16, 16."),
        ({"name": "vit", "hidden": 10, "heads": 3}, "hidden must be a multiple of heads 3, got 10"),
        ({"name": "resunet", "filters": [8, 16]}, "kernels must have 2 entries for 2 filters, got 4"),
        ({"name": "resunet", "normalisation": "group", "groups": 24}, "filters must be multiples of groups 24"),
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


@pytest.mark.parametrize(
    ("file", "config"),
    [
        ("superhuman_bilinear_add", {"name": "superhuman"}),
        ("superhuman_bilinear_cat", {"name": "superhuman-released"}),
        ("mala", {"name": "mala"}),
        ("pea_bilinear_add", {"name": "pea"}),
        ("pea_bilinear_cat", {"name": "pea-released"}),
        ("pea_deep_bilinear_add", {"name": "pea-deep-released", "merge_mode": "add"}),
        ("pea_deep_bilinear_cat", {"name": "pea-deep-released"}),
        ("unetr", {"name": "unetr-released"}),
    ],
)
def test_published_names_and_shapes(golden_folder, file, config):
    published = json.loads((golden_folder / f"{file}_keys.json").read_text())
    with torch.device("meta"):
        assert {name: list(tensor.shape) for name, tensor in build(config).state_dict().items()} == published


@pytest.mark.parametrize(
    ("name", "number", "axes"),
    [
        ("unetr-released", {"kernel_size": 3}, {"kernel_size": (3, 3, 3)}),
        ("unetr-released", {"patch_size": 8, "img_size": 32}, {"patch_size": [8, 8, 8], "img_size": [32, 32, 32]}),
        ("emmamba-released", {"kernel_size": 5}, {"kernel_size": (5, 5, 5)}),
    ],
)
def test_one_number_stands_for_all_axes(name, number, axes):
    def shapes(keys):
        with torch.device("meta"):
            return {key: tensor.shape for key, tensor in build({"name": name, **keys}).state_dict().items()}

    assert shapes(number) == shapes(axes) != shapes({})


@pytest.mark.parametrize("key", ["kernel_size", "patch_size", "img_size"])
@pytest.mark.parametrize("value", [0, "3", [3, 3], [1, 3, 3.5], True, None])
def test_other_sizes_than_one_or_three_numbers_are_refused(key, value):
    with pytest.raises(InputError, match=f"network.{key}: expected three positive integers or one, found"):
        build({"name": "unetr-released", key: value})


def test_unused_published_parameters_are_all_that_the_live_network_lacks():
    with torch.device("meta"):
        live, published = (build({"name": name}) for name in ("unetr", "unetr-released"))
    unused = published.state_dict().keys() - live.state_dict().keys()
    assert unused and live.state_dict().keys() == published.state_dict().keys() - unused
    assert all(name.startswith(published.UNUSED) for name in unused)


PUBLISHED = {
    "superhuman_a": ("superhuman-released", 1e-5),
    "superhuman_b": ("superhuman-released", 1e-5),
    "mala_a": ("mala-released", 1e-5),
    "pea_a": ("pea-released", 1e-4),
    "pea_deep_a": ("pea-deep-released", 1e-4),
    "unetr_a": ("unetr-released", 1e-5),
    "emmamba_a": ("emmamba-released", 1e-3),
    "emmamba_b": ("emmamba-released", 1e-3),
}
"""The published arrays: the network's name, and how far single precision may be off."""


def test_every_published_network_is_tested():
    assert {name for name, _ in PUBLISHED.values()} == set(RELEASED)


@pytest.mark.parametrize("file", PUBLISHED)
def test_published_outputs(golden, file):
    arrays = golden(f"{file}.npz")
    name, tolerance = PUBLISHED[file]
    network = build({"name": name, **json.loads(str(arrays["constructor_json"]))}).eval()
    state = {key[3:]: torch.from_numpy(arrays[key]) for key in arrays if key.startswith("sd/")}
    report = checkpoint.load_released(network, state)
    assert set(report.loaded) == set(state) and not report.missing and not report.unexpected
    expected = [arrays[key] for key in sorted(arrays) if key.startswith("output") and "f64" not in key]
    with torch.no_grad():
        outputs = tuple_of(network(torch.from_numpy(arrays["input"])))
        *_, exact = tuple_of(network.double()(torch.from_numpy(arrays["input"]).double()))
    for output, published in zip(outputs, expected, strict=True):
        np.testing.assert_allclose(output, published, atol=tolerance)
    np.testing.assert_allclose(exact[:, :, slice(*arrays["output_f64_z"])], arrays["output_f64"], atol=1e-9)


def tuple_of(outputs):
    return outputs if isinstance(outputs, tuple) else (outputs,)
