"""The command line: help that names the settings, errors without tracebacks."""

import ast
import json
import logging
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tokenunify import cli
from tokenunify.stages import sections
from tokenunify.stages.table import STAGES


@pytest.mark.parametrize("stage", list(STAGES))
def test_help_prints_the_schema_of_the_section(stage: str, capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as end:
        cli.main([stage, "--help"])
    text = capsys.readouterr().out
    assert end.value.code == 0
    for key in sections.SECTIONS[stage].model_fields:
        assert f'"{key}"' in text


def test_wrong_section_is_explained(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    words = ["rag", "--config-json", json.dumps({"version": 1, "block_shapes": [8, 8, 8]})]
    words += ["--affinities", "a.json", "--fragments", "f.json", "--output", str(tmp_path / "o.json"), "--threads", "1"]
    with caplog.at_level(logging.ERROR):
        assert cli.main(words) == 1
    assert "block_shapes: unknown key, did you mean block_shape?" in caplog.text
    assert not (tmp_path / "o.json").exists()


@pytest.mark.parametrize(
    ("section", "expected"),
    [('{"sources": 8}', True), ('{"sources": [{"phantom": {"seed": 1, "shape": [8, 16, 16]}}]}', False)],
    ids=["bad section", "output in what is no folder"],
)
def test_the_marker_tells_bad_input_from_other_failures(section: str, expected: bool, tmp_path: Path):
    file, marker = tmp_path / "file", tmp_path / "log.bad-input"
    file.touch()
    words = ["download", "--config-json", section, "--downloads", str(file / "files"), "--output", str(file / "o.json")]
    for existed in (False, True):
        if existed:
            marker.touch()
        assert cli.main([*words, "--marker", str(marker)]) == 1
        assert marker.exists() == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "must be JSON, got '{'"),
        ("[1]", "must be an object"),
        ("5", "'5'"),
        ('{"sources": ' + 5000 * "9" + "}", "Exceeds the limit"),
        (20_000 * "[", "maximum recursion depth"),
    ],
)
def test_section_that_is_no_object_is_explained(text: str, words: str, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.ERROR):
        assert cli.main(["download", "--config-json", text, "--downloads", "d", "--output", "o.json"]) == 1
    assert "download --config-json" in caplog.text
    assert words in caplog.text


@pytest.mark.parametrize(("part", "words"), [("4/4", "with 0 <= i < n, got '4/4'"), ("1", "such as 0/4, got '1'")])
def test_wrong_part_is_explained(part: str, words: str, capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as end:
        cli.main(["rag", "--part", part])
    assert end.value.code == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "two", "9" * 5000])
def test_wrong_number_is_explained(text: str, capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as end:
        cli.main(["rag", "--threads", text])
    assert end.value.code == 2
    assert "--threads: expected a whole number, 1 or more, got" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", ".", "/", "a\0b"])
def test_output_that_is_no_file_is_explained(text: str, capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as end:
        cli.main(["rag", "--output", text])
    assert end.value.code == 2
    assert "--output: expected the name of a file, got" in capsys.readouterr().err


def test_shards_of_a_volume_hold_whole_chunks(caplog: pytest.LogCaptureFixture):
    section = {"voxel_size_nm": [35, 8, 8], "roi": None, "zero": "background"}
    section |= {"chunk_shape": [2, 12, 10], "shard_shape": [1, 24, 20]}
    words = [
        "ingest",
        "--config-json",
        json.dumps(section),
        "--source",
        "a.json",
        "--threads",
        "1",
        "--output",
        "b.json",
    ]
    with caplog.at_level(logging.ERROR):
        assert cli.main(words) == 1
    assert "shard_shape must be a multiple of chunk_shape [2, 12, 10] in every axis, got [1, 24, 20]" in caplog.text


@pytest.mark.parametrize("text", ["0", "-1e9", "nan", "inf", "many"])
def test_wrong_number_of_voxels_is_explained(text: str, capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as end:
        cli.main(["plan", "results/v/metrics.csv", f"--voxels={text}"])
    assert end.value.code == 2
    assert "expected a number of voxels such as 1e9, got" in capsys.readouterr().err


def test_siblings_never_import_each_other_and_torch_stays_in_learning(root: Path):
    siblings = {"data", "learning", "segmentation", "evaluation"}
    for path in (root / "tokenunify").rglob("*.py"):
        home = path.relative_to(root / "tokenunify").parts[0]
        imported = _imports(path)
        assert "snakemake" not in {name.split(".")[0] for name in imported}, path
        if home != "learning":
            assert not {"torch", "lightning_fabric", "safetensors"} & {name.split(".")[0] for name in imported}, path
        if home in siblings:
            others = {name.split(".")[1] for name in imported if name.startswith("tokenunify.")} & siblings - {home}
            assert not others, f"{path} imports {others}"


def test_no_circle_of_imports(root: Path):
    """Packages that only re-export count as what they import."""
    modules = {_name(root, path): path for path in (root / "tokenunify").rglob("*.py")}
    graph = {name: (_imports(path) & modules.keys()) - _packages_of(_imports(path)) for name, path in modules.items()}
    TopologicalSorter(graph).prepare()  # raises CycleError


def _name(root: Path, path: Path) -> str:
    return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


def _packages_of(names: set[str]) -> set[str]:
    """Packages that are only named on the way to one of their modules."""
    return {name for name in names if any(other.startswith(f"{name}.") for other in names)}


def _imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_text_files_have_one_encoding_whatever_the_locale(root: Path):
    for path in (root / "tokenunify").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and _opens_text(node):
                assert any(word.arg == "encoding" for word in node.keywords), f"{path}:{node.lineno}: no encoding"


def _opens_text(call: ast.Call) -> bool:
    if isinstance(call.func, ast.Attribute):
        return call.func.attr in ("read_text", "write_text") and ast.unparse(call.func) != "manifest.write_text"
    mode = "".join(map(ast.unparse, call.args[1:2]))
    return isinstance(call.func, ast.Name) and call.func.id == "open" and "b" not in mode
