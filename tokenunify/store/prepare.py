"""Make the empty store of a block-wise stage, once, in a folder named by everything that decides its content."""

import json
import os
import shutil
from math import gcd
from pathlib import Path

import zarr

from tokenunify.config import NEAREST
from tokenunify.geometry import Coordinate
from tokenunify.stages import sections
from tokenunify.stages.table import STAGES
from tokenunify.store import arrays, manifest, pyramid
from tokenunify.store.blockwise import input_hashes, store_folder


def run(stage: str, config_json: str, inputs: list[Path], output: Path) -> None:
    """Write `prepared.json` and the empty array beside it; an array that is already there is kept.

    The first input is a volume's manifest or another store's `prepared.json`: it gives the shape.
    """
    section, plain = sections.from_json(stage, config_json)
    store = STAGES[stage].store
    assert store is not None
    contents = [manifest.content(path, form) for path, form in zip(inputs, store.inputs, strict=False)]
    source = contents[0]
    shape = tuple((source.get("raw") or source)["shape"])[-3:]
    channels = (len(plain.get("offsets", NEAREST)),) if store.has_channels else ()
    hashes = input_hashes(inputs)
    folder = store_folder(output, stage, plain, hashes)
    content = {
        "stage": stage,
        "store": f"{folder.name}/{store.place}",
        "shape": (*channels, *shape),
        "dtype": store.dtype,
        "block_shape": section.block_shape,
        "voxel_size_nm": source["voxel_size_nm"],
        "offset_nm": source["offset_nm"],
        "config": json.loads(config_json),
        "inputs": hashes,
    }
    root = folder / Path(store.place).parts[0]
    if not root.exists():
        _create(root, content, section)
    manifest.write(output, content)


def _create(path: Path, content: dict, section: sections.Grid) -> None:
    """Make the empty array; or an OME-Zarr image of labels, in which a block fills whole shards of every level."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    if Path(content["store"]).name == path.name:
        grid = {"chunk_shape": section.chunk_shape, "shard_shape": section.shard_shape}
        arrays.create(temporary, **{**arrays.stated(content), **grid})
    else:
        levels = pyramid.block_levels(content["shape"], content["voxel_size_nm"], section.block_shape)
        name = Path(content["store"]).parent.stem
        ome = pyramid.multiscales(name, [level.voxel_size_nm for level in levels], content["offset_nm"], "mode")
        ome["image-label"] = {}
        zarr.create_group(str(temporary), zarr_format=3, attributes={"ome": ome})
        for number, level in enumerate(levels):
            described = {**content, "shape": level.shape, "voxel_size_nm": level.voxel_size_nm}
            shard_shape = _divisor(section.shard_shape, level.block_shape)
            grid = {"chunk_shape": _divisor(section.chunk_shape, shard_shape), "shard_shape": shard_shape}
            arrays.create(temporary / str(number), **{**arrays.stated(described), **grid})
    try:
        os.rename(temporary, path)
    except OSError:
        if not path.exists():
            raise
        shutil.rmtree(temporary)  # another process has made it meanwhile


def _divisor(wanted: Coordinate, whole: Coordinate) -> Coordinate:
    """The largest shape that divides both."""
    z, y, x = map(gcd, wanted, whole)
    return z, y, x
