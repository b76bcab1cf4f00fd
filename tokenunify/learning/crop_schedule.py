"""Which block adds which crops, so that none waits longer than the order of the sums asks for.

Crops are numbered in raster order, z slowest: all that touch a block have lower numbers than those that only touch
blocks below it (behind it in z). So a block adds its crops to the blocks below too and hands the sums down, and every
voxel still sums its crops in the order of their numbers.
"""

from collections.abc import Iterable

from tokenunify.geometry import Blocks, Roi
from tokenunify.learning.tiling import Tiling


class Schedule:
    """The blocks to be computed, in rising order, each `above` and `below` the next ones of its column."""

    def __init__(self, tiling: Tiling, blocks: Blocks, todo: Iterable[int]):
        self.tiling, self.blocks, self.todo = tiling, blocks, frozenset(todo)
        self.above: dict[int, int] = {}
        self.below: dict[int, int] = {}
        _, rows, columns = blocks.grid
        last: dict[int, int] = {}
        for index in sorted(self.todo):
            column = index % (rows * columns)
            if column in last:
                self.above[index], self.below[last[column]] = last[column], index
            last[column] = index

    def users(self, number: int) -> list[int]:
        """The blocks, rising, that add the crop: of each column the first that it touches."""
        touched = [block for block in self.tiling.blocks(number, self.blocks) if block in self.todo]
        return [block for block in touched if self.above.get(block) not in touched]

    def box(self, index: int) -> Roi:
        """A block with all that its crops cover of the blocks below that are to be computed."""
        roi = self.blocks.roi(index)
        end, reach = roi.end[0], self.tiling.reach(roi)
        while index in self.below:
            index = self.below[index]
            below = self.blocks.roi(index)
            if below.offset[0] >= reach:
                break
            end = min(below.end[0], reach)
        return Roi(roi.offset, (end - roi.offset[0], *roi.shape[1:]))
