"""Run one part of a block-wise stage: lock, ledger of finished blocks, resume at the next one."""

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
from tokenunify.store import arrays, file_lock, forms, freed_memory, ledger, lock_holders, manifest, shards
from tokenunify.store.ledger import record as _record

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

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
    freed_memory.give_back()
    with lock(folder / "locks", mine) as lost:
        done = finished_blocks(folder, blocks) & set(mine)
        if written is not None:
            marks = arrays.recorded_marks(folder, blocks, written)
            done = {
                index
                for index in done
                if all(
                    shards.is_there(file) and shards.is_as_recorded(file, written, marks)
                    for file in shards.files(written, blocks.roi(index).slices)
                )
            }
        todo = [index for index in mine if index not in done]
        logger.info("part %d of %d: %d blocks, %d already finished", part, num_parts, len(mine), len(mine) - len(todo))
        _compute(folder, f"part{part}of{num_parts}", blocks, todo, process, write, written, context, lost)
        return {**ledger.summary(folder, blocks, mine), "blocks_computed_now": len(todo)}


def _compute(
    folder: Path,
    name: str,
    blocks: Blocks,
    todo: list[int],
    process: Callable[[int, Roi], Result],
    write: Callable[[Roi, Result], None],
    written: arrays.zarr.Array | None,
    context: Callable[[list[int]], AbstractContextManager],
    lost: threading.Event,
) -> None:
    """Process the blocks; beside the next one, a thread writes each result and records its block in `name`'s ledger."""
    last = time.perf_counter()

    def finish(index: int, roi: Roi, result: Result) -> None:
        nonlocal last
        write(roi, result)
        marks = {}
        if written is not None:
            for file in shards.files(written, roi.slices):
                with open(file, "rb") as shard:  # else a machine that crashes could lose it and keep the ledger
                    os.fsync(shard.fileno())
            marks["shards"] = shards.marks(written, roi.slices)
        before, last = last, time.perf_counter()
        entry = {"block": index, "voxels": roi.num_voxels, "seconds": last - before, **marks}
        _record(folder / "ledger" / f"{name}.jsonl", entry)

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


@contextmanager
def lock(folder: Path, claimed: range) -> Iterator[threading.Event]:
    """Hold the blocks `claimed`: wait while a living process, of an earlier attempt perhaps, works on any of them.

    The event is set when another process has taken the blocks over, after this one was suspended for long.
    """
    folder.mkdir(parents=True, exist_ok=True)
    own = f"{socket.gethostname()}.{os.getpid()}.{uuid4().hex[:8]}"  # containers may share the first two
    path = folder / f"{claimed.start}-{claimed.stop}.{own}.json"
    warned, watch = False, lock_holders.Watch()
    while True:
        with file_lock.alone(folder / ".claim", CLAIM_SECONDS):  # one process at a time looks and writes
            holder = None
            for other, found, is_alive in watch.holders(folder):
                if not is_alive:
                    other.unlink(missing_ok=True)
                elif found.start < claimed.stop and claimed.start < found.stop:
                    holder = found
                    break
            if holder is None:
                manifest.write_text(path, json.dumps(lock_holders.own(claimed)))
                break
        if not warned:
            logger.warning(
                "blocks are held by process %s on %s: waiting for it to end, or to give no sign of life for %d s",
                *(holder.pid, holder.host, lock_holders.STALE_SECONDS),
            )
        warned = True
        time.sleep(0.5)
    ended, lost = threading.Event(), threading.Event()
    threading.Thread(target=lock_holders.renew, args=(path, ended, lost), daemon=True).start()
    try:
        yield lost
    finally:
        ended.set()
        path.unlink(missing_ok=True)


def in_use(folder: Path) -> bool:
    """Whether a process that lives, as far as is known, holds a lock in `folder`."""
    return any(is_alive for _, _, is_alive in lock_holders.Watch().holders(folder))
