"""What every section is made of: the strict record, its number types, and messages that name the key."""

import difflib
import json
import re
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tokenunify.errors import InputError
from tokenunify.geometry import Coordinate

PositiveInt = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Shape = tuple[PositiveInt, PositiveInt, PositiveInt]
Padding = tuple[Count, Count, Count]
VoxelSize = tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]]
Fraction = Annotated[float, Field(ge=0, le=1)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]

KEY = "[key]"
"""With this word pydantic ends the place of an error where the key itself is wrong, not its value."""

Record = TypeVar("Record", bound=BaseModel)
RENAMED = {
    ("finetune", "schedule"): "lr_schedule",
    ("pretrainings", "schedule"): "objectives",
    ("pretrainings", "weights"): "loss_weights",
}
"""Keys of earlier versions, by their section, and their names of today."""


class Strict(BaseModel):
    """A frozen record that refuses unknown keys and numbers that are not finite."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        defer_build=True,  # a job needs one section: building the validators of all takes longer than most imports
    )


def check_known(key: str, name: str, known: dict) -> None:
    """Refuse a name that is not defined."""
    if name not in known:
        raise ValueError(f"{key} names {name!r}, expected one of {sorted(known)}; define it or correct the name")


def check_multiple(key: str, value: Coordinate, unit_key: str, unit: Coordinate) -> None:
    """Refuse a shape that is not a multiple of its unit."""
    if any(v % u for v, u in zip(value, unit, strict=True)):
        raise ValueError(
            f"{key} must be a multiple of {unit_key} {list(unit)} in every axis, got {list(value)}: "
            "two jobs would write one file; change either"
        )


def check_rising(key: str, ends: tuple[int, int]) -> None:
    """Refuse a range that holds nothing."""
    if ends[0] >= ends[1]:
        raise ValueError(f"{key} must be the first and one past the last, rising, got {list(ends)}; correct them")


def validate(model: type[Record], value: Any, name: str) -> Record:
    """Validate against one class, turning pydantic's report into one line per wrong key."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        report = error.errors()
    by_path: dict[tuple, list] = {}
    for item in report:
        path, inside = [], value
        for word in item["loc"]:
            try:
                inside = inside if word == KEY else inside[word]
            except (KeyError, IndexError, TypeError):
                continue  # no key: pydantic's name for a branch of a union
            path.append(word)
        if item["type"] == "missing":
            path.append(item["loc"][-1])
        if item["type"].startswith("union_tag"):
            path.append(item["ctx"]["discriminator"].strip("'"))
        by_path.setdefault(tuple(path), []).append(item)
    # What is said of a section is left out where something inside it is wrong.
    outer = {path[:length] for path in by_path for length in range(1, len(path))}
    lines = [_explain(path, items, model) for path, items in by_path.items() if path not in outer]
    raise InputError(f"{name} is not valid:\n" + "\n".join(f"  {line}" for line in lines))


def _explain(path: tuple, items: list, model: type[BaseModel]) -> str:
    """One line on a key; several items are the branches of a union, none of which fits."""
    key, item = ".".join(str(word) for word in path if word != KEY) or "config", items[0]
    if item["type"] == "extra_forbidden":
        renamed = (new for (section, old), new in RENAMED.items() if section in path and path[-1] == old)
        if name := next(renamed, None):
            return f"{key}: this key is called {name} now; rename it"
        close = difflib.get_close_matches(str(path[-1]), _keys(model.model_json_schema()), n=1)
        suggestion = f", did you mean {close[0]}?" if close else ""
        return f"{key}: unknown key{suggestion}; correct or remove it"
    if item["type"] in ("missing", "union_tag_not_found"):
        return f"{key}: this key is required and was not found; add it"
    if item["type"] == "value_error":
        message = item["msg"].removeprefix("Value error, ")
        return f"{key}: {message}" if path else message
    expected = []
    for branch in items:
        if branch["type"] in ("dict_type", "model_type", "model_attributes_type"):
            expected.append("a section of keys and values")
        elif branch["type"] == "union_tag_invalid":
            expected.append(f"one of {branch['ctx']['expected_tags']}")
        else:
            expected.append(re.sub(r"^\w+ should (be )?", lambda match: "" if match[1] else "to ", branch["msg"]))
    found = item["ctx"]["tag"] if item["type"] == "union_tag_invalid" else item["input"]
    shown = f"a {type(found).__name__}" if isinstance(found, (dict, list)) else json.dumps(found, default=str)
    wrong = "key" if KEY in path else "value"
    return f"{key}: expected {' or '.join(dict.fromkeys(expected))}, found {shown}; correct the {wrong}"


def _keys(schema: Any) -> list[str]:
    """The keys of a schema and of all sections in it."""
    if isinstance(schema, list):
        return [key for item in schema for key in _keys(item)]
    if not isinstance(schema, dict):
        return []
    return [*schema.get("properties", {}), *(key for item in schema.values() for key in _keys(item))]
