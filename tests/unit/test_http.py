"""Weights from elsewhere: what loads, what is told of the rest, and which part of a network is trained."""

import argparse
import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tokenunify import config as c
from tokenunify.errors import InputError
from tokenunify.learning import checkpoint, initial_weights, networks, trainable
from tokenunify.learning.published_weights import own_name
from tokenunify.store import manifest

SMALL = {"name": "superhuman", "filters": [3, 4, 5]}
TREES = [SMALL, {**SMALL, "upsampling": "transpose", "merge": "cat"}, {"name": "superhuman", "filters": [2, 3]}]


def build(offsets=c.NEAREST, seed=0, **changed):
    torch.manual_seed(seed)
    return networks.build({**SMALL, **changed}, offsets)


def published(tmp_path, value, name="net.pt"):
    """A download's manifest of a file that holds the value."""
    file = tmp_path / name
    (save_file if name.endswith(".safetensors") else torch.save)(value, file)
    manifest.write(tmp_path / "m.json", {"weights": {"sha256": manifest.file_sha256(file)}}, {"weights": str(file)})
    return tmp_path / "m.json"


def load(network, tensors, **options):
    rows = initial_weights.load(network, tensors, **{"source": "s", "with_head": False, "mode": "strict", **options})
    assert list(csv.DictReader(io.StringIO(initial_weights.table(rows)))) == rows
    return rows


def statuses(rows):
    return {row["name"] or row["source_name"]: row["status"] for row in rows}


def test_pretrained_body_loads_and_the_head_stays():
    pretrained, network = build(offsets=None, seed=1), build()
    head = {name: tensor.clone() for name, tensor in network.state_dict().items() if name.startswith("out_put.")}
    rows = load(network, pretrained.state_dict())
    assert {name for name, status in statuses(rows).items() if status == "new"} == set(head) != set()
    assert set(statuses(rows).values()) == {"loaded", "new"}
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, head.get(name, pretrained.state_dict()[name]))
    (bias,) = (row for row in rows if row["name"] == "out_put.0.bias")
    assert (bias["shape"], bias["source_name"], bias["source_shape"]) == ("3", "out_put.0.bias", "1")


def test_a_pretrained_head_is_left_behind_even_where_it_fits():
    network = build()
    before = network.out_put[0].weight.clone()
    assert statuses(load(network, build(seed=1).state_dict()))["out_put.0.weight"] == "new"
    assert torch.equal(network.out_put[0].weight, before)


MISFITS = {
    "embed_in.0.bias": torch.ones(7),
    "conv9.weight": torch.ones(2, 3),
}


def misfitting():
    """A published state dict with a tensor too many, one too few, and one of another shape."""
    state = {f"module.{name}": tensor for name, tensor in build(seed=1).state_dict().items()}
    del state["module.center.block3.weight"]
    return state | {f"module.{name}": tensor for name, tensor in MISFITS.items()}


def test_strict_lists_every_tensor_that_does_not_fit():
    with pytest.raises(InputError) as error:
        load(build(), misfitting(), source="here.pt")
    lines = str(error.value).splitlines()
    assert lines[0] == "here.pt does not fit network superhuman, 3 tensors are left over:"
    assert lines[1:4] == [
        "  embed_in.0.bias 3: the source has shape 7",
        "  center.block3.weight 5: the source has no such tensor",
        "  module.conv9.weight 2x3: the network has no such tensor",
    ]
    assert "transfer: partial" in lines[4]


def test_partial_leaves_out_what_does_not_fit_and_says_so():
    network = build()
    fresh = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    rows = load(network, misfitting(), mode="partial")
    found = statuses(rows)
    assert {n: s for n, s in found.items() if s in ("skipped", "unused")} == {
        "embed_in.0.bias": "skipped",
        "center.block3.weight": "skipped",
        "module.conv9.weight": "unused",
    }
    for name in ("embed_in.0.bias", "center.block3.weight"):
        assert torch.equal(network.state_dict()[name], fresh[name])
    assert {row["name"] for row in rows} - {""} == set(fresh)
    assert {row["source_name"] for row in rows} - {""} == set(misfitting())


