"""Keep what was fetched under its checksum: the first one found holds, and nothing with another is used."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from tokenunify.errors import InputError
from tokenunify.store import file_lock, manifest


def once(
    address: str,
    target: Path,
    sha256: str | None,
    get: Callable[[bool], None],
    checksum: Callable[[Path], str] = manifest.file_sha256,
) -> str:
    """Call `get(whether a checksum is known)`, which makes `target`, unless it is there; return its SHA-256.

    Several processes may ask for the same file or folder: one fetches it. Without `sha256` the first download's value
    is kept beside it and holds from then on. What has another checksum is moved aside and never used.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    record = target.with_name(target.name + ".sha256")
    aside = target.with_name(target.name + ".wrong-sha256")
    with file_lock.alone(target.with_name(f".{target.name}.lock")):
        expected = sha256 or (record.read_text(encoding="utf-8").split()[0] if record.exists() else None)
        if not target.exists() and aside.exists() and checksum(aside) == expected:
            os.replace(aside, target)
        if not target.exists():
            get(expected is not None)
        found = checksum(target)
        if expected is not None and found != expected:
            remove(aside)
            os.replace(target, aside)
            recorded = f"the first download had the expected one: if this file is the right one, delete {record}"
            mend = "correct the address or sha256" if sha256 else recorded
            raise InputError(
                f"{address} is not the expected file: expected sha256 {expected}, found {found}; the file is kept "
                f"aside as {aside} and not used; {mend} and run snakemake again"
            )
        manifest.write_text(record, f"{found}  {target.name}\n")
        return found


def remove(path: Path) -> None:
    """Remove a file, a folder with all in it, or nothing."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
