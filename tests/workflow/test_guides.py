"""The guides for contributors, done as they are written: a format and a network are added by the pages' own code."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.workflow.conftest import Checkout
from tokenunify.store import arrays

pytestmark = pytest.mark.workflow

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r'^    ```(python|diff) title="(.*?)"\n(.*?)^    ```$', flags=re.MULTILINE | re.DOTALL)


def follow(checkout: Checkout, page: str) -> None:
    """Write the page's new modules and apply its edits."""
    text = (ROOT / "docs/how-to" / page).read_text()
    blocks = BLOCK.findall(text)
    assert blocks
    for kind, name, code in blocks:
        path, code = checkout.path / name, re.sub("^    ", "", code, flags=re.MULTILINE)
        if kind == "python":
            assert not path.exists()
            path.write_text(code)
            continue
        lines = code.splitlines(keepends=True)
        before = "".join(line[1:] for line in lines if line[0] != "+")
        after = "".join(line[1:] for line in lines if line[0] != "-")
        assert path.read_text().count(before) == 1, f"{page}: {before} is not once in {name}"
        path.write_text(path.read_text().replace(before, after))
    command = [sys.executable, "-m", "ruff", "check", "--quiet", "--config", ROOT / "pyproject.toml", "tokenunify"]
    subprocess.run(command, cwd=checkout.path, check=True)


def test_a_format_is_added(clone: Checkout, tmp_path: Path):
    checkout = clone.copy(tmp_path / "tokenunify")
    follow(checkout, "add-a-format.md")
    raw = np.random.default_rng(0).integers(0, 256, (9, 20, 34)).astype(np.uint8)
    np.savez(tmp_path / "stack.npz", raw=raw)
    source = {"raw": {"path": str(tmp_path / "stack.npz"), "format": "npz"}}
    checkout.edit(lambda config: config["volumes"].update(mine={"sources": [source], "voxel_size_nm": [35, 8, 8]}))
    checkout.snakemake("data/volumes/mine.json")
    np.testing.assert_array_equal(arrays.open_volume(checkout.path / "data/volumes/mine.json").raw[:], raw)
    np.savez(tmp_path / "stack.npz", raw=raw, other=raw)
    done = checkout.snakemake("data/volumes/mine.json", check=False)
    assert "must hold one array, found ['raw', 'other']" in done.stdout + done.stderr


def test_a_network_is_added(clone: Checkout, tmp_path: Path):
    checkout = clone.copy(tmp_path / "tokenunify")
    follow(checkout, "add-a-network.md")
    model = {"network": {"name": "plain", "features": 3}, "dataset": "tiny"}
    checkout.edit(lambda config: config["models"].update(small=model))
    checkout.snakemake("models/small/seed0/weights.json")
    weights = json.loads((checkout.path / "models/small/seed0/weights.json").read_text())
    assert weights["content"]["network"]["name"] == "plain"
