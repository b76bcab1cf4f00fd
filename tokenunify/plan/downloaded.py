"""Whether a download that was made still answers the configuration: only then is nothing fetched, and nothing rerun.

A download's manifest holds the section that it was made with. As long as that download answers what is asked today,
the workflow goes on asking with that very text, so that Snakemake sees no change: another mirror in front, other terms,
or a checksum that equals the recorded one change no voxel.
"""

import json
import logging
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from tokenunify.data import local_files
from tokenunify.errors import InputError
from tokenunify.store import manifest

logger = logging.getLogger(__name__)

ROLES = ("raw", "labels", "mask", "weights")
OF_THE_BOX = ("version", "voxel_size_nm", "roi", "sample")
"""Keys of the section that decide what is fetched, beside the sources."""


@cache
def states(text: str) -> dict[str, str]:
    """Size and time of every local file or folder of a section's sources that is there, by `{source}.{role}`."""
    found = {}
    for index, source in enumerate(json.loads(text)["sources"]):
        for role, file in files(source).items():
            if file.get("path") is not None and (state := _state(file)):
                found[f"{index}.{role}"] = state
    return found


def files(source: dict) -> dict[str, dict]:
    """The files of a source by role; published weights are one file."""
    if "raw" not in source:
        return {"weights": source}
    return {role: file for role in ROLES if (file := source.get(role)) is not None}


def _state(file: dict) -> str | None:
    """The path is part of it: a variable in it may name another folder, with a file of equal size and time."""
    try:
        path = local_files.find(file["path"], _format(file))
        return f"{local_files.state(path, _format(file))} {path}"
    except (InputError, OSError):
        return None  # it is not there, or not yet: the download says so if it is needed


@cache
def section(output: Path, text: str) -> str:
    """The section (JSON) for the download whose manifest is `output`: that with which it was made, if that holds."""
    asked = json.loads(text)
    if not output.exists():
        return text
    try:
        made = manifest.read(output)
    except InputError as error:
        logger.warning("%s", error)
        return text
    before = made["run"].get("section")
    try:
        if before is None or not _answers(output, made, before, asked):
            return text
        changed = _changed(output, made, before)
    except (KeyError, IndexError, TypeError, AttributeError):
        return text  # it is not the manifest of a download: the stages that read it say so
    section = {**asked, "found": {**asked.get("found", {}), **changed}} if changed else before
    return json.dumps(section, sort_keys=True)


def _answers(output: Path, made: dict, before: dict, asked: dict) -> bool:
    """Whether the source that was used is still listed, or one that must hold the same bytes.

    Files on this machine that are listed in front of it must hold the same bytes, too: they may be corrected ones.
    """
    if any(before.get(key) != asked.get(key) for key in OF_THE_BOX):
        return False
    used, content = before["sources"][made["run"]["source"]], made["content"]
    for index, source in enumerate(asked["sources"]):
        if _is_same(used, source, content) or _has_same_bytes(source, content):
            return True
        if _is_another(output, source, index, content):
            return False
    return False


def _is_another(output: Path, source: dict, index: int, content: dict) -> bool:
    """Whether a source that was not used has all of its files on this machine, and one of them holds other bytes."""
    locals_ = [
        _Local(f"in front {index}.{role}", file["path"], _format(file), _recorded(file, content, role))
        for role, file in files(source).items()
        if file.get("path") is not None
    ]
    if not locals_ or len(locals_) < len(files(source)):
        return False
    states = [_state({"path": local.path, "format": local.format}) for local in locals_]
    if None in states:
        return False  # it is not there, so that it would not be used
    return any(not _holds(output, local, str(state), {}) for local, state in zip(locals_, states, strict=True))


def _is_same(used: dict, source: dict, content: dict) -> bool:
    """Whether two sources differ in nothing but a checksum that is the recorded one."""
    one, two = files(used), files(source)
    if one.keys() != two.keys() or used.get("phantom") != source.get("phantom"):
        return False
    return all(
        {**one[role], "sha256": None} == {**two[role], "sha256": None}
        and two[role].get("sha256") in (None, one[role].get("sha256"), _recorded(two[role], content, role))
        for role in one
    )


def _has_same_bytes(source: dict, content: dict) -> bool:
    """Whether the source's own checksums say that its files are those that were found."""
    given = files(source)
    recorded = {role: content[role] for role in ROLES if content.get(role) is not None}
    return given.keys() == recorded.keys() != set() and all(
        file.get("sha256") is not None
        and file["sha256"] == _recorded(file, content, role)
        and all(file.get(key) == recorded[role].get(key) for key in ("format", "dataset"))
        for role, file in given.items()
    )


def _recorded(file: dict, content: dict, role: str) -> str | None:
    """The checksum found of the file itself; of an archive, only that of its member is recorded."""
    return None if file.get("member") else (content.get(role) or {}).get("sha256")


class _Local(NamedTuple):
    """A file or folder on this machine that was used."""

    key: str
    path: str
    format: str
    sha256: str | None
    """Its recorded checksum; None where there is none."""


def _used(made: dict, before: dict) -> Iterator[_Local]:
    """The local files of the source that was used, and those that they refer to."""
    index, content = made["run"]["source"], made["content"]
    for role, file in files(before["sources"][index]).items():
        if file.get("path") is not None:
            key = f"{index}.{role}"
            yield _Local(key, file["path"], _format(file), _recorded(file, content, role))
            for name, sha256 in (content[role].get("refers_to") or {}).items():
                folder = os.path.dirname(os.path.realpath(local_files.expand(file["path"])))
                yield _Local(f"{key} {name}", os.path.join(folder, name), "file", sha256)


def _changed(output: Path, made: dict, before: dict) -> dict[str, str]:
    """States of local files that are not what they were: by size and time, and where these differ by checksum."""
    known, changed = before.get("found", {}), {}
    for local in _used(made, before):
        state = _state({"path": local.path, "format": local.format})
        if state is None:
            logger.warning("%s (of %s) is not there any more; what was made of it stays", local.path, output)
        elif not _holds(output, local, state, known):
            logger.warning("%s (of %s) has changed: it and what follows is made again", local.path, output)
            changed[local.key] = state
    return changed


def _holds(output: Path, local: _Local, state: str, known: dict[str, str]) -> bool:
    """Whether a file in that state holds the recorded bytes; each state is compared once."""
    if state in (known.get(local.key), _seen(output).get(local.key)):
        return True
    if local.sha256 is None:
        return False
    if local_files.checksum(local_files.find(local.path, local.format), local.format) != local.sha256:
        return False
    _note_seen(output, local.key, state)
    return True


def _format(file: dict) -> str:
    """That of the file itself, which is an archive where a member of it is taken."""
    return "archive" if file.get("member") else file.get("format", "weights")


def _seen(output: Path) -> dict[str, str]:
    """States at which files were found to hold the same bytes, so that each is compared once."""
    try:
        return dict(json.loads(_place(output).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def _note_seen(output: Path, key: str, state: str) -> None:
    try:
        manifest.write_text(_place(output), json.dumps({**_seen(output), key: state}) + "\n")
    except OSError as error:
        logger.warning("%s cannot be written (%s): the file is compared again next time", _place(output), error)


def _place(output: Path) -> Path:
    return output.with_name(f".{output.stem}.seen.json")
