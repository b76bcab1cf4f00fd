"""What torch's libraries read from the environment: it is there in time, and they still read it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tokenunify.stages.table import STAGES

VALUES = {"GOMP_SPINCOUNT": "2000", "THP_MEM_ALLOC_ENABLE": "1"}
MODULES = [stage.module for stage in STAGES.values() if stage.module.startswith("learning.")]
WATCH = f"""
import importlib, os, sys

class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print(*(os.environ.get(variable) for variable in {list(VALUES)}))
            sys.stdout.flush()
            os._exit(0)

sys.meta_path.insert(0, Watch())
import tokenunify.cli
importlib.import_module("tokenunify." + sys.argv[1])
"""


def at_first_import_of_torch(module, **given):
    """Values of the variables when a stage's process first asks for torch, where it is stopped."""
    others = {key: value for key, value in os.environ.items() if key not in VALUES}
    command = [sys.executable, "-c", WATCH, module]
    result = subprocess.run(command, env={**others, **given}, check=True, capture_output=True, text=True, timeout=120)
    return dict(zip(VALUES, result.stdout.split(), strict=True))


@pytest.mark.parametrize("module", [*MODULES, "learning.summary"])
def test_a_stage_sets_them_before_it_imports_torch(module):
    assert at_first_import_of_torch(module) == VALUES


def test_values_of_the_user_win():
    own = {"GOMP_SPINCOUNT": "7", "THP_MEM_ALLOC_ENABLE": "0"}
    assert at_first_import_of_torch("learning.predict", **own) == own


@pytest.mark.skipif(sys.platform != "linux", reason="torch has GNU OpenMP on Linux alone")
@pytest.mark.parametrize(("variable", "library"), [("GOMP_SPINCOUNT", "libgomp"), ("THP_MEM_ALLOC_ENABLE", "libc10")])
def test_the_library_that_torch_has_loaded_reads_the_variable(variable, library):
    assert torch.get_num_threads() > 0
    files = {line.split(maxsplit=5)[-1] for line in Path("/proc/self/maps").read_text().splitlines() if library in line}
    assert files, f"torch does without {library}: {variable} has no effect, and learning/environment.py may go"
    assert any(variable.encode() in Path(file.strip()).read_bytes() for file in files)
