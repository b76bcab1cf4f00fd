"""Keep what was fetched under its checksum: the first one found holds, and nothing with another is used."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tokenunify.errors import InputError
from tokenunify.store import file_lock, manifest


@dataclass
class Kept:
    """What is known of a file or folder."""

    missing: bool
    """Whether it is still to be fetched."""
    verified: bool
    """Whether its checksum is known, so that wrong content will be noticed."""
    sha256: str = ""
    """Its checksum, in the end."""


@contextmanager
def once(
    address: str, target: Path, sha256: str | None, checksum: Callable[[Path], str] = manifest.file_sha256
) -> Iterator[Kept]:
    """Make `target` in this context if it is `missing`; then its SHA-256, which must be the expected one, is known.

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
        kept = Kept(missing=not target.exists(), verified=expected is not None)
        yield kept
        kept.sha256 = checksum(target)
        if expected is not None and kept.sha256 != expected:
            remove(aside)
            os.replace(target, aside)
            recorded = f"the first download had the expected one: if this file is the right one, delete {record}"
            mend = "correct the address or sha256" if sha256 else recorded
            raise InputError(
                f"{address} is not the expected file: expected sha256 {expected}, found {kept.sha256}; the file is "
                f"kept aside as {aside} and not used; {mend} and run snakemake again"
            )
        manifest.write_text(record, f"{kept.sha256}  {target.name}\n")


def remove(path: Path) -> None:
    """Remove a file, a folder with all in it, or nothing."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
