"""The configuration: what is refused, and with which words."""

import copy
import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from tokenunify import config
from tokenunify.config import Multicut, Waterz
from tokenunify.errors import InputError

VALID = {
    "volumes": {
        name: {"sources": [{"phantom": {"seed": seed, "shape": [20, 64, 80]}}], "voxel_size_nm": [35, 8, 8]}
        for seed, name in enumerate(["a", "b", "c"])
    },
    "datasets": {"d": {"train": ["a"], "validation": ["b"], "test": ["c"]}},
    "finetune": {"crop": [8, 32, 48]},
    "models": {"m": {"network": {"name": "superhuman"}, "dataset": "d"}},
    "segmentations": {"w": {"method": "waterz", "threshold": {"tune": [0.3, 0.5]}}, "k": {"method": "multicut"}},
}


def changed(path: str, value) -> dict:
    """The valid configuration with one key set."""
    result = copy.deepcopy(VALID)
    *parents, last = path.split("/")
    item = result
    for key in parents:
        item = item.setdefault(key, {}) if isinstance(item, dict) else item[int(key)]
    item[last] = value
    return result


def test_valid_configuration_inherits():
    value = changed("models/m/finetune", {"steps": 7})
    value["models"]["m"]["predict"] = {"flips": True}
    model = config.from_dict(value).models["m"]
    assert (model.finetune.steps, model.finetune.crop) == (7, (8, 32, 48))
    assert model.predict.flips
    assert isinstance(config.from_dict(value).segmentations["w"], Waterz)
    assert isinstance(config.from_dict(value).segmentations["k"], Multicut)


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("finetune/lerning_rate", 1, ["finetune.lerning_rate", "unknown key", "did you mean learning_rate?"]),
        ("volumes/a/voxel_size_nm", [35, 0, 8], ["volumes.a.voxel_size_nm.1", "greater than 0", "found 0"]),
        (
            "storage/block_shape",
            [32, 256, 300],
            ["storage.block_shape", "multiple of shard_shape [32, 256, 256]", "[32, 256, 300]"],
        ),
        ("storage/shard_shape", [24, 256, 256], ["storage.shard_shape", "multiple of chunk_shape [16, 64, 64]"]),
        ("finetune/crop", [8, 32, 96], ["models.m.finetune.crop", "training volume a", "[20, 64, 80]", "[8, 32, 96]"]),
        ("finetune/crop", [8, 33, 64], ["models.m.finetune.crop", "multiple of [1, 16, 16]", "[8, 33, 64]"]),
        ("datasets/d/test", ["x"], ["datasets.d.test", "'x'", "['a', 'b', 'c']"]),
        ("datasets/d/test", ["a"], ["datasets.d.test", "share ['a']"]),
        ("datasets/d/validation", [], ["segmentations.w.threshold.tune", "needs validation volumes", "datasets.d"]),
        ("models/m/dataset", "x", ["models.m.dataset", "'x'", "['d']"]),
        ("segmentations/rag", {"method": "waterz"}, ["segmentations.rag", "reserved"]),
        ("segmentations/w/method", "watershed", ["segmentations.w", "waterz", "multicut"]),
        (
            "volumes/a/sources",
            [{"raw": {"path": "f.h5", "format": "hdf5"}}],
            ["volumes.a.sources.0.raw", "needs dataset"],
        ),
        ("volumes/a/sources", [], ["volumes.a.sources", "at least 1"]),
        ("finetune/offsets", [[0, 0, -1], [0, -1, 0], [-1, 0, 0]], ["finetune", "offsets must begin with [[-1, 0, 0]"]),
        ("resources/predicts", {"parts": 2}, ["resources.predicts", "'predict'"]),
    ],
)
def test_wrong_key_is_explained(path: str, value, words: list[str]):
    with pytest.raises(InputError) as error:
        config.from_dict(changed(path, value), "my.yaml")
    for word in ["my.yaml", *words]:
        assert word in str(error.value)


def test_missing_voxel_size_is_explained():
    value = copy.deepcopy(VALID)
    del value["volumes"]["a"]["voxel_size_nm"]
    with pytest.raises(InputError, match=r"volumes\.a\.voxel_size_nm: this key is required"):
        config.from_dict(value)


def test_every_wrong_key_is_listed():
    value = changed("finetune/steps", 0)
    value["device"] = "tpu"
    with pytest.raises(InputError) as error:
        config.from_dict(value)
    assert "finetune.steps" in str(error.value)
    assert "device" in str(error.value)


def test_unreadable_file(tmp_path: Path):
    with pytest.raises(InputError, match=r"none\.yaml cannot be read"):
        config.load(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(InputError, match=r"bad\.yaml is not valid YAML"):
        config.load(tmp_path / "bad.yaml")


def test_schema_is_in_step(root: Path):
    assert (root / "config/schema.json").read_text() == config.schema_text(), (
        "write it anew: python -m tokenunify schema > config/schema.json"
    )


@pytest.mark.parametrize(
    "name", ["config/config.yaml", "config/demo.yaml", "config/fib25.yaml", "tests/config/tiny.yaml"]
)
def test_shipped_configurations_are_valid(root: Path, name: str):
    config.load(root / name)
    resources = json.loads((root / "config/schema.json").read_text())
    jsonschema.validate(yaml.safe_load((root / name).read_text()), resources)
