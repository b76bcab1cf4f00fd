"""What a message offers where a training crop does not fit: numbers that do."""

import re
from itertools import product
from math import prod

import pytest

from tokenunify.config import NETWORKS, Architecture

SHAPES = {
    "mala": [(31, 216, 245), (28, 230, 242), (30, 268, 214)],
    "others": [(17, 50, 67), (33, 34, 83), (1, 8, 8), (8, 60, 16), (16, 16, 16)],
}
CROP = (32, 268, 81)
NAMES = {description: name for name, description in reversed(NETWORKS.items())}.values()
"""One for each class."""
CASES = [(name, shape) for name in NAMES for shape in SHAPES.get(name, SHAPES["others"])]


def is_legal(network: Architecture, crop: tuple[int, ...]) -> bool:
    try:
        network.output_extent(crop)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_the_crop_is_the_largest_legal_one_that_fits(name: str, shape: tuple[int, int, int]):
    """Next to trying every crop, of those that are not far smaller."""
    crop = (32, 268, 268) if name == "mala" else CROP
    network = NETWORKS[name](name=name)
    text = network.smaller_crop(crop, shape)
    most = tuple(map(min, crop, shape))
    legal = [c for c in product(*(range(max(1, n - 50), n + 1) for n in most)) if is_legal(network, c)]
    found = re.match(r"use \[(\d+), (\d+), (\d+)\], the largest that fits, or more sections$", text)
    if found is None:
        assert legal == []
        assert text.startswith("none that fits is legal (")
    else:
        offered = tuple(map(int, found.groups()))
        assert offered in legal
        assert prod(offered) == max(map(prod, legal))
