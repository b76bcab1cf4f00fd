"""Where compiled code is kept, when folders cannot be written; what is used of numba's private parts."""

import importlib.util
import pickle
from collections.abc import Callable
from functools import reduce
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numba
import numpy as np
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


def moved(index: Path) -> str:
    """Make the kept code one of types whose module has moved, as an update does; returns numba's version."""
    with open(index, "rb") as file:
        version = pickle.load(file)
    index.write_bytes(pickle.dumps(version) + b"ctokenunify.gone\nPairs\n.")
    return version


def test_what_was_kept_of_types_that_moved_is_compiled_again(tmp_path, places):
    imported(tmp_path)
    (index,) = places["temporary"].rglob("loops.halves*.nbi")
    version = moved(index)
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


def at_a_loss(lack: str) -> str:
    return f"numba {numba.__version__} {lack}: see _njit in tokenunify/kernels/compiled.py"


def counts_references(decorate: Callable) -> bool:
    """Whether the compiled function counts references to the arrays passed to it."""

    @decorate
    def first(one, two, which):
        return (one if which else two)[0]

    first(np.ones(1), np.ones(1), True)
    return "NRT_incref" in next(iter(first.inspect_llvm().values()))


def test_the_private_parts_of_numba_are_where_we_look_for_them(tmp_path, monkeypatch):
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "cache"))  # what is read from one shows no references
    function = imported(tmp_path).halves
    names = "_cache", "_cache_file", "_load_index"
    for number, name in enumerate(names):
        owner = reduce(getattr, names[:number], function)
        assert hasattr(owner, name), at_a_loss(f"has no {'.'.join(names[: number + 1])} in a compiled function")
    assert function._cache._cache_file._load_index.__name__ == "read_or_forget"
    options = numba.core.cpu.CPUTargetOptions
    assert hasattr(options, "_nrt"), at_a_loss("has no option _nrt")
    assert not counts_references(compiled.inner), at_a_loss("counts references in spite of the option _nrt")


def test_the_private_parts_of_numba_are_still_needed(tmp_path, places):
    assert counts_references(numba.njit), at_a_loss("counts no references by itself, so that _nrt can go")
    module = imported(tmp_path)
    (index,) = places["temporary"].rglob("loops.halves*.nbi")
    moved(index)
    try:
        numba.njit(cache=True)(module.halves.py_func)(20)
    except ImportError:
        return
    pytest.fail(at_a_loss("reads past types whose module has moved, so that read_or_forget can go"))


def test_private_parts_that_numba_lacks_are_left_out(tmp_path, monkeypatch):
    given = []

    def njit(*_signature, **options):
        given.append(set(options))
        return lambda function: function

    monkeypatch.setattr(compiled, "_numba", SimpleNamespace(njit=njit, core=SimpleNamespace()))
    imported(tmp_path)
    assert given == [{"nogil", "cache"}, {"nogil", "cache"}, {"error_model", "cache"}]
