"""Regions of interest and the grid of blocks; every coordinate is (z, y, x) in voxels."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from math import ceil, prod

from tokenunify.errors import InputError

Coordinate = tuple[int, int, int]
VoxelSize = tuple[float, float, float]


@dataclass(frozen=True)
class Roi:
    """A box: first voxel and size."""

    offset: Coordinate
    shape: Coordinate

    @property
    def end(self) -> Coordinate:
        """First voxel beyond the box, per axis."""
        z, y, x = (o + s for o, s in zip(self.offset, self.shape, strict=True))
        return z, y, x

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        """Index of the box into a whole array."""
        z, y, x = (slice(o, e) for o, e in zip(self.offset, self.end, strict=True))
        return z, y, x

    @property
    def num_voxels(self) -> int:
        """Voxels in the box."""
        return prod(self.shape)

    def grow(self, low: Coordinate, high: Coordinate, volume_shape: Coordinate) -> "Roi":
        """The box with a halo of `low` voxels before and `high` voxels behind it, clipped to the volume."""
        start = tuple(max(0, o - h) for o, h in zip(self.offset, low, strict=True))
        end = tuple(min(n, e + h) for n, e, h in zip(volume_shape, self.end, high, strict=True))
        return Roi(_coordinate(start), _coordinate(e - s for s, e in zip(start, end, strict=True)))

    def moved(self, by: Coordinate) -> "Roi":
        """The box at another place."""
        return Roi(_coordinate(o + b for o, b in zip(self.offset, by, strict=True)), self.shape)

    def overlap(self, other: "Roi") -> "Roi | None":
        """The box that both share."""
        start = [max(a, b) for a, b in zip(self.offset, other.offset, strict=True)]
        shape = [min(a, b) - s for a, b, s in zip(self.end, other.end, start, strict=True)]
        return Roi(_coordinate(start), _coordinate(shape)) if min(shape) > 0 else None

    def minus(self, hole: "Roi") -> "list[Roi]":
        """At most six disjoint boxes that make up the box without what it shares with `hole`."""
        if (shared := self.overlap(hole)) is None:
            return [self]
        parts, rest = [], [list(self.offset), list(self.end)]
        for axis in range(3):
            for low, high in ((rest[0][axis], shared.offset[axis]), (shared.end[axis], rest[1][axis])):
                if low < high:
                    start, end = list(rest[0]), list(rest[1])
                    start[axis], end[axis] = low, high
                    parts.append(Roi(_coordinate(start), _coordinate(e - s for s, e in zip(start, end, strict=True))))
            rest[0][axis], rest[1][axis] = shared.offset[axis], shared.end[axis]
        return parts

    def voxel(self, number: int) -> Coordinate:
        """The voxel with that number in raster order (x fastest)."""
        _, rows, columns = self.shape
        position = (number // (rows * columns), number // columns % rows, number % columns)
        return _coordinate(o + p for o, p in zip(self.offset, position, strict=True))

    def within(self, outer: "Roi") -> tuple[slice, slice, slice]:
        """Index of this box into an array that holds `outer`."""
        start = [o - p for o, p in zip(self.offset, outer.offset, strict=True)]
        z, y, x = (slice(o, o + s) for o, s in zip(start, self.shape, strict=True))
        return z, y, x


def subtract(box: Roi, holes: Iterable[Roi]) -> list[Roi]:
    """Disjoint boxes that make up the box without the holes."""
    parts = [box]
    for hole in holes:
        parts = [rest for part in parts for rest in part.minus(hole)]
    return parts


@cache
def free_starts(region: Roi, crop: Coordinate, avoid: tuple[Roi, ...]) -> tuple[Roi, ...]:
    """Disjoint boxes of the first voxels of all crops that lie in the region and touch no box to avoid."""
    shape = [n - c + 1 for n, c in zip(region.shape, crop, strict=True)]
    if min(shape) < 1:
        return ()
    touching = [
        Roi(
            _coordinate(o - c + 1 for o, c in zip(box.offset, crop, strict=True)),
            _coordinate(n + c - 1 for n, c in zip(box.shape, crop, strict=True)),
        )
        for box in avoid
    ]
    return tuple(subtract(Roi(region.offset, _coordinate(shape)), touching))


@dataclass(frozen=True)
class Blocks:
    """The grid of blocks over a volume, numbered in raster order (x fastest)."""

    volume_shape: Coordinate
    block_shape: Coordinate

    @property
    def grid(self) -> Coordinate:
        """Number of blocks per axis."""
        return _coordinate(ceil(n / b) for n, b in zip(self.volume_shape, self.block_shape, strict=True))

    def __len__(self) -> int:
        return prod(self.grid)

    def roi(self, index: int) -> Roi:
        """The block's box, clipped at the volume's far faces."""
        _, rows, columns = self.grid
        position = (index // (rows * columns), index // columns % rows, index % columns)
        offset = _coordinate(p * b for p, b in zip(position, self.block_shape, strict=True))
        shape = (min(b, n - o) for b, n, o in zip(self.block_shape, self.volume_shape, offset, strict=True))
        return Roi(offset, _coordinate(shape))

    def part(self, part: int, num_parts: int) -> range:
        """Contiguous block numbers of part `part` (from 0) of `num_parts`; sizes differ by at most one."""
        return range(part * len(self) // num_parts, (part + 1) * len(self) // num_parts)


def long_range(offsets: Sequence[Sequence[int]]) -> list[int]:
    """Positions of the offsets to voxels that share no face."""
    return [index for index, offset in enumerate(offsets) if sum(map(abs, offset)) > 1]


def crop_starts(length: int, *, padding: int, crop: int, stride: int) -> list[int]:
    """First voxels of the crops along one axis: from -padding by stride, the last one ending at length + padding.

    One crop that is larger than all this is centred.
    """
    last = length + padding - crop
    if last <= -padding:
        return [-((crop - length) // 2)]
    return [*range(-padding, last, stride), last]


def centre(shape: Coordinate, extent: Coordinate) -> tuple[slice, slice, slice]:
    """Index of the box of that extent in the middle of an array of that shape."""
    start = ((n - e) // 2 for n, e in zip(shape, extent, strict=True))
    z, y, x = (slice(s, s + e) for s, e in zip(start, extent, strict=True))
    return z, y, x


def check_shapes(first: str, first_shape: Sequence[int], second: str, second_shape: Sequence[int]) -> None:
    """Refuse arrays of different shapes."""
    if tuple(first_shape) != tuple(second_shape):
        raise InputError(
            f"{first} has shape {list(first_shape)}, expected that of {second}, {list(second_shape)}: "
            "give arrays of the same volume"
        )


def _coordinate(values: Iterable[int]) -> Coordinate:
    z, y, x = values
    return int(z), int(y), int(x)
