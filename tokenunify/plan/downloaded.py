"""Whether a download that was made still answers the configuration: only then is nothing fetched, and nothing rerun.

A download's manifest holds the section that it was made with. As long as that download answers what is asked today,
the workflow goes on asking with that very text, so that Snakemake sees no change: another mirror in front, other terms,
or a checksum that equals the recorded one change no voxel.
"""

import json
import logging
import os
from functools import cache
from pathlib import Path
from typing import NamedTuple

from tokenunify.data import local_files
from tokenunify.errors import InputError
from tokenunify.stages import sections
from tokenunify.store import manifest

logger = logging.getLogger(__name__)

ROLES = ("raw", "labels", "mask", "weights")
OF_THE_BOX = ("version", "voxel_size_nm", "roi", "sample")
"""Keys of the section that decide what is fetched, beside the sources."""


class _Local(NamedTuple):
    """A file or folder on this machine, of a source."""

    key: str
    path: str
    format: str
    sha256: str | None
    """Its recorded checksum; None where there is none."""


def still_asked(output: str, wanted: sections.Download) -> str:
    """The section (JSON) of the download whose manifest is `output`: that with which it was made, if that still holds.

    Else the wanted one, with the states of its sources' local files.
    """
    found = states(sections.to_json("download", wanted))
    return section(Path(output), sections.to_json("download", wanted.model_copy(update={"found": found})))


@cache
def states(text: str) -> dict[str, str]:
    """Size and time of every local file or folder of a section's sources that is there, by `{source}.{role}`."""
    found = {}
    for index, source in enumerate(json.loads(text)["sources"]):
        for role, file in files(source).items():
            if file.get("path") is not None and (state := _state(file["path"], _format(file))):
                found[f"{index}.{role}"] = state
    return found


def files(source: dict) -> dict[str, dict]:
    """The files of a source by role; published weights are one file."""
    if "raw" not in source:
        return {"weights": source}
    return {role: file for role in ROLES if (file := source.get(role)) is not None}


def _state(path: str, format: str) -> str | None:
    """Size, time and path: a variable in the path may name another folder, with a file of equal size and time."""
    try:
        found = local_files.find(path, format)
        return f"{local_files.state(found, format)} {found}"
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
        # States of local files that are not what they were: by size and time, and where these differ by checksum.
        index, content, used = made["run"]["source"], made["content"], []
        for role, local in _on_this_machine(f"{index}", before["sources"][index], content).items():
            used.append(local)
            for name, sha256 in (content[role].get("refers_to") or {}).items():
                folder = os.path.dirname(os.path.realpath(local_files.expand(local.path)))
                used.append(_Local(f"{local.key} {name}", os.path.join(folder, name), "file", sha256))
        changed = {}
        for local in used:
            state = _state(local.path, local.format)
            if state is None:
                logger.warning("%s (of %s) is not there any more; what was made of it stays", local.path, output)
            elif not _holds(output, local, state, before.get("found", {})):
                logger.warning("%s (of %s) has changed: it and what follows is made again", local.path, output)
                changed[local.key] = state
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
    content, used = made["content"], before["sources"][made["run"]["source"]]
    then = files(used)
    recorded = {role: content[role] for role in ROLES if content.get(role) is not None}
    for index, source in enumerate(asked["sources"]):
        now = files(source)
        sums = {role: _recorded(file, content, role) for role, file in now.items()}
        same_names = now.keys() == then.keys() and source.get("phantom") == used.get("phantom")
        if same_names and all(  # nothing differs but a checksum that is the recorded one
            {**then[role], "sha256": None} == {**file, "sha256": None}
            and file.get("sha256") in (None, then[role].get("sha256"), sums[role])
            for role, file in now.items()
        ):
            return True
        if now.keys() == recorded.keys() != set() and all(  # its own checksums say that its files are those found
            file.get("sha256") is not None
            and file["sha256"] == sums[role]
            and all(file.get(key) == recorded[role].get(key) for key in ("format", "dataset"))
            for role, file in now.items()
        ):
            return True
        here = list(_on_this_machine(f"in front {index}", source, content).values())
        found = [_state(local.path, local.format) for local in here]
        if not here or len(here) < len(now) or None in found:
            continue  # it is not there, so that it would not be used
        if not all(_holds(output, local, str(state), {}) for local, state in zip(here, found, strict=True)):
            return False
    return False


def _on_this_machine(prefix: str, source: dict, content: dict) -> dict[str, _Local]:
    """The files of a source that are read from this machine, by role."""
    return {
        role: _Local(f"{prefix}.{role}", file["path"], _format(file), _recorded(file, content, role))
        for role, file in files(source).items()
        if file.get("path") is not None
    }


def _recorded(file: dict, content: dict, role: str) -> str | None:
    """The checksum found of the file itself; of an archive, only that of its member is recorded."""
    return None if file.get("member") else (content.get(role) or {}).get("sha256")


def _holds(output: Path, local: _Local, state: str, known: dict[str, str]) -> bool:
    """Whether a file in that state holds the recorded bytes; each state is compared once."""
    place = output.with_name(f".{output.stem}.seen.json")
    if state in (known.get(local.key), _seen(place).get(local.key)):
        return True
    if local.sha256 is None:
        return False
    if local_files.checksum(local_files.find(local.path, local.format), local.format) != local.sha256:
        return False
    try:
        manifest.write_text(place, json.dumps({**_seen(place), local.key: state}) + "\n")
    except OSError as error:
        logger.warning("%s cannot be written (%s): the file is compared again next time", place, error)
    return True


def _seen(place: Path) -> dict[str, str]:
    """States at which files were found to hold the same bytes, as noted beside the manifest."""
    try:
        return dict(json.loads(place.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def _format(file: dict) -> str:
    """The format of the file itself: `archive` where a member of it is taken."""
    return "archive" if file.get("member") else file.get("format", "weights")
