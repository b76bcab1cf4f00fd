"""Places of regions that are sampled from a large volume: a function of its shape, the seed and what to avoid."""

import random
from collections.abc import Iterator
from functools import cache
from itertools import islice

from tokenunify.geometry import Coordinate, Roi, free_starts

PLACES = 32
"""Most places tried for a region; where two thirds of a volume are blank, all are blank for one region in 400,000."""


@cache
def draw(
    whole: Coordinate, shape: Coordinate, number: int, seed: int, avoid: tuple[Roi, ...]
) -> tuple[tuple[Coordinate, ...], ...]:
    """First voxels of the boxes that each of `number` regions may be; empty for regions that find no place.

    All boxes are cells of a lattice that begins at the volume's first voxel, so none overlaps another, and shapes that
    are multiples of the source's chunks cut none. Each free cell is drawn equally often. The first place of a region
    does not depend on how many regions there are.
    """
    if not free_starts(Roi((0, 0, 0), whole), shape, avoid):
        return ((),) * number
    depth, height, width = (n // s for n, s in zip(whole, shape, strict=True))
    grid = Roi((0, 0, 0), (depth, height, width))
    # Along each axis, the cells that a box to avoid touches.
    touched = [[range(o // s, -(-e // s)) for o, e, s in zip(box.offset, box.end, shape, strict=True)] for box in avoid]
    cells = map(grid.voxel, shuffled(grid.num_voxels, seed))
    free = (c for c in cells if not any(c[0] in z and c[1] in y and c[2] in x for z, y, x in touched))
    drawn = [(z * shape[0], y * shape[1], x * shape[2]) for z, y, x in islice(free, number * PLACES)]
    return tuple(tuple(drawn[region::number]) for region in range(number))


def shuffled(number: int, seed: int) -> Iterator[int]:
    """0 to `number` - 1 in random order; what has not been asked for takes neither time nor memory."""
    # Python promises that random() stays the same for a seed, and of nothing that is made of it.
    chance, moved = random.Random(seed), dict[int, int]()
    for place in range(number):
        other = place + int(chance.random() * (number - place))
        yield moved.get(other, other)
        moved[other] = moved.pop(place, place)
