"""Places of sampled regions: a pure function of the configuration, everywhere, and clear of what is excluded."""

from collections import Counter

import numpy as np
import pytest

from tokenunify.config import lattice
from tokenunify.geometry import Roi

WHOLE, SHAPE = (23, 100, 131), (5, 20, 30)
CELLS = {(z, y, x) for z in range(0, 20, 5) for y in range(0, 100, 20) for x in range(0, 120, 30)}
HOLES = (Roi((4, 50, 0), (3, 30, 1)), Roi((-9, -9, 100), (300, 300, 300)))


def mask(*boxes: Roi) -> np.ndarray:
    """How many of the boxes each voxel is in."""
    counted = np.zeros(WHOLE, int)
    for box in boxes:
        z, y, x = (slice(max(0, s.start), max(0, s.stop)) for s in box.slices)
        counted[z, y, x] += 1
    return counted


def clear(holes) -> set:
    """The cells without a voxel in a hole."""
    return {cell for cell in CELLS if not mask(*holes)[Roi(cell, SHAPE).slices].any()}


def test_a_function_of_its_arguments_alone():
    drawn = lattice.draw(WHOLE, SHAPE, 3, 7, HOLES)
    lattice.draw.cache_clear()
    assert lattice.draw(WHOLE, SHAPE, 3, 7, HOLES) == drawn
    assert lattice.draw(WHOLE, SHAPE, 3, 8, HOLES) != drawn
    known = ((5, 20, 30), (0, 60, 0), (10, 60, 0))  # for ever: data that were fetched lie there
    assert tuple(places[0] for places in lattice.draw(WHOLE, SHAPE, 3, 7, ())) == known


def test_boxes_lie_inside_touch_no_hole_and_do_not_overlap():
    drawn = lattice.draw(WHOLE, SHAPE, 3, 7, HOLES)
    places = [place for region in drawn for place in region]
    counted = mask(*(Roi(place, SHAPE) for place in places))
    assert counted.sum() == len(places) * np.prod(SHAPE)
    assert counted.max() == 1
    assert not (counted & mask(*HOLES)).any()
    assert set(places) == clear(HOLES)


def test_the_first_places_do_not_depend_on_the_number():
    few, many = (lattice.draw((512, 4096, 4096), (64, 128, 128), number, 3, ()) for number in (10, 25))
    assert [places[0] for places in few] == [places[0] for places in many][:10]
    assert {len(places) for places in (*few, *many)} == {lattice.PLACES}


def test_each_cell_is_drawn_as_often():
    """First places of many seeds against what a slow loop over all cells allows."""
    holes = HOLES[:1]
    allowed = clear(holes)
    draws = 100 * len(allowed)
    found = Counter(lattice.draw(WHOLE, SHAPE, 1, seed, holes)[0][0] for seed in range(draws))
    assert found.keys() == allowed
    squares = sum((n - 100) ** 2 / 100 for n in found.values())
    freedom = len(allowed) - 1
    assert squares < freedom + 4 * np.sqrt(2 * freedom)


def test_regions_beyond_what_there_is_room_for_have_no_place():
    number = len(CELLS) + 2
    drawn = lattice.draw(WHOLE, SHAPE, number, 0, ())
    assert sorted(map(len, drawn)) == [0, 0] + [1] * len(CELLS)
    assert lattice.draw(WHOLE, (24, 20, 30), 2, 0, ()) == ((), ())
    assert lattice.draw(WHOLE, SHAPE, 2, 0, (Roi((0, 0, 0), WHOLE),)) == ((), ())


@pytest.mark.parametrize("number", [0, 1, 2, 50])
def test_shuffled_gives_every_number_once(number: int):
    assert sorted(lattice.shuffled(number, 4)) == list(range(number))


def test_a_volume_of_a_thousand_terabytes_costs_nothing():
    (places,) = lattice.draw((100_000, 100_000, 100_000), (64, 64, 64), 1, 0, ())
    assert len(set(places)) == lattice.PLACES
