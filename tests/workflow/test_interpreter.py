"""Which Python runs the jobs: that of Snakemake, whatever PATH says, or with --sdm conda the environment's."""

import os
import sys
from pathlib import Path

import pytest

from tests.workflow.conftest import Checkout, executable

pytestmark = pytest.mark.workflow

TARGET = "data/downloads/tiny.json"
# Answers what Snakemake asks; its environments hold a `python` that leaves a note and runs the tests' interpreter.
CONDA = """
case "$1" in
info) echo '{{"conda_prefix": "{base}", "platform": "linux-64"}}' ;;
--version) echo conda 25.7.0 ;;
config) echo '{{"get": {{"channel_priority": "strict"}}}}' ;;
env)
  for prefix; do :; done
  mkdir -p "$prefix/bin"
  cp {base}/environment-python "$prefix/bin/python"
  ;;
esac
"""


@pytest.fixture
def system(tmp_path: Path) -> dict[str, str]:
    """An environment without this interpreter's folder on PATH, and with a `python` that is of no use."""
    executable(tmp_path / "system/python", "echo the wrong python >&2; exit 1")
    return {**os.environ, "PATH": f"{tmp_path / 'system'}:/usr/bin:/bin"}


@pytest.fixture
def checkout(clone: Checkout, tmp_path: Path) -> Checkout:
    return clone.copy(tmp_path / "tokenunify")


def test_jobs_run_the_interpreter_of_snakemake(checkout: Checkout, system: dict[str, str]):
    checkout.snakemake(TARGET, env=system)
    assert (checkout.path / TARGET).exists()


def test_jobs_run_the_interpreter_of_their_conda_environment(checkout: Checkout, system, tmp_path: Path):
    base, note = tmp_path / "conda", tmp_path / "note"
    executable(tmp_path / "system/conda", CONDA.format(base=base))
    executable(base / "bin/activate", 'export PATH="$1/bin:$PATH"')
    executable(base / "environment-python", f'echo "$0 $PYTHONPATH" > {note}; exec {sys.executable} "$@"')
    checkout.snakemake(TARGET, "--sdm", "conda", env=system)
    assert (checkout.path / TARGET).exists()
    python, pythonpath = note.read_text().split()
    assert Path(python).is_relative_to(checkout.path / ".snakemake/conda")
    assert pythonpath == str(checkout.path), "the environment holds dependencies only"
