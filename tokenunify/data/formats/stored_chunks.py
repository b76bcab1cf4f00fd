"""Which chunks of n5, zarr, precomputed and wkw are stored, by the names of their files or by the index of a shard."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import tensorstore as ts

from tokenunify.data import local_files
from tokenunify.data.formats import tensorstore_access
from tokenunify.data.formats.absent import Index, Stored


class Named(NamedTuple):
    """Chunks that are found by their names in a store."""

    store: Callable[[], ts.KvStore]
    listed: Callable[[], Iterable[bytes]]
    name: Callable[[Index], bytes]
    parse: Callable[[bytes], Index]
    """The inverse of `name`; for what is no chunk's name it returns anything, or raises ValueError."""

    def has(self, index: Index) -> bool:
        """Whether the chunk is there; it is not read where the server can tell without."""
        store, name = self.store(), self.name(index)
        try:
            return store.read(name, byte_range=slice(0, 0)).result().state == "value"
        except ValueError:  # a server that answers to GET alone
            return store.read(name).result().state == "value"

    def within(self, low: Index, high: Index) -> Iterator[Index]:
        """The chunks from `low` to before `high`."""
        for name in self.listed():
            try:
                index = self.parse(name)
            except ValueError:
                continue
            inside = len(index) == len(low) and all(a <= i < b for a, i, b in zip(low, index, high, strict=True))
            if inside and self.name(index) == name:
                yield index


class Sharded(NamedTuple):
    """Chunks of a zarr 3 array inside of shards, which are files."""

    shards: Named
    per_shard: Index
    """Chunks of a shard, per axis."""
    inside: Callable[[Index], ts.KvStore]
    """A shard as a store of its chunks."""

    def has(self, index: Index) -> bool:
        """Whether the shard has the chunk."""
        shard, inner = zip(*map(divmod, index, self.per_shard), strict=True)
        return self._of(shard).has(inner)

    def within(self, low: Index, high: Index) -> Iterator[Index]:
        """The chunks from `low` to before `high`; the index of each shard of them is read."""
        first = tuple(i // n for i, n in zip(low, self.per_shard, strict=True))
        beyond = tuple(-(-i // n) for i, n in zip(high, self.per_shard, strict=True))
        for shard in self.shards.within(first, beyond):
            start = [i * n for i, n in zip(shard, self.per_shard, strict=True)]
            inner = [tuple(i - s for i, s in zip(end, start, strict=True)) for end in (low, high)]
            yield from (
                tuple(s + i for s, i in zip(start, index, strict=True)) for index in self._of(shard).within(*inner)
            )

    def _of(self, shard: Index) -> Named:
        """The chunks of a shard, which tensorstore names by their index as 32-bit numbers."""
        store = self.inside(shard)
        return Named(
            lambda: store,
            lambda: store.list().result(),
            lambda index: b"".join(i.to_bytes(4, "big") for i in index),
            lambda name: tuple(int.from_bytes(name[start : start + 4], "big") for start in range(0, len(name), 4)),
        )


def in_folder(address: str, name: Callable[[Index], str], index: Callable[[str], Index]) -> Named:
    """Chunks that are files of the folder at the address; `name` and `index` are each other's inverse."""
    local = tensorstore_access.local(address)

    def listed() -> Iterable[bytes]:
        assert local is not None, address
        return (inside.encode() for inside, _ in local_files.files(local)) if local.is_dir() else ()

    return Named(
        lambda: tensorstore_access.store(address),
        listed,
        lambda i: name(i).encode(),
        lambda found: index(found.decode()),
    )


def by_index(address: str, separator: str, prefix: str = "") -> Named:
    """Chunks named by their index: 1.0.2, 1/0/2, c/1/0/2."""
    return in_folder(
        address,
        lambda index: prefix + separator.join(map(str, index)),
        lambda name: tuple(int(word) for word in name.removeprefix(prefix).split(separator)),
    )


def of_wkw(address: str) -> Named:
    """Files of wkw, by their index (x, y, z): z2/y0/x1.wkw."""
    return in_folder(
        address,
        lambda index: "z{2}/y{1}/x{0}.wkw".format(*index),
        lambda name: tuple(int(number) for number in re.findall(r"\d+", name))[::-1],
    )


def by_box(address: str, offset: Sequence[int], chunk: Sequence[int], size: Sequence[int]) -> Named:
    """Chunks of precomputed, named by their boxes: 0-64_64-128_0-30."""

    def name(index: Index) -> str:
        starts = [o + i * c for o, i, c in zip(offset, index, chunk, strict=True)]
        ends = [min(s + c, o + n) for s, c, o, n in zip(starts, chunk, offset, size, strict=True)]
        return "_".join(f"{start}-{end}" for start, end in zip(starts, ends, strict=True))

    def index(name: str) -> Index:
        starts = [int(start) for start in re.findall(r"(-?\d+)-", name)]
        return tuple((s - o) // c for s, o, c in zip(starts, offset, chunk, strict=True))

    return in_folder(address, name, index)


def numbered(address: str, sharding: dict, grid: Sequence[int]) -> Stored:
    """Chunks in the shards of precomputed, found by their compressed Morton codes; `grid` is their number per axis."""
    bits = [(n - 1).bit_length() for n in grid]
    axes = [axis for level in range(max(bits, default=0)) for axis, n in enumerate(bits) if level < n]
    places_of = [sum(other == axis for other in axes[:place]) for place, axis in enumerate(axes)]
    along = list(zip(axes, places_of, strict=True))  # of each bit of the code: its axis, and its place in the index

    def name(index: Index) -> bytes:
        code = sum((index[axis] >> place & 1) << bit for bit, (axis, place) in enumerate(along))
        return code.to_bytes(8, "big")

    def index(name: bytes) -> Index:
        code, found = int.from_bytes(name, "big"), [0] * len(grid)
        for bit, (axis, place) in enumerate(along):
            found[axis] |= (code >> bit & 1) << place
        return tuple(found)

    spec = {"driver": "neuroglancer_uint64_sharded", "base": tensorstore_access.folder(address), "metadata": sharding}
    store = ts.KvStore.open(spec, context=tensorstore_access.context()).result()
    return Named(lambda: store, lambda: store.list().result(), name, index)


def in_shards(address: str, shards: Named, sharding: dict, per_shard: Index) -> Sharded:
    """Chunks of the array at the address, whose codec `sharding_indexed` has this configuration."""
    told = {key: sharding[key] for key in ("index_codecs", "index_location") if key in sharding}

    def inside(shard: Index) -> ts.KvStore:
        base = tensorstore_access.folder(address)
        base["path"] = base.get("path", "") + shards.name(shard).decode()
        spec = {"driver": "zarr3_sharding_indexed", "base": base, "grid_shape": list(per_shard), **told}
        return ts.KvStore.open(spec, context=tensorstore_access.context()).result()

    return Sharded(shards, per_shard, inside)
