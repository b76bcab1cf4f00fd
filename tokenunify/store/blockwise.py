"""Run one part of a block-wise stage: lock, ledger of finished blocks, resume at the next one."""

import ctypes
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

from tqdm import tqdm

from tokenunify.errors import InputError
from tokenunify.geometry import Blocks, Roi
from tokenunify.store import arrays, file_lock, forms, ledger, lock_holders, manifest, shards
from tokenunify.store.ledger import record as _record

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

M_MMAP_THRESHOLD, M_ARENA_MAX = -3, -8
"""Constants of malloc.h."""
HEARTBEAT_SECONDS = 10
CLAIM_SECONDS = 300  # to claim blocks takes a moment: who waits for so long waits for ever


def parse_part(text: str) -> tuple[int, int]:
    """`i/n` as (i, n) with 0 <= i < n."""
    try:
        part, num_parts = (int(word) for word in text.split("/"))
    except ValueError:
        raise InputError(f"--part must be i/n such as 0/4, got {text!r}") from None
    if not 0 <= part < num_parts:
        raise InputError(f"--part must be i/n with 0 <= i < n, got {text!r}")
    return part, num_parts


def store_folder(output: str | Path, stage: str, config: dict, inputs: dict[str, str]) -> Path:
    """Folder beside `output` named by the hash of stage, config (with its version) and inputs' content hashes."""
    return Path(output).parent / manifest.digest({"stage": stage, "config": config, "inputs": inputs})


def run_part(
    folder: Path,
    blocks: Blocks,
    process: Callable[[int, Roi], Result],
    *,
    part: int = 0,
    num_parts: int = 1,
    write: Callable[[Roi, Result], None] = lambda roi, result: None,
    written: arrays.zarr.Array | None = None,
    context: Callable[[list[int]], AbstractContextManager] = nullcontext,
) -> dict:
    """Call `write(roi, process(index, roi))` for each block of the part that no ledger of this folder lists.

    The block is recorded only when `write`, in a thread beside the next block's `process`, has returned: its file or
    shards are then on disk. Blocks whose shards of `written` have vanished, or are not those recorded, are processed
    again. All this happens within `context(blocks to process)`. Returns the manifest's `run`: voxels, blocks and
    seconds, added up over the attempts.
    """
    mine = blocks.part(part, num_parts)
    _keep_the_heap_small()
    with lock(folder / "locks", mine) as lost:
        done = finished_blocks(folder, blocks) & set(mine)
        if written is not None:
            marks = arrays.recorded_marks(folder, blocks, written)
            done = {i for i in done if _are_whole(shards.files(written, blocks.roi(i).slices), written, marks)}
        todo = [index for index in mine if index not in done]
        logger.info("part %d of %d: %d blocks, %d already finished", part, num_parts, len(mine), len(mine) - len(todo))
        path, last = folder / "ledger" / f"part{part}of{num_parts}.jsonl", time.perf_counter()

        def finish(index: int, roi: Roi, result: Result) -> None:
            nonlocal last
            write(roi, result)
            marks = {} if written is None else {"shards": _to_disk(written, roi)}
            before, last = last, time.perf_counter()
            _record(path, {"block": index, "voxels": roi.num_voxels, "seconds": last - before, **marks})

        with context(todo), ThreadPoolExecutor(1) as writer:
            waiting: Future = writer.submit(lambda: None)
            for index in tqdm(todo, unit="block", mininterval=5):
                if lost.is_set():
                    raise InputError(
                        f"{folder}: another process took over, as this one seemed dead; run snakemake again after it"
                    )
                roi = blocks.roi(index)
                result = process(index, roi)
                waiting.result()  # no more than one block waits to be written
                waiting = writer.submit(finish, index, roi, result)
            waiting.result()
        return _summary(folder, blocks, mine, computed_now=len(todo))


def _keep_the_heap_small() -> None:
    """Let threads share one heap, without large arrays: else it would grow with the number of blocks (glibc only)."""
    allocator = ctypes.CDLL(None)
    if hasattr(allocator, "mallopt"):
        allocator.mallopt(M_ARENA_MAX, 1)
        allocator.mallopt(M_MMAP_THRESHOLD, 2**22)


