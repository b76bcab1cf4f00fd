"""Datasets of webKnossos whose layers are wkw files."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import wkw

from tokenunify.data.formats import metadata
from tokenunify.data.formats.absent import Chunks
from tokenunify.data.formats.axes import Ordered
from tokenunify.data.formats.source_array import NM, Opening, SourceArray, product
from tokenunify.data.formats.stored_chunks import of_wkw
from tokenunify.errors import InputError

PROPERTIES = "datasource-properties.json"
MOST_VOXELS = 2**32
"""Along an axis: wkw counts them by 32 bits."""


def open_wkw(path: str, dataset: str | None, opening: Opening) -> SourceArray:
    """Magnification `layer/mag` (color/1, color/2-2-1) of a dataset's folder, within the layer's bounding box."""
    with metadata.using(path, f"{PROPERTIES} or the header of {dataset} is not as wkw has it"):
        layer, _, mag = (dataset or "").partition("/")
        if not (properties := metadata.read(path, PROPERTIES)):
            raise InputError(f"{path} has no {PROPERTIES}; give the dataset's folder, which has it")
        known = {found["name"]: found for found in properties["dataLayers"]}
        folder = Path(path, layer, mag)
        if layer not in known or not (folder / "header.wkw").exists():
            raise InputError(
                f"{path} has no wkw data {dataset!r}; it has the layers {sorted(known)}: give layer/mag "
                f"as dataset, such as {min(known)}/1"
            )
        box = known[layer]["boundingBox"]
        factors = [int(word) for word in mag.split("-")]
        factors = factors * 3 if len(factors) == 1 else factors
        first = metadata.lengths(path, "topLeft", box["topLeft"])
        sides = metadata.lengths(path, "width, height, depth", [box[side] for side in ("width", "height", "depth")])
        if any(o + n > MOST_VOXELS for o, n in zip(first, sides, strict=True)):
            raise metadata.damaged(
                path, f"the box of {layer} ends beyond voxel {MOST_VOXELS}, the last that wkw has: {box}"
            )
        start = [o // f for o, f in zip(first, factors, strict=True)]
        shape = [-(-n // f) for n, f in zip(sides, factors, strict=True)]
        scale, unit = properties["scale"], "nanometer"
        if isinstance(scale, dict):
            scale, unit = scale["factor"], scale["unit"]
        size = product([NM.get(unit)] * 3, scale[::-1], factors[::-1])
        data, (x, y, z) = _Wkw(folder, start, shape), start
        side = data.files.header.block_len * data.files.header.file_len  # of a file; where one is absent, wkw has zeros
        stored = of_wkw(metadata.address_of(str(folder)))
        files = Chunks((side, side, side), stored, (2, 1, 0), start=(z, y, x))
        return SourceArray(path, Ordered(data, (2, 1, 0)), size, files)


class _Wkw:
    """A box (x, y, z) of wkw files."""

    def __init__(self, folder: Path, start: list[int], shape: list[int]):
        try:
            self.files, self.start, self.turn = wkw.Dataset.open(str(folder)), start, threading.Lock()
        except (wkw.wkw.WKWException, AssertionError) as error:  # of a header that is none
            raise ValueError(str(error)) from error
        self.shape, self.dtype = tuple(shape), np.dtype(self.files.header.voxel_type)
        if self.files.header.num_channels != 1:
            raise InputError(f"{folder} has {self.files.header.num_channels} channels; expected one channel")

    def __getitem__(self, index: Any) -> np.ndarray:
        cuts = [
            slice(*i.indices(n)) if isinstance(i, slice) else slice(i, i + 1)
            for i, n in zip(index, self.shape, strict=True)
        ]
        offset = [o + cut.start for o, cut in zip(self.start, cuts, strict=True)]
        with self.turn:
            try:
                box = self.files.read(offset, [max(0, cut.stop - cut.start) for cut in cuts])[0]
            except wkw.wkw.WKWException as error:
                raise ValueError(str(error)) from error
        return box[tuple(slice(None) if isinstance(i, slice) else 0 for i in index)]
