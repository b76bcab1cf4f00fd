"""Fill the pages of the reference from the code: configuration keys, commands and the table of stages."""

import argparse
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from tokenunify import cli, layout
from tokenunify.config import schema_text
from tokenunify.stages.table import STAGES

MARK = re.compile(r"^<!-- generated: (\w+) -->$", re.MULTILINE)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace each mark by what it names; MkDocs calls this for every page."""
    return MARK.sub(lambda mark: PARTS[mark[1]](), markdown)


def configuration() -> str:
    """A table of keys for each section of the configuration."""
    schema = json.loads(schema_text())
    sections = {"The file": schema, **dict(sorted(schema["$defs"].items()))}
    return "\n".join(_section(name, section) for name, section in sections.items() if "properties" in section)


def _section(name: str, section: dict) -> str:
    rows = [
        f"| `{key}` | {_type(value)} | {_default(key, value, section)} | {_cell(value['description'])} |"
        for key, value in section["properties"].items()
    ]
    head = f"## {name}\n\n{section.get('description', '')}\n\n| key | type | default | meaning |\n|---|---|---|---|\n"
    return head + "\n".join(rows) + "\n"


def _type(value: dict) -> str:
    """What a value may be, with links to the sections."""
    if "$ref" in value:
        name = value["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "const" in value or "enum" in value:
        return " or ".join(f"`{choice}`" for choice in value.get("enum", [value.get("const")]))
    options = value.get("anyOf") or value.get("oneOf")
    if options:
        return " or ".join(dict.fromkeys(map(_type, options)))
    if value.get("type") == "array":
        items = value.get("prefixItems") or ([value["items"]] if isinstance(value.get("items"), dict) else [])
        return f"list of {', '.join(dict.fromkeys(map(_type, items)))}" if items else "list"
    if value.get("type") == "object":
        named = [*value.get("patternProperties", {}).values(), value.get("additionalProperties")]
        return f"name → {_type(named[0])}" if isinstance(named[0], dict) else "section"
    return str(value.get("type", "any"))


def _default(key: str, value: dict, section: dict) -> str:
    if key in section.get("required", []):
        return "required"
    if "default" not in value:
        return ""
    text = json.dumps(value["default"])
    return f"`{text}`" if len(text) < 60 else "see its section"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def commands() -> str:
    """The help of every command, without the schemas of its section."""
    (subparsers,) = (a for a in cli.parser()._actions if isinstance(a, argparse._SubParsersAction))
    return "\n".join(_command(name, sub) for name, sub in subparsers.choices.items())


def _command(name: str, parser: argparse.ArgumentParser) -> str:
    rows = "\n".join(_flags(parser))
    return f"## {name}\n\n{parser.description}.\n\n| argument | meaning |\n|---|---|\n{rows}\n"


def _flags(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        if not isinstance(action, argparse._HelpAction):
            name = " ".join(action.option_strings) or action.dest
            needed = "required" if action.required else f"default `{action.default}`"
            yield f"| `{name}` | {_cell(action.help or '')} ({needed}) |"


def stages() -> str:
    """The table of stages, with what each writes last."""
    rows = [
        f"| {name} | {stage.help} | `{layout.part(name) if stage.blockwise else layout.output(name)}` |"
        for name, stage in STAGES.items()
    ]
    return "| stage | what it does | what it writes last |\n|---|---|---|\n" + "\n".join(rows) + "\n"


PARTS: dict[str, Callable[[], str]] = {"configuration": configuration, "commands": commands, "stages": stages}
