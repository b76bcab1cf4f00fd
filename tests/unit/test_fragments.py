import numpy as np
import pytest

from tokenunify import affinities
from tokenunify.config import NEAREST, Fragments, Multicut
from tokenunify.evaluation import metrics
from tokenunify.geometry import Roi
from tokenunify.segmentation import fragments
from tokenunify.store import arrays

SHAPE = (3, 30, 44)
MULTICUT = Multicut(method="multicut").fragments


def two_discs(shape=SHAPE) -> np.ndarray:
    """Two touching blobs per section, wider in x than y, on background."""
    _, y, x = np.indices(shape)
    left = ((y - 15) / 10) ** 2 + ((x - 13) / 11) ** 2 < 1
    right = ((y - 15) / 9) ** 2 + ((x - 32) / 10) ** 2 < 1
    return np.where(left, 1, np.where(right, 2, 0)).astype(np.uint64)


def test_boundary_is_one_minus_mean_or_minimum_of_the_in_section_channels():
    values = np.random.default_rng(0).random((3, 2, 3, 5), np.float32)
    np.testing.assert_allclose(fragments.boundary_map(values, Fragments()), 1 - values[1:].mean(axis=0), atol=1e-7)
    maximum = fragments.boundary_map(values, Fragments(boundary="max"))
    np.testing.assert_array_equal(maximum, (1 - values[1:]).max(axis=0))
    isotropic = fragments.boundary_map(values, Fragments(dimensions=3))
    np.testing.assert_allclose(isotropic, 1 - values.mean(axis=0), atol=1e-7)


@pytest.mark.parametrize("settings", [Fragments(), Fragments(dimensions=3), MULTICUT])
def test_stored_affinities_are_those_in_floats(settings):
    stored = np.random.default_rng(0).integers(0, 256, (3, 4, 15, 22)).astype(np.uint8)
    in_floats = fragments.boundary_map(arrays.to_float(stored), settings)
    np.testing.assert_array_equal(fragments.boundary_map(stored, settings), in_floats)


@pytest.mark.parametrize("settings", [Fragments(), Fragments(dimensions=3), MULTICUT])
def test_every_voxel_gets_a_fragment_and_objects_are_parted(settings):
    labels = two_discs()
    values, _ = affinities.from_labels(labels, NEAREST)
    found = fragments.watershed(values, settings)
    assert found.shape == SHAPE
    assert found.dtype == np.uint32
    assert found.min() > 0
    assert found[1, 15, 13] != found[1, 15, 32]
    assert (found[0].max() < found[1].min()) == (settings.dimensions == 2)


def test_a_plateau_of_the_distance_is_one_seed():
    boundary = np.ones((1, 9, 21), np.float32)
    boundary[0, 2:7, 2:19] = 0
    seeds = fragments.seeds_of(fragments.distances(boundary[0] < 0.5, Fragments()), boundary[0], connectivity=1)
    assert seeds.max() == 1
    assert (seeds[4, 4:17] == 1).all()


def test_distances_are_capped_at_the_halo_in_the_plane_of_the_watershed():
    inside = np.zeros((41, 60), bool)
    inside[1:40, 1:59] = True
    assert fragments.distances(inside, Fragments(halo=(9, 4, 7))).max() == 4
    assert fragments.distances(inside, Fragments(halo=(0, 0, 0))).max() == 20
    assert (fragments.distances(np.ones((5, 6), bool), Fragments(halo=(0, 4, 7))) == 4).all()
    solid = np.ones((5, 6, 7), bool)
    assert (fragments.distances(solid, Fragments(dimensions=3, halo=(3, 4, 7))) == 3).all()


def test_a_halo_has_all_axes_of_the_watershed_or_none():
    assert Fragments().halo == (0, 32, 32)
    assert Fragments(dimensions=3).halo == (32, 32, 32)
    assert Fragments(dimensions=3, halo=(0, 0, 0)).halo == (0, 0, 0)
    for dimensions, halo in [(2, (4, 0, 8)), (3, (0, 32, 32))]:
        with pytest.raises(ValueError, match=r"halo must be above 0 along .*, or 0 along all"):
            Fragments(dimensions=dimensions, halo=halo)


