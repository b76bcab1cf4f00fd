"""Remove what earlier settings left behind: stores and training states that no manifest refers to.

A stage's store lies in a folder named by the hash of all that decides its content, beside the manifest that refers to
it. It is stale when the manifests beside it are newer and none of them names it. Without a newer manifest it is
unfinished work that the next run continues, and stays.
"""

import logging
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from tokenunify.errors import InputError
from tokenunify.store import blockwise

logger = logging.getLogger(__name__)

STORE = re.compile(r"[0-9a-f]{16}")
PARTIAL_VOLUME = re.compile(r"\.(?P<volume>.+)\.(?:[0-9a-f]{16}\.(?:partial\.zarr|progress)|old\.zarr)")
ENDINGS = "json|csv|npz|safetensors|ckpt|html|png|sha256|zarr|progress"
TEMPORARY = re.compile(rf"\.(?:.+\.(?:{ENDINGS})|[0-9a-f]{{16}})\.\d+")
"""Names under which files and stores are written before they get their own: `.{name}.{process}`."""
INSIDE = ("locks", "ledger", "blocks", "last.ckpt")
"""Names in a store's folder, besides arrays; a folder with none of them is not taken for a store."""
TEMPORARY_SECONDS = 3600
"""A temporary file or store that did not change for so long has no writer."""


def run(folders: list[Path], dry_run: bool) -> None:
    """Remove, or with `dry_run` only list, every stale store under the folders."""
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"clean: {folder} is not a folder; give the folders results, models or data")
    found = sorted({path for folder in folders for path in stale(folder)})
    total = 0
    for path in found:
        size = disk_size(path)
        if not dry_run and not remove(path):
            logger.info("%10s  %s is in use now, kept", _readable(size), path)
            continue
        logger.info("%10s  %s", _readable(size), path)
        total += size
    logger.info("%10s  %s", _readable(total), "would be removed" if dry_run else "removed")


def stale(folder: Path) -> Iterator[Path]:
    """Stale stores, states, partial volumes and temporary files under `folder`; links are not followed."""
    for root, names, files in os.walk(folder):
        here = Path(root)
        kept = [name for name in names if not _is_stale(here / name)]
        yield from (here / name for name in names if name not in kept)
        yield from (here / name for name in files if _is_stale(here / name))
        names[:] = [name for name in kept if not name.startswith(".") and not name.endswith(".zarr")]


def _is_stale(path: Path) -> bool:
    """Whether a temporary file or folder has no writer, or no manifest names a finished store, state or volume."""
    if path.is_symlink():
        return False
    if TEMPORARY.fullmatch(path.name):
        return time.time() - max(p.stat().st_mtime for p in [path, *path.glob("*")]) > TEMPORARY_SECONDS
    locks, manifests = path / "locks", []
    if STORE.fullmatch(path.name) and (any((path / name).exists() for name in INSIDE) or any(path.glob("*.zarr"))):
        # A training's folder is in training/ beside its manifest, every other directly beside its own.
        beside, above = (list(parent.glob("*.json")) for parent in path.parents[:2])
        if not any(path.name in m.read_text(encoding="utf-8", errors="replace") for m in [*beside, *above]):
            manifests = above if path.parent.name == "training" else beside
    elif path.is_dir() and (found := PARTIAL_VOLUME.fullmatch(path.name)):
        made = path.with_name(f"{found['volume']}.json")
        manifests = [made] if made.exists() else []
        locks = path.with_name(f".{found['volume']}.locks")
    if not manifests:
        return False
    inside = [path, *path.glob("*"), *path.glob("ledger/*"), *path.glob("blocks/*")]
    changed = max(p.stat().st_mtime for p in inside)
    return any(m.stat().st_mtime > changed for m in manifests) and not blockwise.in_use(locks)


def remove(path: Path) -> bool:
    """Remove a file or folder; False, and nothing is done, if a process has begun to use it."""
    if path.is_file():
        path.unlink()
        return True
    if blockwise.in_use(path / "locks"):
        return False
    # Under another name first: what is half removed can no longer be taken for a store.
    doomed = path.with_name(f".{path.name.lstrip('.')}.{os.getpid()}")
    os.rename(path, doomed)
    shutil.rmtree(doomed)
    return True


def disk_size(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file() and not p.is_symlink()]
    return sum(p.stat().st_size for p in files)


def _readable(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
