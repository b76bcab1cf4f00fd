"""What all tests share: the repository's folder, the folder with real data and the published reference files."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

# One thread per process: small arrays gain nothing from more, and results stay the same on every machine.
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return Path(__file__).resolve().parents[1]


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
