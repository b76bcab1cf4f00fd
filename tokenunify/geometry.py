"""Regions of interest and the grid of blocks; every coordinate is (z, y, x) in voxels."""

from dataclasses import dataclass
from math import ceil, prod

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

    def within(self, outer: "Roi") -> tuple[slice, slice, slice]:
        """Index of this box into an array that holds `outer`."""
        start = [o - p for o, p in zip(self.offset, outer.offset, strict=True)]
        z, y, x = (slice(o, o + s) for o, s in zip(start, self.shape, strict=True))
        return z, y, x


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


def centre(shape: Coordinate, extent: Coordinate) -> tuple[slice, slice, slice]:
    """Index of the box of that extent in the middle of an array of that shape."""
    start = ((n - e) // 2 for n, e in zip(shape, extent, strict=True))
    z, y, x = (slice(s, s + e) for s, e in zip(start, extent, strict=True))
    return z, y, x


def _coordinate(values) -> Coordinate:
    z, y, x = values
    return int(z), int(y), int(x)
