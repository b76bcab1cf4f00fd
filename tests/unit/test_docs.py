"""The README, the pages of the site and the descriptions of the configuration."""

import importlib.util
import json
import re

import pytest

from tokenunify.config import schema_text
from tokenunify.stages.table import STAGES


def test_the_readme_is_short(root):
    assert len((root / "README.md").read_text().splitlines()) <= 150


def test_every_key_is_described():
    schema = json.loads(schema_text())
    sections = {"Config": schema, **schema["$defs"]}
    keys = [(name, key, value) for name, s in sections.items() for key, value in s.get("properties", {}).items()]
    assert len(keys) > 200
    assert [f"{name}.{key}" for name, key, value in keys if not value.get("description")] == []


def test_descriptions_name_what_they_describe(root):
    """None is half a sentence that goes on from a name."""
    modules = [*(root / "tokenunify").rglob("*.py"), *(root / "benchmarks").glob("*.py")]
    found = {path: re.findall(r'^ *"""Of .*', path.read_text(), flags=re.MULTILINE) for path in modules}
    assert {path: lines for path, lines in found.items() if lines} == {}


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_links_lead_to_files(root, name):
    links = re.findall(r"\]\(([^)#]+)\)", (root / name).read_text())
    assert [link for link in links if "://" not in link and not (root / link).exists()] == []


def test_every_room_of_the_contribution_guide_is_there(root):
    table = (root / "CONTRIBUTING.md").read_text().split("| room |")[1].split("\n\n")[0]
    rooms = re.findall(r"\| `([^`]+)`", table)
    assert len(rooms) == 10
    assert [room for room in rooms if not list((root / "tokenunify").glob(room))] == []


def test_the_generated_reference_is_whole(root):
    spec = importlib.util.spec_from_file_location("generated", root / "docs/generated.py")
    generated = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generated)
    pages = {path.stem: generated.on_page_markdown(path.read_text()) for path in (root / "docs/reference").glob("*.md")}
    assert "generated:" not in "".join(pages.values())
    assert "| `voxel_size_nm` |" in pages["configuration"]
    assert all(f"## {name}\n" in pages["commands"] and f"| {name} |" in pages["stages"] for name in STAGES)
    assert "[Volume](#volume)" in pages["configuration"]
