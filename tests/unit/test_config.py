"""The configuration: what is refused, and with which words."""

import copy
import json
import math
from pathlib import Path

import jsonschema
import pytest
import yaml
from snakemake.utils import update_config

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
FILE = {"path": "a.npy", "format": "npy"}
ON_HUB = {"huggingface": {"repo": "em/v", "file": "v.zarr"}}


def changed(path: str, value, valid: dict = VALID) -> dict:
    """A valid configuration with one key set."""
    result = copy.deepcopy(valid)
    *parents, last = path.split("/")
    item = result
    for key in parents:
        item = item.setdefault(key, {}) if isinstance(item, dict) else item[int(key)]
    item[last] = value
    return result


def refused(value) -> str:
    with pytest.raises(InputError) as error:
        config.from_dict(value, "my.yaml")
    return str(error.value)


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
        (
            "finetune/crop",
            [8, 32, 96],
            ["models.m.finetune.crop", "training volume a", "[20, 64, 80]", "[8, 32, 96]", "use [8, 32, 80]"],
        ),
        ("finetune/crop", [8, 33, 64], ["models.m.finetune.crop", "multiple of [1, 16, 16]", "[8, 33, 64]"]),
        ("models/m/network", {"name": "mala"}, ["models.m.finetune.crop must be", "nearest is [29, 214, 214]; change"]),
        ("models/m/network", {}, ["models.m.network.name: this key is required"]),
        (
            "models/m/network",
            {"name": "superhumam"},
            ["models.m.network.name: expected one of 'superhuman', 'mala', 'pea', ", 'found "superhumam"'],
        ),
        (
            "models/m/network",
            {"name": "vit", "hiden": 8},
            ["models.m.network.hiden: unknown key, did you mean hidden?"],
        ),
        (
            "models/m/network",
            {"name": "unetr", "layers": 3},
            ["models.m.network.layers: expected greater than or equal to 4, found 3"],
        ),
        (
            "models/m/network",
            {"name": "resunet", "poolings": [[2, 2, 2]]},
            ["models.m.network: poolings must have 3 entries for 4 filters, got 1"],
        ),
        ("datasets/d/test", ["x"], ["datasets.d.test", "'x'", "['a', 'b', 'c']"]),
        ("datasets/d/test", ["a"], ["datasets.d.test", "share ['a']"]),
        ("datasets/d/validation", [], ["segmentations.w.threshold.tune", "needs validation volumes", "datasets.d"]),
        ("models/m/dataset", "x", ["models.m.dataset", "'x'", "['d']"]),
        ("segmentations/rag", {"method": "waterz"}, ["segmentations.rag", "reserved"]),
        (
            "segmentations/w/method",
            "watershed",
            ["segmentations.w.method: expected one of 'waterz', 'multicut', found \"watershed\""],
        ),
        ("segmentations/w", {}, ["segmentations.w.method: this key is required"]),
        (
            "segmentations/w/fragments",
            {"block_shape": [32, 256, 300]},
            ["segmentations.w.fragments.block_shape", "multiple of storage.shard_shape [32, 256, 256]"],
        ),
        (
            "evaluation/baseline",
            {"segmentation": {"method": "waterz", "fragments": {"block_shape": [32, 256, 300]}}},
            ["evaluation.baseline.segmentation.fragments.block_shape", "multiple of storage.shard_shape"],
        ),
        ("predict/stride", [8, 33, 48], ["models.m.predict.stride", "crop [8, 32, 48]", "got [8, 33, 48]"]),
        ("predict", {"crop": [4, 16, 16], "stride": [5, 8, 8]}, ["models.m.predict.stride", "crop [4, 16, 16]"]),
        (
            "volumes/b/sources",
            [{"raw": FILE, "labels": FILE}, {"raw": FILE}],
            ["datasets.d.validation: volume b needs labels", "none in volumes.b.sources.1;"],
        ),
        ("volumes/a/sources", [{"raw": FILE}], ["datasets.d.train: volume a needs labels"]),
        ("volumes/c/sources", [{"raw": FILE}], ["datasets.d.test: volume c needs labels"]),
        ("datasets/d/train", [{"volume": "a", "sections": [12, 5]}], ["datasets.d.train.0", "rising, got [12, 5]"]),
        (
            "datasets/d/train",
            [{"volume": "a", "sections": [20, 25]}],
            ["datasets.d.train", "volume a must begin inside its 20 sections, got [20, 25]"],
        ),
        (
            "volumes/a/roi",
            {"offset": [0, 0, 1], "shape": [20, 64, 80]},
            ["volumes.a: roi", "sources.0.phantom of shape [20, 64, 80]", "[20, 64, 81]"],
        ),
        ("volumes/a/voxel_size_nm", [math.inf, 8, 8], ["volumes.a.voxel_size_nm.0: expected a finite number"]),
        ("volumes/a/voxel_size_nm", [35, math.nan, 8], ["volumes.a.voxel_size_nm.1: expected a finite number"]),
        ("finetune/betas", [0.9, 1], ["finetune.betas.1: expected less than 1, found 1"]),
        ("segmentations/k/beta", {"tune": [0, 0.5]}, ["segmentations.k.beta.tune.0: expected greater than 0, found 0"]),
        ("segmentations/k/beta", {"tune": [0.5, 1]}, ["segmentations.k.beta.tune.1: expected less than 1, found 1"]),
        (
            "segmentations/w/hierarchy",
            0.4,
            ["segmentations.w: hierarchy must be at most", "0.3, got 0.4: what is"],
        ),
        ("models/m/seeds", [0, 1, 0], ["models.m.seeds: expected different seeds, found [0, 1, 0]"]),
        (
            "evaluation/blockings",
            [[32, 256, 256]],
            ["evaluation.blockings: expected two or more different block shapes", "found [[32, 256, 256]]"],
        ),
        (
            "evaluation/blockings",
            [[32, 256, 256], [32, 256, 300]],
            ["evaluation.blockings.1 must be a multiple of storage.shard_shape [32, 256, 256]", "[32, 256, 300]"],
        ),
        ("models/m/train", "mamba", ["models.m: train: network superhuman has no mamba", "['encoder', 'decoder']"]),
        ("models/m/train", "mamba+encoder", ["models.m: train: network superhuman has no mamba", "'mamba+encoder'"]),
        ("models/m/train", "head", ["models.m.train: expected 'all', 'mamba'", 'found "head"']),
        ("models/m/lora", {"rank": 0}, ["models.m.lora.rank"]),
        ("models/m/weights", {}, ["models.m.weights: give one of path, url and huggingface"]),
        (
            "models/m/weights",
            {"path": "a.pt", "huggingface": {"repo": "a/b", "file": "c.pt"}},
            ["models.m.weights: give one of path, url and huggingface"],
        ),
        ("models/m/weights", {"huggingface": {"repo": "b", "file": "c.pt"}}, ["models.m.weights.huggingface.repo"]),
        ("models", ["a"], ["  models: expected a section of keys and values, found a list"]),
        ("models/m", None, ["models.m: expected a section of keys and values, found null"]),
        ("models/m/finetune", 5, ["models.m.finetune: expected a section of keys and values, found 5"]),
        ("finetune", 5, ["  finetune: expected a section of keys and values, found 5"]),
        ("resources", ["a"], ["resources: expected a section of keys and values, found a list"]),
        ("resources/predict", 5, ["resources.predict: expected a section of keys and values, found 5"]),
        (
            "volumes/a/sources",
            [{"raw": {"path": "f.h5", "format": "hdf5"}}],
            ["volumes.a.sources.0.raw", "needs dataset"],
        ),
        ("volumes/a/sources", [], ["volumes.a.sources", "at least 1"]),
        ("finetune/offsets", [[0, 0, -1], [0, -1, 0], [-1, 0, 0]], ["finetune", "offsets must begin with [[-1, 0, 0]"]),
        ("resources/predicts", {"parts": 2}, ["resources.predicts", "'predict'"]),
        (
            "segmentations/k/lifted",
            True,
            ["segmentations.k.lifted needs", "models.m.finetune.offsets has only [[-1, 0, 0], [0, -1, 0], [0, 0, -1]]"],
        ),
        (
            "segmentations/k",
            {"method": "multicut", "lifted": True, "solver": "decomposed"},
            ["segmentations.k: lifted needs a solver that knows lifted edges", "got solver decomposed"],
        ),
    ],
)
def test_wrong_key_is_explained(path: str, value, words: list[str]):
    text = refused(changed(path, value))
    for word in ["my.yaml", *words]:
        assert word in text


