"""The workflow as a module of another one, in another folder, as the page about it has it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.workflow.conftest import Checkout

pytestmark = pytest.mark.workflow

PAGE = Path(__file__).parents[2] / "docs/how-to/module.md"


def test_its_rules_are_used_by_another_workflow(clone: Checkout, tmp_path):
    checkout = clone.copy(tmp_path / "elsewhere" / "tokenunify")
    folder = tmp_path / "mine"
    folder.mkdir()
    text = re.search(r'```python title="Snakefile"\n(.*?)```', PAGE.read_text(), flags=re.DOTALL)[1]
    (folder / "Snakefile").write_text(text.replace("../tokenunify", str(checkout.path)))
    (folder / "mine.yaml").write_text(checkout.config.read_text())
    command = [sys.executable, "-m", "snakemake", "--cores", "2"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (folder / "mine.txt").read_text() == (folder / "data/volumes/tiny.json").read_text()
    dry = subprocess.run([*command, "-n", "results/tiny/metrics.csv"], cwd=folder, capture_output=True, text=True)
    assert "em_agglomerate" in dry.stdout, dry.stdout + dry.stderr
