import numpy as np
import pytest
from bioimage_cpp.graph import features, region_adjacency_graph

from tests.unit.test_rag import BLOCKS, FIELDS, SHAPE, assert_equal, random_fragments
from tokenunify import config
from tokenunify.geometry import Blocks, Roi
from tokenunify.segmentation import graph, lifted, rag

OFFSETS = [
    *config.NEAREST,
    (-2, 0, 0),
    (0, -3, 0),
    (0, 0, -4),
    (0, 0, 1),
    (1, 2, -3),
    (0, 4, 0),
    (0, 0, -11),
    (2, -1, 0),
]


@pytest.fixture
def volume():
    random = np.random.default_rng(0)
    fragments = random_fragments(random)
    return random.integers(0, 256, (len(OFFSETS), *SHAPE)).astype(np.uint8), fragments


def nested_loops(affinities, fragments) -> dict:
    linked = {}
    for voxel in np.ndindex(fragments.shape):
        for channel, offset in enumerate(OFFSETS):
            other = tuple(np.add(voxel, offset))
            if np.abs(offset).sum() < 2 or min(other) < 0 or (np.array(other) >= fragments.shape).any():
                continue
            u, v = sorted((int(fragments[voxel]), int(fragments[other])))
            if u != v and u > 0:
                linked.setdefault((u, v), []).append(int(affinities[(channel, *voxel)]))
    return dict(sorted(linked.items()))


def whole(affinities, fragments, **options) -> graph.Rag:
    return lifted.of_block(affinities, fragments, Roi((0, 0, 0), fragments.shape), OFFSETS, **options)


def assert_holds(found, expected):
    """The graph holds these pairs and levels: (u, v) -> levels."""
    np.testing.assert_array_equal(found.edges, list(expected))
    statistics = [(len(levels), sum(levels), max(levels)) for levels in expected.values()]
    np.testing.assert_array_equal(np.stack([found.counts, found.sums, found.highest], axis=1), statistics)


def test_equals_nested_loops(volume):
    found, expected = whole(*volume), nested_loops(*volume)
    assert_holds(found, expected)
    np.testing.assert_array_equal(found.nodes, np.unique(list(expected)))
    types = [np.uint64] * 5 + [np.uint8, np.int64, np.uint8, np.uint64]
    assert [getattr(found, name).dtype for name in FIELDS] == types
    assert not found.sizes.any()
    assert found.bins.size == found.starts.sum() == 0


@pytest.mark.parametrize("block_shape", BLOCKS)
def test_blocks_add_up_to_the_whole_in_any_order_and_by_parts(volume, block_shape):
    blocks = Blocks(SHAPE, block_shape)
    found = [lifted.of_block(*volume, blocks.roi(index), OFFSETS) for index in range(len(blocks))]
    assert_equal(graph.merge(found[::-1]), whole(*volume))
    cut = len(found) // 3
    assert_equal(graph.merge([graph.merge(found[:cut]), graph.merge(found[cut:])]), whole(*volume))


@pytest.mark.parametrize("threads", [2, 3, 9])
def test_threads_change_nothing(volume, threads):
    assert_equal(whole(*volume, threads=threads), whole(*volume))


def test_only_pairs_that_do_not_touch_are_lifted(volume):
    touching = rag.from_arrays(volume[0][:3], volume[1])
    neighbours = set(map(tuple, touching.edges.tolist()))
    expected = {pair: levels for pair, levels in nested_loops(*volume).items() if pair not in neighbours}
    assert 0 < len(expected) < len(nested_loops(*volume))
    assert_holds(lifted.apart(whole(*volume), touching), expected)


def test_statistics_are_those_of_bioimage_cpp(volume):
    """Whose graph has a node 0: all ids are above it here."""
    affinities, fragments = volume[0], np.maximum(volume[1] // 1000, 1)
    found = lifted.apart(whole(affinities, fragments), rag.from_arrays(affinities[:3], fragments))
    pairs = features.lifted_edges_from_affinities(region_adjacency_graph(fragments), fragments, OFFSETS)
    levels = affinities.astype(np.float32)
    peer = features.lifted_affinity_features(fragments, levels, OFFSETS, pairs)
    np.testing.assert_array_equal(found.edges, pairs)
    np.testing.assert_array_equal(found.counts, peer[:, 1])
    np.testing.assert_allclose(found.sums / found.counts, peer[:, 0], rtol=1e-5)


def test_nearest_channels_alone_link_nothing(volume):
    found = lifted.of_block(volume[0][:3], volume[1], Roi((0, 0, 0), SHAPE), config.NEAREST)
    assert (found.edges.shape, found.nodes.size) == ((0, 2), 0)
    assert_equal(lifted.apart(found, rag.from_arrays(volume[0][:3], volume[1])), found)
