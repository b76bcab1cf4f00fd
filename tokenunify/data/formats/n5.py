"""Arrays of n5, which tensorstore reads: their axes run x, y, z unless their attributes say otherwise."""

from tokenunify.data.formats import metadata, tensorstore_access
from tokenunify.data.formats.absent import Chunks
from tokenunify.data.formats.axes import agreed, of_attributes, ordered
from tokenunify.data.formats.metadata import address_of, joined
from tokenunify.data.formats.source_array import NM, SourceArray, product, stated_voxel_size, turned
from tokenunify.data.formats.stored_chunks import by_index
from tokenunify.errors import InputError


def open_n5(path: str, dataset: str) -> SourceArray:
    """The array `dataset` in a folder or at an address.

    Its voxel size is `pixelResolution`, or `resolution` in `units`, in the order of the axes, or COSEM's `transform`.
    """
    attributes = metadata.read(path, joined(dataset, "attributes.json"))
    if "dimensions" not in attributes:
        raise InputError(
            f"{path} has no n5 array {dataset!r}; give the array's path inside the folder as dataset, such as a/s0"
        )
    shape = metadata.lengths(path, "dimensions", attributes["dimensions"])
    chunk = metadata.lengths(path, "blockSize", attributes.get("blockSize"), 1)
    metadata.check_grid(path, shape, chunk)
    names = agreed(path, of_attributes(attributes, backwards=True), len(shape)) or ["x", "y", "z", *"ct"][: len(shape)]
    with metadata.using(path, f"tensorstore cannot open {dataset!r}"):
        array = tensorstore_access.array("n5", address_of(path, dataset))
    metadata.check_chunk(path, chunk, array.dtype.itemsize)
    data, places = ordered(path, array, names)
    z, y, x = (chunk[axis] for axis in places)
    chunks = Chunks((z, y, x), by_index(address_of(path, dataset), "/"), places, len(shape))
    stated = attributes.get("pixelResolution") or attributes.get("resolution")
    stated = stated if isinstance(stated, dict) else {"dimensions": stated}
    units = attributes.get("units") or [stated.get("unit", "nm")] * len(names)
    nm = [NM.get(str(unit)) for unit in units] if isinstance(units, list) else None
    size = product(turned(nm, names), turned(stated.get("dimensions"), names))
    return SourceArray(path, data, size or stated_voxel_size({"transform": attributes.get("transform")}), chunks)
