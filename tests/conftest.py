"""What all tests share: their order over the workers, the repository, real data and the published reference files."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from xdist.scheduler import LoadScopeScheduling

# One thread per process: small arrays gain nothing from more, workers that each start threads for all cores slow each
# other many times, and results stay the same on every machine.
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")


LONGEST_FIRST = ("tests/slurm/", "tests/workflow/test_networks.py", "tests/workflow/test_kill.py", "tests/workflow/")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start the longest tests first."""
    items.sort(key=_rank)


def _rank(item: pytest.Item) -> int:
    starts = [item.nodeid.startswith(prefix) for prefix in LONGEST_FIRST]
    return starts.index(True) if any(starts) else len(starts)


def pytest_xdist_make_scheduler(config: pytest.Config, log) -> LoadScopeScheduling:
    """Give a worker whole groups of tests, those that share a costly fixture.

    All tests of SLURM share its cluster, those of one file their fixtures. The workflow's others each have a checkout
    of their own, copied from a finished run that the workers share.

    Marks and --dist loadgroup would say it without a private method, but xdist 3.8 spreads a group over all workers
    with pytest 9.2 (pytest-dev/pytest-xdist#1386); tests/unit/test_groups.py tells when they work again.
    """

    class Groups(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            if file.startswith("tests/slurm/"):
                return "tests/slurm"
            alone = file.startswith("tests/workflow/") and file != "tests/workflow/test_networks.py"
            return nodeid if alone else file

    return Groups(config, log)


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def session_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of this run of the tests, the same for all its workers."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder with the real volumes."""
    folder = os.environ.get("TOKENUNIFY_DATA")
    if not folder:
        pytest.skip("TOKENUNIFY_DATA is not set: export it with the folder that holds the downloaded volumes")
    return Path(folder)


@pytest.fixture(scope="session")
def golden_folder(real_data: Path) -> Path:
    """Folder with arrays that the published networks and losses produced, beside the real data."""
    folder = real_data.parent / "golden"
    if not folder.is_dir():
        pytest.skip(f"{folder} does not exist: the published reference arrays are not distributed with this repository")
    return folder


@pytest.fixture(scope="session")
def golden(golden_folder: Path) -> Callable[[str], dict]:
    """Read one of the published reference files: name -> array."""
    import numpy as np

    def read(name: str) -> dict:
        with np.load(golden_folder / name) as file:
            return {key: file[key] for key in file.files}

    return read
