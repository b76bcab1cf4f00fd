"""Make the empty store of a block-wise stage, once, in a folder named by everything that decides its content."""

import json
import os
import shutil
from pathlib import Path

from tokenunify import arrays, manifest, stages
from tokenunify.blockwise import input_hashes, store_folder

ARRAYS = {
    "predict": ("affinities", "uint8", 3),
    "baseline": ("affinities", "uint8", 3),
    "fragments": ("fragments", "uint64", None),
    "relabel": ("segmentation", "uint64", None),
}


def run(stage: str, config_json: str, inputs: list[Path], output: Path) -> None:
    """Write `prepared.json` and the empty array beside it; an array that is already there is kept.

    The first input is a volume's manifest or another store's `prepared.json`: it gives the shape.
    """
    section, plain = stages.from_json(stage, config_json)
    source = manifest.content(inputs[0])
    shape = tuple((source.get("raw") or source)["shape"])[-3:]
    name, dtype, channels = ARRAYS[stage]
    hashes = input_hashes(inputs)
    folder = store_folder(output, stage, plain, hashes)
    content = {
        "stage": stage,
        "store": f"{folder.name}/{name}.zarr",
        "shape": shape if channels is None else (channels, *shape),
        "dtype": dtype,
        "block_shape": section.block_shape,
        "voxel_size_nm": source["voxel_size_nm"],
        "offset_nm": source["offset_nm"],
        "config": json.loads(config_json),
        "inputs": hashes,
    }
    if not (folder / f"{name}.zarr").exists():
        _create(folder / f"{name}.zarr", content, section)
    manifest.write(output, content)


def _create(path: Path, content: dict, section: stages.Grid) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    arrays.create(
        temporary,
        shape=content["shape"],
        dtype=content["dtype"],
        chunk_shape=section.chunk_shape,
        shard_shape=section.shard_shape,
        attributes={key: content[key] for key in ("voxel_size_nm", "offset_nm")},
    )
    try:
        os.rename(temporary, path)
    except OSError:
        if not path.exists():
            raise
        shutil.rmtree(temporary)  # another process has made it meanwhile
