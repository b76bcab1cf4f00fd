"""The JSON files that describe chunked volumes: read, and checked before anything believes what they declare."""

import contextlib
import json
import os
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

import psutil

from tokenunify.data.formats import tensorstore_access
from tokenunify.data.read_errors import told
from tokenunify.errors import InputError

MOST_OF_MEMORY = 0.5
"""Share of the machine's memory that a chunk, which is decoded whole, or the index of a shard may take."""
BAD_METADATA = (ValueError, TypeError, KeyError, IndexError, AttributeError, ArithmeticError, NotImplementedError)
"""What libraries raise on metadata that they cannot use."""


def address_of(path: str, inside: str = "") -> str:
    """A folder's address, which ends with /; `path` may be a local one, `inside` a path in it."""
    root = path if "://" in path else Path(os.path.abspath(path)).as_uri()
    return joined(root.rstrip("/"), inside).rstrip("/") + "/"


def joined(parent: str, name: str) -> str:
    """A path inside a volume."""
    return f"{parent}/{name}" if parent else name


def read(path: str, key: str) -> dict:
    """The object in a JSON file of the folder; empty where the file is not there. InputError where it is none."""
    text = tensorstore_access.read(address_of(path), key)
    if text is None:
        return {}
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise damaged(path, f"{key} is no JSON ({told(error)})") from None
    if not isinstance(found, dict):
        raise damaged(path, f"{key} must be a JSON object, found {_short(found)}")
    return found


def check_folder(path: str) -> None:
    """Refuse a local file in a folder's place."""
    if os.path.isfile(path):
        raise InputError(f"{path} cannot be read as a chunked volume: it is a file, expected a folder; correct format")


def damaged(path: str, what: str) -> InputError:
    """What to do about metadata that cannot be used."""
    return InputError(f"{path}: its metadata cannot be used: {what}; get the volume again, or mend them")


def lengths(path: str, key: str, value: Any, least: int = 0) -> tuple[int, ...]:
    """A list of whole numbers, one for each axis."""
    if isinstance(value, list) and value and all(type(n) is int and least <= n < 2**62 for n in value):
        return tuple(value)
    raise damaged(path, f"{key} must be whole numbers of at least {least}, one for each axis, found {_short(value)}")


def check_grid(path: str, shape: tuple[int, ...], chunk: tuple[int, ...]) -> None:
    """Refuse chunks that have not the array's number of axes."""
    if len(shape) != len(chunk):
        raise damaged(path, f"its shape {list(shape)} and its chunks {list(chunk)} must have one number of axes")


def check_chunk(path: str, chunk: tuple[int, ...], num_bytes: int) -> None:
    """Refuse chunks that no memory holds; `num_bytes` are those of a voxel."""
    most = MOST_OF_MEMORY * psutil.virtual_memory().total
    if prod(chunk) * num_bytes > most:
        raise InputError(
            f"{path} declares chunks of shape {list(chunk)}, {prod(chunk) * num_bytes:.2e} bytes each: more than the "
            f"{most:.2e} bytes of memory there are for what is decoded whole; store it in smaller chunks, or mend its "
            "metadata"
        )


@contextlib.contextmanager
def using(path: str, what: str) -> Iterator[None]:
    """Turn what a library raises on metadata into an InputError that tells the reason."""
    try:
        yield
    except InputError:
        raise
    except BAD_METADATA as error:
        if isinstance(error, ValueError) and tensorstore_access.is_fault(str(error)):
            raise
        raise damaged(path, f"{what} ({told(error)})") from error


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 200 else f"{text[:200]}..."
