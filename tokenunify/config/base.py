"""What every section is made of: the strict record, its number types, and messages that name the key."""

import difflib
import json
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

Record = TypeVar("Record", bound=BaseModel)


class Strict(BaseModel):
    """A frozen record that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


def check_multiple(key: str, value: Coordinate, unit_key: str, unit: Coordinate) -> None:
    """Refuse a shape that is not a multiple of its unit."""
    if any(v % u for v, u in zip(value, unit, strict=True)):
        raise ValueError(
            f"{key} must be a multiple of {unit_key} {list(unit)} in every axis, got {list(value)}: "
            "two jobs would write one file; change either"
        )


def validate(model: type[Record], value: Any, name: str) -> Record:
    """Validate against one class, turning pydantic's report into one line per wrong key."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        lines = [_explain(item, model) for item in error.errors()]
        raise InputError(f"{name} is not valid:\n" + "\n".join(f"  {line}" for line in lines)) from None


def _explain(item: Any, model: type[BaseModel]) -> str:
    key = ".".join(str(word) for word in item["loc"]) or "config"
    found = item["input"]
    shown = json.dumps(found, default=str) if not isinstance(found, (dict, list)) else f"a {type(found).__name__}"
    if item["type"] == "extra_forbidden":
        return f"{key}: unknown key{_suggestion(str(item['loc'][-1]), model)}; correct or remove it"
    if item["type"] == "missing":
        return f"{key}: this key is required and was not found; add it"
    if item["type"] == "value_error":
        message = item["msg"].removeprefix("Value error, ")
        return f"{key}: {message}" if item["loc"] else message
    return f"{key}: expected {item['msg'].removeprefix('Input should be ')}, found {shown}; correct the value"


def _suggestion(key: str, model: type[BaseModel]) -> str:
    known = _keys(model.model_json_schema())
    close = difflib.get_close_matches(key, known, n=1)
    return f", did you mean {close[0]}?" if close else ""


def _keys(schema: Any) -> list[str]:
    if isinstance(schema, list):
        return [key for item in schema for key in _keys(item)]
    if not isinstance(schema, dict):
        return []
    return [*schema.get("properties", {}), *(key for item in schema.values() for key in _keys(item))]