def test_several_files_are_merged_as_snakemake_does(tmp_path):
    paths = [tmp_path / "base.yaml", tmp_path / "mine.yaml"]
    mine = {"finetune": {"steps": 7}, "datasets": {"d": {"train": ["b"]}}}
    for path, value in zip(paths, (VALID, mine), strict=True):
        path.write_text(yaml.safe_dump(value))
    merged = copy.deepcopy(VALID)
    update_config(merged, mine)
    assert config.load(*paths) == config.from_dict(merged)
    with pytest.raises(InputError, match=r"base\.yaml \+ .*mine\.yaml is not valid:\n  finetune\.steps: expected"):
        paths[1].write_text("finetune: {steps: few}")
        config.load(*paths)


def test_lifted_edges_need_an_offset_that_leaves_the_neighbours():
    value = changed("segmentations/k/lifted", True)
    value["finetune"]["offsets"] = [[-1, 0, 0], [0, -1, 0], [0, 0, -1], [0, 0, 1]]
    assert "models.m.finetune.offsets has only" in refused(value)
    value["finetune"]["offsets"].append([0, -1, -1])
    assert config.from_dict(value).segmentations["k"].lifted


def test_a_model_starts_from_one_thing():
    value = changed("models/m/weights", {"path": "a.pt"})
    assert config.from_dict(value).models["m"].start == "published"
    value["models"]["m"]["pretraining"] = "p"
    assert "models.m: pretraining and weights exclude each other; remove one" in refused(value)
    value["models"]["m"]["pretraining"] = "none"
    assert config.from_dict(value).models["m"].pretraining is None
    assert config.from_dict(VALID).models["m"].start == "none"


