"""The text of a configuration file: JSON or YAML 1.1 in UTF-8, as Snakemake reads it, but every key once."""

import json
from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import Any

import yaml

from tokenunify.errors import InputError

MAX_VALUES = 1_000_000
"""What a file may hold once its aliases (`*name`) are written out: a few of them in one another make billions."""
NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
MERGE = "tag:yaml.org,2002:merge"
"""The tag of `<<`, whose values the section's own keys may replace."""


def read(path: str | Path) -> Any:
    """The value of a configuration file.

    Raises InputError, with key and line, for a key that stands twice in its section and for numbers that YAML 1.1
    reads otherwise than they look; with the file's name where it is neither JSON nor YAML.
    """
    text = _decoded(path)
    try:
        is_json = _is_json(text)
        loader = yaml.SafeLoader(text.replace("\t", " ") if is_json else text)
        root = loader.get_single_node()
        _check_size(root, path)
        mistakes = list(_mistakes(loader, root, (), set()))
        if mistakes:
            raise InputError(f"{path} is not valid:\n" + "\n".join(f"  {line}" for line in mistakes))
        if is_json:
            return json.loads(text)
        return None if root is None else loader.construct_document(root)
    except InputError:
        raise
    except (yaml.YAMLError, ValueError) as error:
        raise InputError(f"{path} is not valid YAML: {error}; correct it") from None
    except RecursionError:
        raise InputError(f"{path} is nested too deeply for a configuration; give another file") from None


def _decoded(path: str | Path) -> str:
    try:
        content = Path(path).read_bytes()
        return content.decode("utf-8")
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): give an existing configuration file") from None
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{path} is not UTF-8 text: byte {content[error.start]:#04x} in line {line}; save it as UTF-8"
        ) from None


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _check_size(root: yaml.Node | None, path: str | Path) -> None:
    """Refuse a file whose aliases, written out, are too many values, or without end."""
    sizes: dict[int, int] = {}

    def size(node: yaml.Node) -> int:
        if id(node) not in sizes:
            sizes[id(node)] = MAX_VALUES + 1  # should the node be found inside itself
            sizes[id(node)] = 1 + sum(size(child) for child in _children(node))
        return sizes[id(node)]

    if root is not None and size(root) > MAX_VALUES:
        raise InputError(
            f"{path} has aliases that refer to themselves, or are more than {MAX_VALUES:,} values when written out; "
            "write out what they stand for"
        )


def _children(node: yaml.Node) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        yield from (child for pair in node.value for child in pair)
    elif isinstance(node, yaml.SequenceNode):
        yield from node.value


def _mistakes(loader: yaml.SafeLoader, node: yaml.Node | None, path: tuple, seen: set[int]) -> Iterator[str]:
    """One line on each, of the node at this path and of all inside it; what aliases stand for is looked at once."""
    if node is None or id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.ScalarNode):
        yield from _misread(loader, node, path)
    elif isinstance(node, yaml.SequenceNode):
        for index, child in enumerate(node.value):
            yield from _mistakes(loader, child, (*path, index), seen)
    elif isinstance(node, yaml.MappingNode):
        keys = [(_key(loader, key), key) for key, _ in node.value]
        yield from _repeated([(key, node) for key, node in keys if node.tag != MERGE], path)
        for (key, _), (_, child) in zip(keys, node.value, strict=True):
            yield from _mistakes(loader, child, (*path, key), seen)


def _key(loader: yaml.SafeLoader, node: yaml.Node) -> Any:
    return "<<" if node.tag == MERGE else loader.construct_object(node, deep=True)


def _repeated(keys: list[tuple[Any, yaml.Node]], path: tuple) -> Iterator[str]:
    """A line on each key of one section that has stood before; YAML itself refuses keys that cannot be compared."""
    first: dict[Hashable, yaml.Node] = {}
    for key, node in keys:
        if isinstance(key, Hashable) and first.setdefault(key, node) is not node:
            yield (
                f"{_dotted((*path, key))}: this key stands twice, in line {_line(first[key])} and in line "
                f"{_line(node)}: only the last would count; remove or rename one"
            )


def _misread(loader: yaml.SafeLoader, node: yaml.ScalarNode, path: tuple) -> Iterator[str]:
    """A line on a number that is octal (010 is 8), or minutes and hours (1:30 is 90)."""
    if node.tag not in NUMBERS:
        return
    number, digits = loader.construct_object(node), node.value.replace("_", "")
    if ":" in digits or (digits.lstrip("+-").isdecimal() and int(digits) != number):
        yield (
            f"{_dotted(path)}: {node.value} in line {_line(node)} is {number} in YAML, expected a number without "
            "leading zeros and colons; write it so, or in quotes if it is text"
        )


def _dotted(path: tuple) -> str:
    return ".".join(map(str, path)) or "config"


def _line(node: yaml.Node) -> int:
    return node.start_mark.line + 1
