"""The shape of the package's code: short files and functions, and few helpers that are used once."""

import ast
from pathlib import Path
from statistics import median

import pytest

Function = ast.FunctionDef | ast.AsyncFunctionDef


@pytest.fixture(scope="module")
def modules(root: Path) -> dict[Path, ast.Module]:
    return {path: ast.parse(path.read_text()) for path in sorted((root / "tokenunify").rglob("*.py"))}


def functions(module: ast.Module) -> list[Function]:
    return [node for node in ast.walk(module) if isinstance(node, Function)]


def num_lines(node: Function) -> int:
    assert node.end_lineno is not None
    return node.end_lineno - node.lineno + 1


def num_uses(name: str, module: ast.Module) -> int:
    """How often the module names a helper, its definition not counted."""
    nodes = list(ast.walk(module))
    names = sum(isinstance(node, ast.Name) and node.id == name for node in nodes)
    return names + sum(isinstance(node, ast.Attribute) and node.attr == name for node in nodes)


def test_functions_are_neither_fragments_nor_pages(modules):
    lengths = sorted(num_lines(f) for module in modules.values() for f in functions(module))
    assert lengths[int(0.9 * len(lengths))] <= 35
    assert lengths[-1] <= 60
    # Methods, properties and functions inside others are short by nature.
    of_modules = [num_lines(f) for module in modules.values() for f in module.body if isinstance(f, Function)]
    assert 8 <= median(of_modules) <= 12


def test_few_private_helpers_are_used_once(modules):
    """Where a decorator keeps what was computed, or hands the function to numba, it has to be one of its own."""
    helpers = [
        (f"{path}: {f.name}", num_uses(f.name, module) > 1 or f.decorator_list)
        for path, module in modules.items()
        for f in functions(module)
        if f.name.startswith("_") and not f.name.startswith("__")
    ]
    once = [name for name, needed in helpers if not needed]
    assert len(once) <= 0.15 * len(helpers), "\n".join(once)


def test_no_file_is_long(root: Path, modules):
    sizes = {str(path.relative_to(root)): len(path.read_text().splitlines()) for path in modules}
    assert {path: size for path, size in sizes.items() if size > 300} == {}
