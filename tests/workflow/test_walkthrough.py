"""README, "Adding a dataset", done as it is written: its entry in the configuration, its commands, a user's file."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import h5py
import imageio.v3 as imageio
import numpy as np
import pandas as pd
import pytest
import yaml

from tests.workflow.conftest import Checkout
from tokenunify.data.phantom import phantom
from tokenunify.store import arrays

pytestmark = pytest.mark.workflow

SHAPE = (9, 50, 70)


def test_adding_a_dataset_takes_one_entry(clone: Checkout, tmp_path: Path, monkeypatch):
    checkout = clone.copy(tmp_path / "tokenunify")
    entry, commands, *_ = code(checkout.path / "README.md", "Adding a dataset")
    path = checkout.path / "config/config.yaml"
    path.write_text(yaml.safe_dump(merged(yaml.safe_load(path.read_text()), yaml.safe_load(entry))))
    raw, labels = write_file(tmp_path / "my.h5")
    monkeypatch.setenv("MY_DATA", str(tmp_path))
    store, table = map(shlex.split, commands.splitlines())
    run(checkout, *store)
    volume = arrays.open_volume(checkout.path / "data/volumes/my-volume.json")
    np.testing.assert_array_equal(volume.raw[:], raw)
    np.testing.assert_array_equal(volume.labels[:], labels)
    assert volume.voxel_size_nm == (40, 4, 4)
    assert "results/my-volume/metrics.csv" in run(checkout, *table, "--dry-run")


def test_the_tutorial_ends_with_scores(clone: Checkout, tmp_path: Path, monkeypatch):
    checkout = clone.copy(tmp_path / "tokenunify")
    page = (Path(__file__).parents[2] / "docs/tutorial.md").read_text()
    (checkout.path / "my-stack.yaml").write_text(re.search(r"```yaml\n(.*?)```", page, flags=re.DOTALL)[1])
    write_stack(checkout.path / "my-stack", num_sections=40)
    monkeypatch.setenv("MY_STACK", str(checkout.path / "my-stack"))
    commands = re.findall(r"^    (snakemake .*)$", page, flags=re.MULTILINE)
    assert len(commands) == 2
    for command in commands:
        run(checkout, *shlex.split(command))
    rows = pd.read_csv(checkout.path / "results/test/metrics.csv").set_index("segmentation")
    assert rows.loc["waterz"].voi < rows.loc["raw-watershed-mine"].voi
    assert (checkout.path / "results/report.html").exists()


def write_stack(folder: Path, num_sections: int) -> None:
    """Sections and labels of a phantom as the tutorial has them."""
    raw, labels = phantom.generate((num_sections, 120, 140), seed=1)
    for name, values in {"raw": raw, "labels": labels.astype(np.uint16)}.items():
        (folder / name).mkdir(parents=True)
        for z, section in enumerate(values):
            imageio.imwrite(folder / name / f"z{z:03}.png", section)


def code(readme: Path, section: str) -> list[str]:
    """The indented blocks of a section."""
    text = readme.read_text().split(f"\n## {section}\n")[1].split("\n## ")[0]
    blocks = re.findall(r"^\n((?: {4}.*\n)+)", text, flags=re.MULTILINE)
    return [re.sub(r"^ {4}", "", block, flags=re.MULTILINE) for block in blocks]


def merged(config: dict, entry: dict) -> dict:
    """The configuration with the entry added to its sections, key by key."""
    return {**config, **{section: config[section] | added for section, added in entry.items()}}


def write_file(path: Path) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    raw, labels = rng.integers(0, 256, SHAPE).astype(np.uint8), rng.integers(0, 9, SHAPE).astype(np.uint64)
    with h5py.File(path, "w") as file:
        file["raw"], file["labels"] = raw, labels
        file["raw"].attrs["resolution"] = (40, 4, 4)
    return raw, labels


def run(checkout: Checkout, program: str, *words: str) -> str:
    """Output of a command of the README."""
    assert program == "snakemake"
    command = [sys.executable, "-m", program, *words]
    done = subprocess.run(command, cwd=checkout.path, capture_output=True, text=True, timeout=500, env=os.environ)
    assert done.returncode == 0, done.stdout + done.stderr + checkout.logs()
    return done.stdout
