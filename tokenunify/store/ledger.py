"""The ledger of finished blocks: one line of JSON each, in one file per part, which is only ever added to."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt, ValidationError

from tokenunify.geometry import Blocks
from tokenunify.store.forms import Form


class Entry(Form):
    """a finished block"""

    block: NonNegativeInt
    voxels: PositiveInt
    seconds: NonNegativeFloat
    shards: str | None = None
    """The marks of its shards' files; ledgers of earlier versions have none."""


def record(ledger: Path, entry: dict) -> None:
    """Add a line, which is on disk when this returns."""
    ledger.parent.mkdir(parents=True, exist_ok=True)
    with open(ledger, "a+b") as file:
        # A killed writer may have left half a line: end it, so that this entry stands on its own.
        if file.seek(0, os.SEEK_END) and (file.seek(-1, os.SEEK_END) or True) and file.read(1) != b"\n":
            file.write(b"\n")
        file.write(json.dumps(entry).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def entries(folder: Path, blocks: Blocks | None = None) -> Iterator[Entry]:
    """The entries of all parts and attempts that are of these blocks; other lines are passed over.

    Other lines are one that was being written when its process was killed, damage, and blocks of another grid.
    """
    for path in sorted((folder / "ledger").glob("*.jsonl")):
        for line in path.read_bytes().splitlines() if path.is_file() else ():
            try:
                entry = Entry.model_validate_json(line, strict=True)
            except ValidationError:
                continue
            if blocks is None or (entry.block < len(blocks) and blocks.roi(entry.block).num_voxels == entry.voxels):
                yield entry


def summary(folder: Path, blocks: Blocks, mine: range) -> dict:
    """Number, voxels and seconds of the recorded blocks among `mine`, over all attempts, each block once."""
    found = {entry.block: entry for entry in entries(folder, blocks) if entry.block in mine}.values()
    seconds = sum(entry.seconds for entry in found)
    voxels = sum(entry.voxels for entry in found)
    return {
        "blocks": len(found),
        "voxels": voxels,
        "seconds": round(seconds, 3),
        "voxels_per_second": round(voxels / seconds) if seconds else None,
    }