def fill(
    prepared: Path,
    output: Path,
    compute: Callable[[int, Roi], arrays.np.ndarray],
    *,
    part: tuple[int, int],
    plain: dict,
    inputs: Sequence[Path],
    facts: Callable[[], dict] = dict,
    context: Callable[[list[int]], AbstractContextManager] = nullcontext,
) -> None:
    """Write `compute(index, roi)` into the prepared array for each block of the part, then the part's manifest.

    `facts()` is added to the manifest's `run`; `context` is that of `run_part`. Raises InputError for a store that was
    prepared for another config than `plain` or for other inputs.
    """
    content = manifest.content(prepared, forms.Prepared)
    if (content["config"], content["inputs"]) != (plain, input_hashes(inputs)):
        raise InputError(
            f"{prepared} was made for other settings or inputs than those given: make it again with "
            f"`snakemake {prepared}`"
        )
    array = arrays.open_writable(prepared)
    z, y, x = content["shape"][-3:]

    def write(roi: Roi, values: arrays.np.ndarray) -> None:
        array[(..., *roi.slices)] = values

    blocks = Blocks((z, y, x), tuple(content["block_shape"]))
    folder = arrays.prepared_folder(prepared)
    options = {"write": write, "written": array, "context": context}
    run = run_part(folder, blocks, compute, part=part[0], num_parts=part[1], **options)
    manifest.write(output, {"prepared": manifest.digest(content), "part": part[0], "num_parts": part[1]}, run | facts())


def input_hashes(inputs: Sequence[Path]) -> dict[str, str]:
    """Content hashes of a store's inputs, by their position."""
    return {str(index): manifest.content_hash(path) for index, path in enumerate(inputs)}


def finished_blocks(folder: Path, blocks: Blocks | None = None) -> set[int]:
    """Block numbers recorded by any part of any attempt, of these blocks where they are given."""
    return {entry.block for entry in ledger.entries(folder, blocks)}


def _summary(folder: Path, blocks: Blocks, mine: range, computed_now: int) -> dict:
    entries = {entry.block: entry for entry in ledger.entries(folder, blocks) if entry.block in mine}.values()
    seconds = sum(entry.seconds for entry in entries)
    voxels = sum(entry.voxels for entry in entries)
    return {
        "blocks": len(entries),
        "blocks_computed_now": computed_now,
        "voxels": voxels,
        "seconds": round(seconds, 3),
        "voxels_per_second": round(voxels / seconds) if seconds else None,
    }


def _are_whole(files: list[Path], array: arrays.zarr.Array, marks: shards.Marks) -> bool:
    return all(map(shards.is_there, files)) and all(
        file not in marks or shards.mark(file, array) in marks[file] for file in files
    )


def _to_disk(array: arrays.zarr.Array, roi: Roi) -> str:
    """Return the marks of a box's shards when the disk has them.

    Else a machine that crashes could lose them and keep the ledger.
    """
    for path in shards.files(array, roi.slices):
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    return shards.marks(array, roi.slices)


@contextmanager
def lock(folder: Path, claimed: range) -> Iterator[threading.Event]:
    """Hold the blocks `claimed`: wait while a living process, of an earlier attempt perhaps, works on any of them.

    The event is set when another process has taken the blocks over, after this one was suspended for long.
    """
    folder.mkdir(parents=True, exist_ok=True)
    own = f"{socket.gethostname()}.{os.getpid()}.{uuid4().hex[:8]}"  # containers may share the first two
    path = folder / f"{claimed.start}-{claimed.stop}.{own}.json"
    warned, watch = False, lock_holders.Watch()
    while holder := _claim(folder, path, claimed, watch):
        if not warned:
            logger.warning(
                "blocks are held by process %s on %s: waiting for it to end, or to give no sign of life for %d s",
                *(holder.pid, holder.host, lock_holders.STALE_SECONDS),
            )
        warned = True
        time.sleep(0.5)
    ended, lost = threading.Event(), threading.Event()
    threading.Thread(target=_heartbeat, args=(path, ended, lost), daemon=True).start()
    try:
        yield lost
    finally:
        ended.set()
        path.unlink(missing_ok=True)


def _heartbeat(path: Path, ended: threading.Event, lost: threading.Event) -> None:
    while not (ended.wait(HEARTBEAT_SECONDS) or lost.is_set()):
        try:
            os.utime(path)
        except FileNotFoundError:
            lost.set()
        except OSError as error:
            logger.warning("%s cannot be renewed now (%s)", path, error)  # a network file system may be slow


def _claim(folder: Path, path: Path, claimed: range, watch: lock_holders.Watch) -> lock_holders.Holder | None:
    """Write the lock file, or return who holds some of the blocks; one process at a time looks and writes."""
    with file_lock.alone(folder / ".claim", CLAIM_SECONDS):
        for other in sorted(folder.glob("*.json")):
            holder = lock_holders.read(other)
            if holder is None:
                continue  # its owner has just ended
            if not watch.is_alive(other, holder):
                other.unlink(missing_ok=True)
            elif holder.start < claimed.stop and claimed.start < holder.stop:
                return holder
        manifest.write_text(path, json.dumps(lock_holders.own(claimed)))
        return None


def in_use(folder: Path) -> bool:
    """Whether a process that lives, as far as is known, holds a lock in `folder`."""
    watch = lock_holders.Watch()
    found = ((path, lock_holders.read(path)) for path in folder.glob("*.json"))
    return any(watch.is_alive(path, holder) for path, holder in found if holder)