def test_another_network_is_refused_with_the_keys_that_differ(tmp_path):
    manifest.write(tmp_path / "w.json", {"network": {**SMALL, "merge": "add"}})
    initial_weights.check_network(tmp_path / "w.json", {**SMALL, "merge": "add"})
    with pytest.raises(InputError) as error:
        initial_weights.check_network(tmp_path / "w.json", {"name": "mala", "filters": [3, 4, 5]})
    assert str(error.value).splitlines()[1:3] == [
        "  network.merge: None in the model, add in the pre-training",
        "  network.name: mala in the model, superhuman in the pre-training",
    ]


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "_orig_mod.module.", "model.", "model._orig_mod."])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"model": s, "epoch": 3, "args": {"lr": 0.1}},
        lambda s: {"state_dict": s, "iteration": 5},
        lambda s: {"model_state_dict": s, "best": np.float64(0.3), "losses": np.ones(3, np.float32), "n": np.int64(7)},
    ],
)
def test_published_files_may_be_wrapped(tmp_path, wrap, prefix):
    state = {f"{prefix}{name}": tensor for name, tensor in build(seed=1).state_dict().items()}
    read = initial_weights.read_published(published(tmp_path, wrap(state)))
    network = build()
    assert set(statuses(load(network, read, with_head=True)).values()) == {"loaded"}
    assert torch.equal(network.out_put[0].weight, state[f"{prefix}out_put.0.weight"])


def test_no_network_of_ours_has_a_name_that_looks_wrapped():
    for description in [*TREES, {"name": "emmamba"}, {"name": "unetr"}, {"name": "mala"}, {"name": "pea"}]:
        with torch.device("meta"):
            names = networks.build(description).state_dict()
        assert {name: own for name in names if (own := own_name(name)) != name} == {}


def test_two_tensors_of_one_name_are_refused():
    state = {"module.a": torch.ones(2), "a": torch.zeros(2)}
    with pytest.raises(InputError, match=r"both module\.a and a for the tensor a"):
        checkpoint.load_released(build(), state)


@pytest.mark.parametrize("content", [b"", b"hello, text\n", b"PK\x03\x04 no archive", bytes(range(256))])
@pytest.mark.parametrize("name", ["net.pt", "net.safetensors"])
def test_files_that_hold_no_weights_are_refused(tmp_path, content, name):
    made = published(tmp_path, {"a": torch.ones(2)}, name)
    (tmp_path / name).write_bytes(content)
    manifest.write(
        made, {"weights": {"sha256": manifest.file_sha256(tmp_path / name)}}, {"weights": str(tmp_path / name)}
    )
    with pytest.raises(InputError, match=r"net\.\w+ cannot be read: expected tensors by name") as error:
        initial_weights.read_published(made)
    assert "\x1b" not in str(error.value)


def test_published_safetensors(tmp_path):
    state = build(seed=1).state_dict()
    read = initial_weights.read_published(published(tmp_path, state, "net.safetensors"))
    assert all(torch.equal(read[name], tensor) for name, tensor in state.items())


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"weights": {"a": torch.ones(2)}}, r"found \['weights'\]"),
        ({"model": {"a": 3}}, r"found \['model'\]"),
        ([torch.ones(2)], "found list"),
        (
            {"model": {"a": torch.ones(2)}, "args": argparse.Namespace(lr=1)},
            r"holds an object of argparse\.Namespace, .* save",
        ),
        ({"state_dict": {"a": torch.ones(2)}, "at": Path("/x")}, r"holds an object of pathlib\.PosixPath"),
    ],
)
def test_other_files_are_refused(tmp_path, value, words):
    with pytest.raises(InputError, match=words):
        initial_weights.read_published(published(tmp_path, value))


def test_a_published_file_must_be_the_one_that_was_downloaded(tmp_path):
    made = published(tmp_path, {"a": torch.ones(2)})
    torch.save({"a": torch.ones(3)}, tmp_path / "net.pt")
    with pytest.raises(InputError, match=r"net\.pt has changed: expected sha256 .*delete .*m\.json"):
        initial_weights.read_published(made)
    (tmp_path / "net.pt").unlink()
    with pytest.raises(InputError, match=r"net\.pt does not exist any more"):
        initial_weights.read_published(made)


def test_published_arrays_load_completely(golden, tmp_path):
    arrays = golden("superhuman_a.npz")
    state = {f"module.{key[3:]}": torch.from_numpy(arrays[key]) for key in arrays if key.startswith("sd/")}
    tensors = initial_weights.read_published(published(tmp_path, {"model": state}))
    constructor = json.loads(str(arrays["constructor_json"]))
    network = networks.build({"name": "superhuman-released", **constructor}).eval()
    assert set(statuses(load(network, tensors, with_head=True)).values()) == {"loaded"}
    with torch.no_grad():
        output = network(torch.from_numpy(arrays["input"])).numpy()
    assert abs(output - arrays["output"]).max() < 1e-5


