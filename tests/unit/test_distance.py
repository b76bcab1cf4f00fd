"""Distances, next to scipy's."""

import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt

from tokenunify.segmentation.distance import capped_distance


@pytest.mark.parametrize("shape", [(13, 4), (1, 9), (6, 1, 5), (1, 3, 8), (17, 30, 21)])
@pytest.mark.parametrize("share", [0.3, 0.9, 0.99])
@pytest.mark.parametrize("cap", [2, 7, 100, 400])
def test_distances_are_exact_up_to_the_cap(shape, share, cap):
    rng = np.random.default_rng(0)
    inside = rng.random(shape) < share
    inside.ravel()[rng.integers(inside.size)] = False
    expected = np.minimum(distance_transform_edt(inside), cap).astype(np.float32)
    np.testing.assert_array_equal(capped_distance(inside, cap=cap), expected)


def test_without_a_boundary_all_are_at_the_cap():
    assert (capped_distance(np.ones((3, 4, 5), bool), cap=6) == 6).all()