@pytest.mark.parametrize(
    ("file", "words"),
    [
        (
            {"url": "ftp://x/a.npy", "format": "npy"},
            ["raw.url: expected to match pattern '^(https?|gs|s3|file)://'", "ftp://x/a.npy"],
        ),
        ({"url": "s3://x/a.npy", "format": "npy"}, ["url must start with http", "s3://x/a.npy"]),
        ({**ON_HUB, "format": "zarr"}, ["format zarr is a folder", "the member of an archive"]),
        ({"path": "a.h5", "partial": True, "format": "hdf5", "dataset": "raw"}, ["partial needs", "and a url"]),
        ({"path": "a.npy", "url": "https://x/a.npy", "format": "npy"}, ["one of path, url, huggingface and drive"]),
        ({"url": "https://x/a.png", "format": "images"}, ["format images needs indices", "https://x/a.png"]),
        ({"url": "https://x/{index}.tif", "format": "tiff"}, ["a url with {index} needs indices"]),
        ({"url": "https://x/{index}.png", "indices": [7, 7], "format": "images"}, ["rising, got [7, 7]"]),
        ({"url": "https://x/{index}.tif", "indices": [5, 7], "format": "tiff"}, ["need format images, got tiff"]),
        ({"url": "https://x/a.png", "indices": [5, 7], "format": "images"}, ["indices need a url with {index}"]),
        ({"url": "https://x/{z}{index}.png", "indices": [5, 7], "format": "images"}, ["no other field in braces"]),
        (
            {"url": "https://x/{index:q}.png", "indices": [5, 7], "format": "images"},
            ["indices need a url with {index}"],
        ),
        ({"path": "{index}.png", "indices": [5, 7], "format": "images"}, ["indices need a url with {index}"]),
        *(
            (
                {"path": "a", "format": name, "dataset": "raw"},
                ["dataset needs format hdf5 or n5 or ", f"or zarr, got {name}"],
            )
            for name in ("npy", "tiff", "images", "neuroproof", "nrrd", "mrc", "nifti")
        ),
    ],
)
def test_wrong_file_is_explained(file: dict, words: list[str]):
    text = refused(changed("volumes/a/sources", [{"raw": file, "labels": FILE}]))
    for word in ["volumes.a.sources.0.raw", *words]:
        assert word in text


@pytest.mark.parametrize("field", ["{index}", "{index:04d}"])
def test_indices_may_have_leading_zeros(field: str):
    file = {"url": f"https://x/{field}.png", "indices": [5, 7], "format": "images"}
    config.from_dict(changed("volumes/a/sources", [{"raw": file, "labels": FILE}]))


def test_stride_is_at_most_the_output_of_valid_convolutions():
    value = changed("models/m/network", {"name": "mala"})
    for name in "abc":
        value["volumes"][name]["sources"][0]["phantom"]["shape"] = [60, 300, 300]
    value["finetune"]["crop"] = [53, 268, 268]
    config.from_dict(value | {"predict": {"stride": [25, 56, 56]}})
    text = refused(value | {"predict": {"stride": [25, 57, 56]}})
    assert "models.m.predict.stride must be at most the output [25, 56, 56] of the crop [53, 268, 268]" in text


