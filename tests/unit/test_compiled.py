"""Where compiled code is kept, when folders cannot be written."""

import importlib.util
import pickle
from pathlib import Path
from types import ModuleType

import numba
import pytest

from tokenunify.kernels import compiled

SOURCE = """
from tokenunify.kernels.compiled import inner, kept, loop

@inner
def half(n):
    return n // 2

@loop
def halves(n):
    total = 0
    while n:
        total += n
        n = half(n)
    return total

@kept("int64(int64)", error_model="numpy")
def eager(n):
    return n + 1
"""


def blocked(path: Path) -> Path:
    """What can be no folder, not even for root."""
    path.touch()
    return path


def imported(folder: Path) -> ModuleType:
    """A module with compiled functions, whose folder takes no __pycache__."""
    blocked(folder / "__pycache__")
    (folder / "loops.py").write_text(SOURCE)
    spec = importlib.util.spec_from_file_location("loops", folder / "loops.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (module.halves(20), module.eager(4)) == (38, 5)
    return module


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """No folder of the machine's own is looked for."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")
    monkeypatch.setenv("HOME", str(blocked(tmp_path / "home")))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home" / "cache"))
    monkeypatch.setattr(compiled.tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    return {name: tmp_path / name for name in ("temporary", "home")}


def test_the_folder_of_the_user_serves_a_checkout_that_cannot_be_written(tmp_path, places, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    imported(tmp_path)
    assert list((tmp_path / "cache").rglob("loops.halves*.nbi"))
    assert not list(places["temporary"].iterdir())


def test_temporary_files_serve_where_there_is_no_home_either(tmp_path, places):
    imported(tmp_path)
    (folder,) = places["temporary"].iterdir()
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.name.split("-")[0] for path in folder.rglob("*.nbi")} == {"loops.halves", "loops.half", "loops.eager"}


def test_what_was_kept_of_types_that_moved_is_compiled_again(tmp_path, places):
    """As after an update that renamed a module."""
    imported(tmp_path)
    (index,) = places["temporary"].rglob("loops.halves*.nbi")
    with open(index, "rb") as file:
        version = pickle.load(file)
    index.write_bytes(pickle.dumps(version) + b"ctokenunify.gone\nPairs\n.")
    imported(tmp_path)
    with open(index, "rb") as file:
        assert pickle.load(file) == version
        assert pickle.load(file)[1]  # the machine code is kept again


@pytest.mark.parametrize("kind", ["open to others", "a link", "a file", "no folder of temporary files"])
def test_nothing_is_kept_where_nothing_is_safe(tmp_path, places, monkeypatch, kind: str):
    folder = places["temporary"] / f"tokenunify-{compiled.os.getuid()}"
    if kind == "open to others":
        folder.mkdir(mode=0o777)
        folder.chmod(0o777)
    elif kind == "a link":
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        folder.symlink_to(tmp_path / "elsewhere")
    elif kind == "a file":
        folder.touch()
    else:
        places["temporary"].rmdir()
    imported(tmp_path)
    assert not list(tmp_path.rglob("*.nbi"))
