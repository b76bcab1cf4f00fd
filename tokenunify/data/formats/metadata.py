"""Read the JSON files that describe chunked volumes, and check what they declare before anything relies on it."""

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
    """The address, ending in /, of the folder `inside` of a volume; `path` is the volume's own, local or an address."""
    root = path if "://" in path else Path(os.path.abspath(path)).as_uri()
    return joined(root.rstrip("/"), inside).rstrip("/") + "/"


def joined(parent: str, name: str) -> str:
    """A path inside a volume."""
    return f"{parent}/{name}" if parent else name


def read(path: str, key: str) -> dict:
    """The object in a JSON file of the folder, empty where the file is not there; InputError for anything else."""
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
    """Raise InputError for a local file where a folder is expected."""
    if os.path.isfile(path):
        raise InputError(f"{path} cannot be read as a chunked volume: it is a file, expected a folder; correct format")


def damaged(path: str, what: str) -> InputError:
    """The error to raise for metadata that cannot be used, which says what to do."""
    return InputError(f"{path}: its metadata cannot be used: {what}; get the volume again, or mend them")


def lengths(path: str, key: str, value: Any, least: int = 0) -> tuple[int, ...]:
    """The value as whole numbers, one for each axis; InputError where it is no list of these, or one is too small."""
    if isinstance(value, list) and value and all(type(n) is int and least <= n < 2**62 for n in value):
        return tuple(value)
    raise damaged(path, f"{key} must be whole numbers of at least {least}, one for each axis, found {_short(value)}")


def check_grid(path: str, shape: tuple[int, ...], chunk: tuple[int, ...]) -> None:
    """Raise InputError for chunks with another number of axes than the array."""
    if len(shape) != len(chunk):
        raise damaged(path, f"its shape {list(shape)} and its chunks {list(chunk)} must have one number of axes")


def check_chunk(path: str, chunk: tuple[int, ...], num_bytes: int) -> None:
    """Raise InputError for chunks that no memory holds, where a voxel takes `num_bytes`."""
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
