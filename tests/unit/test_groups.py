"""What tests/conftest.py needs to give workers whole groups of tests."""

import os
import subprocess
import sys
from importlib.metadata import version

from xdist.scheduler import LoadScopeScheduling

MARKED = """
import os
from pathlib import Path
import pytest

@pytest.mark.xdist_group("one")
@pytest.mark.parametrize("number", range(4))
def test_group(number):
    Path(os.environ["PYTEST_XDIST_WORKER"]).touch()
"""
MEND = "see pytest_xdist_make_scheduler in tests/conftest.py"


def test_the_private_method_is_where_conftest_overrides_it():
    found = hasattr(LoadScopeScheduling, "_split_scope")
    assert found, f"xdist {version('pytest-xdist')} has no LoadScopeScheduling._split_scope: {MEND}"


def test_marks_still_do_not_keep_a_group_together(tmp_path):
    (tmp_path / "pytest.ini").write_text("[pytest]")
    (tmp_path / "test_marked.py").write_text(MARKED)
    command = [sys.executable, "-m", "pytest", "-n", "2", "--dist", "loadgroup"]
    own = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    subprocess.run(command, cwd=tmp_path, env=own, check=True, capture_output=True)
    workers = sorted(path.name for path in tmp_path.glob("gw*"))
    works = f"xdist {version('pytest-xdist')} keeps groups together with pytest {version('pytest')}"
    assert workers == ["gw0", "gw1"], f"{works}, so that marks can replace the scheduler: {MEND}"
