"""The table of stages next to what is written elsewhere: the flags in the rules, the classes of sections, schemas."""

import importlib
import inspect
import re

import pytest

from tokenunify import config, layout
from tokenunify.stages import sections
from tokenunify.stages.table import STAGES, Stage

stages = pytest.mark.parametrize("name", list(STAGES))


def commands(root) -> dict[str, str]:
    """Rule -> its shell command, of the rules that run a stage."""
    text = "".join(path.read_text() for path in sorted((root / "workflow/rules").glob("*.smk")))
    blocks = re.split(r"^(?=(?:use )?rule )", text, flags=re.MULTILINE)
    found = {re.match(r"rule (\w+)", block): block for block in blocks if "python -m tokenunify" in block}
    return {match[1]: block for match, block in found.items() if match}


def flags(stage: Stage) -> set[str]:
    given = {*stage.paths, *stage.lists, *stage.numbers, "config-json"}
    optional = {"part": stage.blockwise, "device": stage.device, "permit": stage.permit}
    return given | {flag for flag, is_taken in optional.items() if is_taken}


@stages
def test_a_rule_gives_every_flag_of_its_stage(root, name):
    block = commands(root)[name]
    assert re.search(r"python -m tokenunify (\w+)", block)[1] == name
    assert set(re.findall(r'" --([\w-]+)', block)) == {*flags(STAGES[name]), "marker"}


@stages
def test_its_module_takes_them(name):
    stage = STAGES[name]
    run = importlib.import_module(f"tokenunify.{stage.module}").run
    assert {*inspect.signature(run).parameters} == (flags(stage) - {"config-json"}) | {"section", "plain"}


@stages
def test_its_section_is_the_class_of_its_name(name):
    assert sections.SECTIONS[name].__name__.lower() == name


@stages
def test_it_has_a_place(name):
    assert (name in layout.FOLDERS) == STAGES[name].blockwise
    assert (name in layout.OUTPUTS) != STAGES[name].blockwise


def test_resources_are_those_of_stages_with_jobs():
    names = config.Config.model_json_schema()["properties"]["resources"]["propertyNames"]["enum"]
    assert names == [name for name, stage in STAGES.items() if stage.resources is not None]