@pytest.mark.parametrize("description", TREES)
def test_parts_and_head_make_the_whole_network(description):
    network = networks.build(description)
    assert set(network.PARTS) == set(network.config.PARTS)
    owners = {"head": network.HEAD, **network.PARTS}
    for name, _ in network.named_parameters():
        assert [part for part, prefixes in owners.items() if name.startswith(prefixes)] in [[part] for part in owners]
    for prefixes in owners.values():
        assert all(any(name.startswith(p) for name in network.state_dict()) for p in prefixes)


def test_superhuman_decoder_begins_behind_the_bottleneck():
    network = build()
    trainable.train_only(network, "decoder")
    trained = {name.split(".")[0] for name, p in network.named_parameters() if p.requires_grad}
    assert trained == {"up0", "cat0", "conv2", "up1", "cat1", "conv3", "embed_out", "out_put"}


def test_frozen_normalisation_keeps_its_statistics():
    network = build(norm_momentum=0.5)
    trainable.train_only(network, "decoder")
    network.train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    network(torch.rand(2, 1, 3, 8, 12))
    changed = {name.split(".")[0] for name, t in network.state_dict().items() if not torch.equal(t, before[name])}
    assert changed == {"cat0", "conv2", "cat1", "conv3"}
    assert all(module.training for module in build().train().modules())


def adapted(**changed):
    network = build(**changed)
    trainable.train_only(network, "lora", c.Lora(rank=2, alpha=3))
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    return network


@pytest.mark.parametrize("upsampling", ["trilinear", "transpose"])
def test_merged_adapters_predict_the_same_under_plain_names(upsampling):
    plain, network = build(upsampling=upsampling).double(), adapted(upsampling=upsampling).double()
    merged = trainable.merged(network)
    assert {n: t.shape for n, t in merged.state_dict().items()} == {n: t.shape for n, t in plain.state_dict().items()}
    raw = torch.rand(1, 1, 3, 8, 12, dtype=torch.float64)
    with torch.no_grad():
        with_adapters = network.eval()(raw)
        torch.testing.assert_close(merged.eval()(raw), with_adapters, atol=1e-9, rtol=0)
        assert (plain.eval()(raw) - with_adapters).abs().max() > 1e-3


def test_adapters_begin_without_effect_and_train_with_the_head_alone():
    network = build()
    raw = torch.rand(1, 1, 3, 8, 12)
    with torch.no_grad():
        before = network.eval()(raw)
        trainable.train_only(network, "lora", c.Lora())
        assert torch.equal(network(raw), before)
    trained = {name for name, p in network.named_parameters() if p.requires_grad}
    expected = {f"{up}.1.lora_{ab}.lora.weight" for up in ("up0", "up1") for ab in "AB"}
    assert trained == expected | {"out_put.0.weight", "out_put.0.bias"}


def test_every_adapter_is_part_of_the_computation():
    network = adapted()
    network.logits(torch.rand(1, 1, 3, 8, 12)).sum().backward()
    assert [n for n, p in network.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())] == []


def test_a_network_without_adapters_is_left_alone():
    network = build()
    assert trainable.merged(network) is network


def test_mamba_projections_of_every_direction_are_adapted():
    class Block(torch.nn.Module):
        HEAD = ("out.",)

        def __init__(self):
            super().__init__()
            for direction in ("", "_b", "_s"):
                self.add_module(f"x_proj{direction}", torch.nn.Linear(4, 4))
                self.add_module(f"dt_proj{direction}", torch.nn.Linear(4, 4))
            self.in_proj, self.out_proj, self.fc1 = (torch.nn.Linear(4, 4) for _ in range(3))
            self.deep, self.out = torch.nn.Conv3d(4, 4, (1, 1, 3)), torch.nn.Conv3d(4, 3, 1)

    names = {f"{name}{direction}" for name in ("x_proj", "dt_proj") for direction in ("", "_b", "_s")}
    assert set(trainable.adaptable(Block())) == names | {"in_proj", "out_proj"}


def test_read_weights_is_what_rebuild_loads(tmp_path):
    network = build(seed=3)
    weights = tmp_path / "weights.safetensors"
    checkpoint.save_weights(weights, network.state_dict())
    content = {"weights": manifest.file_sha256(weights), "network": SMALL, "finetune": {"offsets": c.NEAREST}}
    manifest.write(tmp_path / "weights.json", content)
    tensors, _ = checkpoint.read_weights(tmp_path / "weights.json")
    rebuilt, _ = checkpoint.rebuild(tmp_path / "weights.json")
    assert all(torch.equal(tensors[name], tensor) for name, tensor in rebuilt.state_dict().items())