@pytest.mark.parametrize("settings", [Fragments(), MULTICUT])
@pytest.mark.parametrize("level", [0.0, 1.0])
def test_a_section_that_is_all_boundary_or_has_none_is_one_fragment(settings, level):
    found = fragments.watershed(np.full((3, 2, 20, 31), level, np.float32), settings)
    assert [np.unique(section).size for section in found] == [1, 1]


def test_a_missing_section_is_seeded_at_the_minima_of_the_boundary():
    values = np.full((3, 1, 12, 20), 0.1, np.float32)
    values[:, 0, 3, 4] = values[:, 0, 8, 15] = 0.3
    found = fragments.watershed(values, Fragments())
    assert np.unique(found).size == 2
    assert found[0, 3, 4] != found[0, 8, 15]


def test_small_fragments_go_to_their_neighbours_and_a_lone_small_one_stays():
    labels = np.ones((1, 30, 44), np.uint64)
    labels[0, :, 22:] = 2
    labels[0, 5:9, 5:9] = 3
    values, _ = affinities.targets(labels, NEAREST, "background", erode=True)
    found = [fragments.watershed(values, Fragments(min_size=size)) for size in (0, 40)]
    smallest = [np.unique(ids, return_counts=True)[1].min() for ids in found]
    assert smallest[0] < 40 <= smallest[1]
    assert fragments.watershed(values[..., :6, :6], Fragments(min_size=400)).min() > 0


@pytest.mark.parametrize("dimensions", [2, 3])
def test_canonical_ids_are_first_voxels_in_the_volume(dimensions):
    found = np.random.default_rng(1).integers(0, 4, (3, 5, 7)).astype(np.uint64)
    roi, volume_shape = Roi((4, 10, 20), found.shape), (9, 18, 40)
    numbered = fragments.number(found, roi, volume_shape, dimensions=dimensions)
    np.testing.assert_array_equal(numbered, flood_fill(found, roi, volume_shape, dimensions))


def flood_fill(found, roi, volume_shape, dimensions):
    numbered = np.zeros(found.shape, np.uint64)
    steps = [(0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1)] + ([(1, 0, 0), (-1, 0, 0)] if dimensions == 3 else [])
    for start in np.ndindex(found.shape):
        if numbered[start] or not found[start]:
            continue
        todo = [start]
        number = 1 + np.ravel_multi_index([s + o for s, o in zip(start, roi.offset, strict=True)], volume_shape)
        while todo:
            voxel = todo.pop()
            inside = all(0 <= v < n for v, n in zip(voxel, found.shape, strict=True))
            if inside and not numbered[voxel] and found[voxel] == found[start]:
                numbered[voxel] = number
                todo += [tuple(v + s for v, s in zip(voxel, step, strict=True)) for step in steps]
    return numbered


@pytest.mark.parametrize("name", ["post_a.npz", "post_b.npz"])
def test_the_multicut_codes_fragments_of_real_labels_are_reproduced(golden, name):
    """But for voxels of equal height, whose order bioimage-cpp's watershed, which made the stored ones, leaves open."""
    stored = golden(name)
    found = fragments.watershed(arrays.to_float(stored["affs_u8"][:, :12]), MULTICUT)
    scores = metrics.scores(found, stored["lmc_fragments"][:12] + 1)
    assert scores["voi"] < 0.01
    assert scores["arand"] < 0.002
    assert np.unique(found).size == np.unique(stored["lmc_fragments"][:12]).size


@pytest.mark.parametrize("depth", [1, 2, 5])
@pytest.mark.parametrize("settings", [Fragments(), MULTICUT])
def test_section_wise_fragments_do_not_depend_on_blocks_of_whole_sections(depth, settings):
    shape = (7, 33, 46)
    values = np.random.default_rng(3).random((3, *shape), np.float32)
    whole = fragments.number(fragments.watershed(values, settings), Roi((0, 0, 0), shape), shape, dimensions=2)
    for start in range(0, 7, depth):
        box = values[:, start : start + depth]
        roi = Roi((start, 0, 0), box.shape[1:])
        block = fragments.number(fragments.watershed(box, settings), roi, shape, dimensions=2)
        np.testing.assert_array_equal(block, whole[roi.slices])


def test_as_many_seeds_as_the_papers_code_finds(golden):
    stored = golden("post_a.npz")
    found = fragments.watershed(arrays.to_float(stored["affs_u8"]), Fragments(halo=(0, 0, 0)))
    assert np.unique(found).size == np.unique(stored["fragments"]).size
