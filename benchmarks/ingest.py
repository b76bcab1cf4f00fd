"""Ingest next to dask's from_array(...).to_zarr(...) with the same chunks, shards and codecs: speed, memory, voxels.

Labels are pinky40 of $TOKENUNIFY_DATA (left out where it is not there); raw is 1024^3 uint8, FIB-25 mirrored to size
or, without it, a phantom. `python benchmarks/ingest.py [FOLDER]` keeps its files in FOLDER, else in a temporary one.
Both read an HDF5 file with two threads, each in a process of its own, in turn; the fastest of REPEATS counts. The
levels for viewing, which dask does not make, and the pass over the labels for their largest id are told apart.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import dask
import dask.array as da
import h5py
import numpy as np
import zarr

from tokenunify import config
from tokenunify.data.formats import readers
from tokenunify.data.ingest import convert, image, labels, streaming
from tokenunify.data.phantom import phantom
from tokenunify.geometry import Roi
from tokenunify.stages import sections
from tokenunify.store import arrays, manifest

SIDE = 1024
THREADS = 2
REPEATS = 3
STORAGE = config.Storage()
PINKY = "pinky40/pinky40_seg_8x8x40nm_512x1024x1024.h5"
VOXEL_SIZE_NM = {"raw": (10.0, 10.0, 10.0), "labels": (40.0, 8.0, 8.0)}


def write_raw(path: Path) -> None:
    """Raw of SIDE^3 voxels, by slabs."""
    sample = Path(os.environ.get("TOKENUNIFY_DATA", ""), "fib25/training_sample2.h5")
    if sample.exists():
        with h5py.File(sample) as file:
            cube = file["raw"][:]
    else:
        cube = phantom.generate((250, 250, 250), seed=5)[0]
    z, y, x = (np.pad(np.arange(n), (0, SIDE - n), mode="symmetric") for n in cube.shape)
    with h5py.File(path, "w") as file:
        data = file.create_dataset("raw", (SIDE,) * 3, np.uint8, chunks=(32, 256, 256))
        for start in range(0, SIDE, 32):
            data[start : start + 32] = cube[z[start : start + 32]][:, y][:, :, x]


def by_dask(source: str, role: str, store: Path) -> dict:
    """Seconds of the only level."""
    with h5py.File(source) as file:
        lazy = da.from_array(file[role], chunks=STORAGE.shard_shape)
        grid = {"chunk_shape": STORAGE.chunk_shape, "shard_shape": STORAGE.shard_shape}
        array = arrays.create(store / role / "0", shape=lazy.shape, dtype=lazy.dtype.name, attributes={}, **grid)
        begun = time.perf_counter()
        lazy.to_zarr(array)
        return {"full": time.perf_counter() - begun}


def by_ingest(source: str, role: str, store: Path) -> dict:
    """Seconds of the pass over the labels, of full resolution and of the levels above it."""
    spent: list[float] = []
    fill = streaming.fill

    def timed(*arguments, **options) -> dict:
        begun = time.perf_counter()
        run = fill(*arguments, **options)
        spent.append(time.perf_counter() - begun)
        return run

    streaming.fill = timed
    array = readers.open_array(source, "hdf5", role, store)
    grid = {"chunk_shape": STORAGE.chunk_shape, "shard_shape": STORAGE.shard_shape}
    given = {"roi": None, "zero": "background"}
    section = sections.Ingest(voxel_size_nm=VOXEL_SIZE_NM[role], **grid, **given)
    roi, begun = Roi((0, 0, 0), array.shape), time.perf_counter()
    if role == "labels":
        found = labels.converted(array, roi, section, store / "progress" / "ids")
    else:
        found = convert.converted(role, array, roi, None)
    looking = time.perf_counter() - begun
    image.write(store, store / "progress", role, found, section, roi)
    return {"ids": looking, "full": spent[0], "levels": sum(spent[1:])}


WAYS = {"dask": by_dask, "ingest": by_ingest}


def measured(way: str, source: Path, role: str, store: Path) -> dict:
    """What `way` says in a process of its own, and its memory at the peak, MiB."""
    shutil.rmtree(store, ignore_errors=True)
    command = [sys.executable, __file__, "--child", way, str(source), role, str(store)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def compare(source: Path, role: str, folder: Path) -> None:
    """Print a row of both ways; their voxels must be equal."""
    stores = {way: folder / f"{way}.zarr" for way in WAYS}
    runs = [{way: measured(way, source, role, store) for way, store in stores.items()} for _ in range(REPEATS)]
    found = {way: min((run[way] for run in runs), key=lambda run: run["full"]) for way in WAYS}
    one, other = (zarr.open_array(str(store / role / "0"), mode="r") for store in stores.values())
    equal = all((one[z : z + 32] == other[z : z + 32]).all() for z in range(0, one.shape[0], 32))
    assert equal and one.dtype == other.dtype, f"{role}: the voxels differ"
    million = {way: one.size / 1e6 / run["full"] for way, run in found.items()}
    print(f"{role}, {one.size / 1e6:.0f} M voxels, equal in both")
    for way, run in found.items():
        print(f"  {way:6} {million[way]:6.1f} M voxels/s at full resolution, {run['peak_mb']} MiB")
    ours = found["ingest"]
    print(
        f"  {million['ingest'] / million['dask']:.2f} of dask's speed; {ours['full']:.1f} s, and {ours['ids']:.1f} s "
        f"before for the ids and {ours['levels']:.1f} s after for the levels"
    )


def main(folder: Path) -> None:
    """Compare both volumes."""
    pinky = Path(os.environ.get("TOKENUNIFY_DATA", ""), PINKY)
    if pinky.exists():
        compare(pinky, "labels", folder)
    raw = folder / "raw.h5"
    if not raw.exists():
        write_raw(raw)
    compare(raw, "raw", folder)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        way, source, role, store = sys.argv[2:]
        dask.config.set(scheduler="threads", num_workers=THREADS)
        zarr.config.set({"threading.max_workers": THREADS})
        print(json.dumps({**WAYS[way](source, role, Path(store)), "peak_mb": manifest.peak_mb()}))
    else:
        main(Path(*sys.argv[1:] or [tempfile.mkdtemp(prefix="ingest-")]).resolve())
