"""Where artefacts lie: paths and what they are, each the other's inverse, and no template anywhere else."""

import ast
import re
from pathlib import Path

import pytest

from tokenunify import layout
from tokenunify.errors import InputError

NAMES = {
    "volume": "fib25-test",
    "model": "emmamba",
    "pretraining": "tokenunify",
    "seed": "3",
    "segmentation": "waterz",
    "fragments": "2d-0123abcd",
    "part": "11",
    "parts": "12",
}
TEMPLATES = [
    *layout.OUTPUTS.items(),
    *((stage, layout.part(stage)) for stage in layout.FOLDERS),
    *((stage, layout.prepared(stage)) for stage in layout.FOLDERS),
]
FOLDER = re.compile(r"\b(data/(downloads|weights|volumes)|models|results)/")


@pytest.mark.parametrize(("stage", "template"), TEMPLATES)
@pytest.mark.parametrize("folder", ["", "/somewhere/models/results", "results/old"])
def test_a_path_tells_what_was_filled_in(stage, template, folder):
    path = Path(folder, template.format(**NAMES))
    found, names = layout.locate(path)
    assert found == stage
    assert names == {name: NAMES[name] for name in re.findall(r"\{(\w+)\}", template)}


@pytest.mark.parametrize(
    "path",
    [
        "results/v/m/seed0/predict/part0of2.jsonl",
        "results/v/m/seedx/predict/part0of2.json",
        "results/v/m/seed0/waterz/lut.npy",
        "models/m/seed0/weights.safetensors",
        "volumes/v.json",
        "metrics.csv",
    ],
)
def test_what_no_stage_writes_is_refused(path):
    with pytest.raises(InputError, match=rf"{re.escape(path)} is not the manifest of a stage; give manifests in"):
        layout.locate(Path(path))


def test_parts_are_counted_from_0():
    assert layout.parts("rag", 3)[1:] == [
        "results/{volume}/{model}/seed{seed}/rag/{fragments}/part1of3.json",
        "results/{volume}/{model}/seed{seed}/rag/{fragments}/part2of3.json",
    ]
    folder = Path("a/part0of7")
    assert layout.all_parts(folder / "part2of3.json") == [folder / f"part{part}of3.json" for part in range(3)]
    assert layout.all_parts(folder / "prepared.json") == [folder / "prepared.json"]
    names = ["prepared.json", "part0of12.json", "part1of12.json", "part10of12.json", "xpart1of2.json"]
    assert [name for name in names if layout.is_later_part(f"{folder}/{name}")] == names[2:4]


def test_names_that_would_stand_for_other_folders_are_reserved():
    """Every fixed folder that stands where another template has the wildcard."""
    folders = [Path(template).parts for _, template in TEMPLATES]
    for wildcard, reserved in layout.RESERVED.items():
        with_wildcard = [
            parts[: parts.index(f"{{{wildcard}}}")] for parts in folders if f"{{{wildcard}}}" in parts[:-1]
        ]
        fixed = {
            parts[len(before)]
            for parts in folders
            for before in with_wildcard
            if parts[: len(before)] == before and len(parts) > len(before) + 1
        }
        assert {name for name in fixed if "{" not in name} == set(reserved) - ({layout.BASELINE} - fixed)


def test_no_other_file_has_a_template_of_a_path(root):
    for path in sorted((root / "tokenunify").rglob("*.py")):
        if path.name != "layout.py":
            assert [text for text in _texts(path) if FOLDER.search(text)] == [], path
    for path in [root / "Snakefile", *(root / "workflow").rglob("*.smk")]:
        code = re.sub(r'^""".*?"""', "", path.read_text(), flags=re.DOTALL)
        assert FOLDER.findall(code) == [], path


def _texts(path: Path) -> list[str]:
    """The strings of a module, without those that describe what they stand in or behind."""
    tree = ast.parse(path.read_text())
    described = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    found = (node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in described)
    return [node.value for node in found if isinstance(node.value, str)]
