"""Every network, pre-trained with all objectives, to its scores; two of them from scratch and a masked autoencoder too.

The segmentation is a lifted multicut, for which networks learn affinities of long range too.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.workflow.conftest import TARGETS, Checkout

pytestmark = [pytest.mark.workflow, pytest.mark.timeout(1200)]

# Narrow networks. EMmamba in the published form, and in ours.
NETWORKS = {
    "superhuman": {"name": "superhuman", "filters": [2, 3]},
    "pea": {"name": "pea", "filters": [2, 3], "embedding": 4},
    "mala": {"name": "mala", "filters": [2, 3, 4, 5]},
    "unetr": {"name": "unetr", "feature": 2, "hidden": 8, "mlp": 8, "heads": 1, "layers": 4},
    "emmamba-published": {
        "name": "emmamba",
        "features": [4, 6],
        "hidden": 8,
        "depths": [1, 1],
        "strides": [[2, 2, 2]] * 2,
    },
    "emmamba": {
        "name": "emmamba",
        "features": [4, 6],
        "hidden": 8,
        "depths": [1, 1],
        "strides": [[1, 2, 2]] * 2,
        "residual": True,
        "slices": "sections",
        "equal_initialisation": True,
    },
    "resunet": {"name": "resunet", "filters": [2, 3], "kernels": [[1, 3, 3]] * 2, "poolings": [[1, 2, 2]]},
    "vit": {"name": "vit", "patch": [2, 8, 8], "hidden": 8, "mlp": 8, "heads": 2, "layers": 2, "feature": 2},
}
CROP = [4, 16, 24]
CROPS = {"mala": [31, 241, 241], "unetr": [8, 32, 32], "emmamba-published": [4, 8, 40]}
# MALA loses 28 x 212 x 212 voxels of a crop; one crop of this extent covers the test volume.
PREDICTED = {"mala": {"crop": [36, 268, 268], "padding": [0, 0, 0]}}
OBJECTIVES = {"mae": ["random"], "tokenunify": ["random", "next", "next-all"]}
SCORED = "tokenunify"
STARTS = [(n, SCORED) for n in NETWORKS] + [(n, start) for n in ("superhuman", "emmamba") for start in ("none", "mae")]
OFFSETS = [[-1, 0, 0], [0, -1, 0], [0, 0, -1], [-2, 0, 0], [0, -5, 0], [0, 0, -7]]


def configuration(config: dict) -> None:
    """Turn the tiny configuration into one with a model of each network and start."""
    shapes = {"tiny-train": [32, 244, 244], "tiny-validation": [8, 40, 48], "tiny": [8, 56, 56]}
    for name, shape in shapes.items():
        config["volumes"][name]["sources"][0]["phantom"]["shape"] = shape
    config["datasets"]["trained"] = {**config["datasets"]["tiny"], "test": []}
    config["finetune"].update(steps=2, validate_every=2, offsets=OFFSETS)
    config["segmentations"] = {"lifted": {"method": "multicut", "lifted": True}}
    config["evaluation"] = {"baseline": None}
    config["pretrainings"] = {f"{start}-{n}": pretraining(n, start) for n, start in STARTS if start in OBJECTIVES}
    config["models"] = {f"{n}-{start}": model(n, start) for n, start in STARTS}


def pretraining(network: str, start: str) -> dict:
    """All objectives in every step."""
    return {
        **{"network": NETWORKS[network], "corpus": "tiny", "objectives": OBJECTIVES[start], "mode": "joint"},
        **{"crop": CROPS.get(network, CROP), "patch": [1, 8, 8]},
        "resampler": {"latents": 4, "width": 8, "layers": 1, "heads": 2},
        **{"batch_size": 1, "steps": 2, "picture_every": 2},
    }


def model(network: str, start: str) -> dict:
    """A model with its pre-training, if any."""
    return {
        **{"network": NETWORKS[network], "dataset": "tiny" if start == SCORED else "trained"},
        **{"finetune": {"crop": CROPS.get(network, CROP)}, "predict": PREDICTED.get(network, {})},
        "pretraining": f"{start}-{network}" if start in OBJECTIVES else None,
    }


@pytest.fixture(scope="module")
def checkout(clone: Checkout, tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """All of them in one run."""
    checkout = clone.copy(tmp_path_factory.mktemp("networks") / "tokenunify")
    checkout.edit(configuration)
    checkout.snakemake(TARGETS[0], *(f"models/{n}-{start}/seed0/weights.json" for n, start in STARTS))
    return checkout


def assert_whole_body_loaded(folder: Path) -> None:
    """Heads are new, and everything else is from the pre-training."""
    transfer = pd.read_csv(folder / "transfer.csv", keep_default_na=False)
    heads = transfer.reason == "a head of its own"
    assert set(transfer.status[heads]) == {"new"}
    body = transfer[~heads & (transfer.status != "unused")]
    assert len(body) > 10
    assert set(body.status) == {"loaded"}


def test_the_table_has_every_network(checkout: Checkout):
    table = pd.read_csv(checkout.path / TARGETS[0])
    assert list(table.model) == [f"{network}-{SCORED}" for network in NETWORKS]


@pytest.mark.parametrize("network", NETWORKS)
def test_network_is_scored(checkout: Checkout, network: str):
    row = pd.read_csv(checkout.path / TARGETS[0]).set_index("model").loc[f"{network}-{SCORED}"]
    assert (row["network"], row["pretraining"]) == (NETWORKS[network]["name"], f"{SCORED}-{network}")
    assert row["num_segments"] > 0
    assert np.isfinite(row[["voi_split", "voi_merge", "voi", "arand"]].astype(float)).all()


@pytest.mark.parametrize(("network", "start"), STARTS)
def test_network_is_trained(checkout: Checkout, network: str, start: str):
    folder = checkout.path / f"models/{network}-{start}/seed0"
    losses = pd.read_csv(folder / "log.csv").loss.dropna()
    assert len(losses) and np.isfinite(losses).all()
    if start in OBJECTIVES:
        assert_whole_body_loaded(folder)
