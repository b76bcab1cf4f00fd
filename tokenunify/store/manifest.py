"""Manifests: what a stage made (`content`, hashed downstream) and how it went (`run`, never hashed)."""

import hashlib
import json
import os
import platform
import re
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from tokenunify.errors import InputError

CHECKSUM = "checksum"
"""Key of the digest of content and run: a flipped bit may leave a manifest that reads well."""


def digest(value: Any) -> str:
    """First 16 hex digits of the SHA-256 of a JSON value with sorted keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file, read in pieces."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write(path: str | Path, content: dict, run: dict | None = None) -> None:
    """Write a manifest in one step: a reader sees all of it or nothing."""
    run = {"host": platform.node(), "peak_mb": peak_mb(), **(run or {})}
    made = json.loads(json.dumps({"content": content, "run": run}))
    write_text(path, json.dumps({**made, CHECKSUM: digest(made)}, indent=1, sort_keys=True) + "\n")


def peak_mb() -> int:
    """Most memory, in MiB, that this process has held at once."""
    status = Path("/proc/self/status")
    if status.exists():  # what getrusage tells may be that of the process that started this one
        return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text(encoding="utf-8"))[1]) // 2**10  # type: ignore[index]
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // unit


def write_text(path: str | Path, text: str) -> None:
    """Replace a text file in one step."""
    replace(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def replace(path: str | Path, write: Callable[[Path], Any]) -> None:
    """Replace a file in one step: it is on disk before its name appears. `write` is told a temporary name."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        error.add_note(f"while writing {path}")
        temporary.unlink(missing_ok=True)  # on a full disk it may be most of what is missing
        raise


def read(path: str | Path, form: type[BaseModel] | None = None) -> dict:
    """Read a manifest: {"content": ..., "run": ...}, which must be of the `form`, where one is given (see `forms`).

    Raises InputError that names the file and how to make it: where there is none, where it is damaged (its checksum is
    not the recorded one; manifests of earlier versions have none), and where it is of another stage.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path} does not exist: make it with `snakemake {path}`")
    try:
        if not path.is_file():
            raise ValueError("a folder or device lies in its place")
        text = json.loads(path.read_bytes())
        made = {"content": text["content"], "run": text["run"]}
        if not all(isinstance(half, dict) for half in made.values()):
            raise TypeError("content and run must be objects")
        if (recorded := text.get(CHECKSUM, found := digest(made))) != found:
            raise ValueError(f"it is damaged: its checksum is {found}, it records {recorded}")
        if form is not None:
            form.model_validate({**made["content"], "run": made["run"]}, strict=True)
        return made
    except ValidationError as error:
        first = error.errors()[0]
        reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    except KeyError as error:
        reason = f"it lacks {error}"
    except (ValueError, TypeError, RecursionError) as error:
        reason = str(error)
    stage = "" if form is None else f" of {form.__doc__}"
    raise InputError(f"{path} is not a manifest{stage} ({reason}): delete it and make it again with `snakemake {path}`")


def content(path: str | Path, form: type[BaseModel] | None = None) -> dict:
    """The hashed half of a manifest."""
    return read(path, form)["content"]


def content_hash(path: str | Path) -> str:
    """The hash of a manifest's content, which goes into the names of stores that are made from it."""
    return digest(content(path))
