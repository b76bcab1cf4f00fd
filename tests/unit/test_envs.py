"""The conda environments: readable specs, the pins of requirements.lock, and all that the stages of each import."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from rattler import MatchSpec

from tokenunify.stages.table import STAGES

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENTS = sorted((ROOT / "envs").glob("*.yaml"))
PYPI_NAMES = {"pytorch": "torch", "matplotlib-base": "matplotlib", "dask-core": "dask"}
OPTIONAL = {"mamba_ssm"}  # the extra `gpu`
# Needed although no module of ours imports them: what for.
INDIRECT = {
    "imagecodecs": "tifffile decodes LZW and JPEG with it",
    "pillow": "matplotlib reads and writes PNG with it",
    "tensorboard": "torch.utils.tensorboard",
}

environments = pytest.mark.parametrize("path", ENVIRONMENTS, ids=lambda path: path.stem)


def locked() -> dict[str, str]:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def conda_specs(path: Path) -> list[MatchSpec]:
    entries = yaml.safe_load(path.read_text())["dependencies"]
    return [MatchSpec(entry) for entry in entries if isinstance(entry, str)]


def pins(path: Path) -> dict[str, str]:
    """PyPI name -> version of everything pinned in an environment, python and pip left out."""
    conda = {spec.name.normalized: str(spec.version).removesuffix(".*") for spec in conda_specs(path)}
    entries = yaml.safe_load(path.read_text())["dependencies"]
    pip = dict(line.split("==") for entry in entries if isinstance(entry, dict) for line in entry["pip"])
    named = {PYPI_NAMES.get(name, name): version for name, version in conda.items() if name not in ("python", "pip")}
    return {**named, **pip}


def rule_environments() -> dict[str, set[str]]:
    """Subcommand -> environments of the rules that call it, read from the rules."""
    found: dict[str, set[str]] = {}
    for path in (ROOT / "workflow" / "rules").glob("*.smk"):
        for block in re.split(r"^(?=(?:use )?rule )", path.read_text(), flags=re.MULTILINE):
            command = re.search(r"python -m tokenunify (\w+)", block)
            if command:
                found.setdefault(command[1], set()).add(re.search(r'environment\("(\w+)"\)', block)[1])
    return found


def imported(names: list[str]) -> set[str]:
    """Top-level names of the third-party modules that the given modules of ours import, directly or not."""
    todo, seen, third_party = list(names), set(), set()
    while todo:
        name = todo.pop()
        path = module_file(name)
        if path is None or name in seen:
            continue
        seen.add(name)
        parent = name.rpartition(".")[0]
        todo += [parent] if parent else []
        for target in imports_of(path):
            if target.split(".")[0] == "tokenunify":
                todo.append(target)
            else:
                third_party.add(target.split(".")[0])
    return third_party - set(sys.stdlib_module_names)


def module_file(name: str) -> Path | None:
    path = ROOT / name.replace(".", "/")
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.exists()), None)


def imports_of(path: Path) -> list[str]:
    targets = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            targets += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute in this package"
            targets += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return targets


def needed(environment: str) -> dict[str, str]:
    """PyPI name -> import name, for all that the commands of an environment's rules import."""
    commands = [command for command, names in rule_environments().items() if environment in names]
    modules = [STAGES[command].module if command in STAGES else f"store.{command}" for command in commands]
    modules = [f"tokenunify.{module}" for module in ("__main__", *modules)]
    assert [module for module in modules if module_file(module) is None] == []
    names = imported(modules) - OPTIONAL
    packages = packages_distributions()
    return {canonicalize_name(packages[name][0]): name for name in names}


@environments
def test_channels_and_python(path):
    assert yaml.safe_load(path.read_text())["channels"] == ["conda-forge", "nodefaults"]
    python = next(spec for spec in conda_specs(path) if spec.name.normalized == "python")
    assert python.version == "3.11.*"


@environments
def test_pins_are_those_of_the_lock(path):
    lock = locked()
    assert {name: version for name, version in pins(path).items() if lock.get(name) != version} == {}


@environments
def test_environment_provides_what_its_stages_import(path):
    missing = {name: package for package, name in needed(path.stem).items() if package not in pins(path)}
    assert missing == {}, f"import -> package that {path.name} lacks"


@environments
def test_environment_holds_nothing_idle(path):
    assert set(pins(path)) - set(needed(path.stem)) - set(INDIRECT) == set()


def test_every_stage_has_one_environment():
    found = rule_environments()
    assert set(found) == {*STAGES, "prepare"}
    assert {command: names for command, names in found.items() if len(names) != 1} == {}


def test_lock_satisfies_the_declared_dependencies():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = map(Requirement, [*project["dependencies"], *project["optional-dependencies"]["test"]])
    lock = locked()
    unmet = [str(r) for r in declared if not r.specifier.contains(lock.get(canonicalize_name(r.name), "0"))]
    assert unmet == []


def test_lock_names_no_build_of_torch():
    assert "+" not in "".join(locked().values())
    assert [name for name in locked() if name.startswith(("nvidia-", "triton"))] == []
