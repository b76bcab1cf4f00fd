"""The command line: help that names the settings, errors without tracebacks."""

import ast
import json
import logging
from pathlib import Path

import pytest

from tokenunify import cli, stages


@pytest.mark.parametrize("stage", list(cli.COMMANDS))
def test_help_prints_the_schema_of_the_section(stage: str, capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as end:
        cli.main([stage, "--help"])
    text = capsys.readouterr().out
    assert end.value.code == 0
    for key in stages.SECTIONS[stage].model_fields:
        assert f'"{key}"' in text


def test_wrong_section_is_explained(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    words = ["rag", "--config-json", json.dumps({"version": 1, "block_shapes": [8, 8, 8]})]
    words += ["--affinities", "a.json", "--fragments", "f.json", "--output", str(tmp_path / "o.json")]
    with caplog.at_level(logging.ERROR):
        assert cli.main(words) == 1
    assert "block_shapes: unknown key, did you mean block_shape?" in caplog.text
    assert not (tmp_path / "o.json").exists()


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


def _imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names