def test_tuned_baseline_needs_validation_volumes():
    value = changed("datasets/d/validation", [])
    del value["segmentations"]["w"]
    text = refused(value)
    assert "evaluation.baseline.segmentation.threshold.tune needs validation volumes, but datasets.d of model m" in text
    assert "add validation volumes, give evaluation.baseline.segmentation.threshold a number, or set" in text
    assert "evaluation.baseline: null" in text
    config.from_dict(value | {"evaluation": {"baseline": None}})
    config.from_dict(value | {"evaluation": {"baseline": {"segmentation": {"method": "waterz", "threshold": 0.5}}}})


def test_reported_model_belongs_to_the_dataset():
    value = changed("datasets/e", {"train": ["a"], "validation": ["b"]})
    value["models"]["n"] = {**value["models"]["m"], "dataset": "e"}
    text = refused(value | {"evaluation": {"models": {"d": ["m", "n"]}}})
    assert "evaluation.models.d must name models of dataset d, got n of dataset e" in text


@pytest.mark.parametrize(("value", "found"), [(["a"], "a list"), (None, "null")])
def test_a_configuration_without_keys_is_explained(value, found: str):
    assert refused(value) == (
        f"my.yaml is not valid:\n  config: expected a section of keys and values, found {found}; correct the value"
    )


@pytest.mark.parametrize(
    ("path", "value", "lines"),
    [
        ("finetune/stepz", 5, ["finetune.stepz: unknown key, did you mean steps?; correct or remove it"]),
        ("predict/sigma", 0, ["predict.sigma: expected greater than 0, found 0; correct the value"]),
        (
            "segmentations/w/threshold",
            5,
            [
                "segmentations.w.threshold: expected less than or equal to 1 or a section of keys and values, found 5; "
                "correct the value"
            ],
        ),
        (
            "segmentations/w/threshold",
            {"tune": [2]},
            ["segmentations.w.threshold.tune.0: expected less than or equal to 1, found 2; correct the value"],
        ),
        (
            "volumes/a/sources",
            [{"phantom": {"seed": 1, "shape": [20, 64, 80], "density": 0}}],
            ["volumes.a.sources.0.phantom.density: expected greater than 0, found 0; correct the value"],
        ),
        (
            "volumes/a/sources/0/mask",
            FILE,
            ["volumes.a.sources.0: a phantom has no mask; remove mask"],
        ),
        (
            "volumes/a/label_ids",
            "component",
            ["volumes.a.label_ids: expected 'keep', 'dense' or 'components', found \"component\"; correct the value"],
        ),
        (
            "evaluation/ignore_label",
            -1,
            ["evaluation.ignore_label: expected greater than or equal to 0, found -1; correct the value"],
        ),
        (
            "evaluation/ignore_label",
            2**64,
            [
                "evaluation.ignore_label: expected less than 18446744073709551616, found 18446744073709551616; correct "
                "the value"
            ],
        ),
        (
            "resources/predicts!",
            5,
            [
                "resources.predicts!: expected 'download', 'ingest', 'pretrain', 'finetune', 'predict', 'baseline', "
                "'fragments', 'rag', 'tune', 'agglomerate', 'relabel', 'evaluate', 'blockings' or 'segmentations', "
                'found "predicts!"; '
                "correct the key"
            ],
        ),
    ],
)
def test_one_line_for_one_mistake(path: str, value, lines: list[str]):
    assert refused(changed(path, value)).splitlines()[1:] == [f"  {line}" for line in lines]


def test_a_source_without_a_mask_is_described_as_before_there_were_masks():
    """Or every volume would be downloaded again."""
    assert config.Source(raw=FILE).model_dump().keys() == {"raw", "labels", "phantom"}
    assert config.Source(raw=FILE, mask=FILE).model_dump()["mask"]["path"] == "a.npy"


@pytest.mark.parametrize("label_ids", ["dense", "components"])
def test_labels_that_keep_their_ids_are_described_as_before_they_could_be_numbered(label_ids):
    """Or every volume would be ingested again."""
    volumes = config.from_dict(changed("volumes/a/label_ids", label_ids), "my.yaml").volumes
    assert volumes["a"].model_dump()["label_ids"] == label_ids
    assert "label_ids" not in volumes["b"].model_dump()


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
    "name",
    [
        "config/config.yaml",
        "config/demo.yaml",
        "config/fib25.yaml",
        "config/fib25-pretraining.yaml",
        "tests/config/tiny.yaml",
    ],
)
def test_shipped_configurations_are_valid(root: Path, name: str):
    config.load(root / name)
    resources = json.loads((root / "config/schema.json").read_text())
    jsonschema.validate(yaml.safe_load((root / name).read_text()), resources)
