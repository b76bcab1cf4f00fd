"""The text of a configuration file: JSON or YAML 1.1 in UTF-8, as Snakemake reads it, but every key once."""

import json
from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import Any

import yaml

from tokenunify.errors import InputError

MAX_VALUES = 1_000_000
"""Most values of a file once its aliases (`*name`) are written out: a few nested ones make billions."""
NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
MERGE = "tag:yaml.org,2002:merge"
"""The tag of `<<`, whose values the section's own keys may replace."""


def read(path: str | Path) -> Any:
    """The value of a configuration file.

    Raises InputError, with key and line, for a key that stands twice in its section and for numbers that YAML 1.1
    reads otherwise than they look; with the file's name where it is neither JSON nor YAML.
    """
    try:
        content = Path(path).read_bytes()
        text = content.decode("utf-8")
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): give an existing configuration file") from None
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{path} is not UTF-8 text: byte {content[error.start]:#04x} in line {line}; save it as UTF-8"
        ) from None
    try:
        return _parsed(text, path)
    except InputError:
        raise
    except (yaml.YAMLError, ValueError) as error:
        raise InputError(f"{path} is not valid YAML: {error}; correct it") from None
    except RecursionError:
        raise InputError(f"{path} is nested too deeply for a configuration; give another file") from None


def _parsed(text: str, path: str | Path) -> Any:
    """The value of a text; InputError where aliases blow it up, and for keys and numbers that mislead."""
    try:
        value, is_json = json.loads(text), True
    except ValueError:
        value, is_json = None, False
    loader = yaml.SafeLoader(text.replace("\t", " ") if is_json else text)
    root = loader.get_single_node()
    if root is not None and _size(root, {}) > MAX_VALUES:
        raise InputError(
            f"{path} has aliases that refer to themselves, or are more than {MAX_VALUES:,} values when written out; "
            "write out what they stand for"
        )
    mistakes = list(_mistakes(loader, root, (), set()))
    if mistakes:
        raise InputError(f"{path} is not valid:\n" + "\n".join(f"  {line}" for line in mistakes))
    return value if is_json or root is None else loader.construct_document(root)


def _size(node: yaml.Node, known: dict[int, int]) -> int:
    """Values in a node once its aliases are written out; more than MAX_VALUES for a node inside itself."""
    if id(node) not in known:
        known[id(node)] = MAX_VALUES + 1  # should the node be found inside itself
        children = node.value if isinstance(node, yaml.SequenceNode) else []
        if isinstance(node, yaml.MappingNode):
            children = [child for pair in node.value for child in pair]
        known[id(node)] = 1 + sum(_size(child, known) for child in children)
    return known[id(node)]


def _mistakes(loader: yaml.SafeLoader, node: yaml.Node | None, path: tuple, seen: set[int]) -> Iterator[str]:
    """One line for each mistake in a node and in the nodes inside it; a node that aliases repeat is looked at once."""
    if node is None or id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.ScalarNode) and node.tag in NUMBERS:
        # A number may be octal (010 is 8), or minutes and hours (1:30 is 90).
        number, digits = loader.construct_object(node), node.value.replace("_", "")
        if ":" in digits or (digits.lstrip("+-").isdecimal() and int(digits) != number):
            yield (
                f"{_dotted(path)}: {node.value} in line {_line(node)} is {number} in YAML, expected a number without "
                "leading zeros and colons; write it so, or in quotes if it is text"
            )
    elif isinstance(node, yaml.SequenceNode):
        for index, child in enumerate(node.value):
            yield from _mistakes(loader, child, (*path, index), seen)
    elif isinstance(node, yaml.MappingNode):
        keys = ["<<" if name.tag == MERGE else loader.construct_object(name, deep=True) for name, _ in node.value]
        first: dict[Hashable, yaml.Node] = {}
        for key, (name, _) in zip(keys, node.value, strict=True):
            # YAML itself refuses keys that cannot be compared, and `<<` may stand several times.
            is_compared = isinstance(key, Hashable) and name.tag != MERGE
            if is_compared and first.setdefault(key, name) is not name:
                yield (
                    f"{_dotted((*path, key))}: this key stands twice, in line {_line(first[key])} and in line "
                    f"{_line(name)}: only the last would count; remove or rename one"
                )
        for key, (_, child) in zip(keys, node.value, strict=True):
            yield from _mistakes(loader, child, (*path, key), seen)


def _dotted(path: tuple) -> str:
    return ".".join(map(str, path)) or "config"


def _line(node: yaml.Node) -> int:
    return node.start_mark.line + 1
