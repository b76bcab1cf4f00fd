from collections import Counter
from itertools import pairwise, product

import numpy as np
import pytest

from tokenunify.geometry import Blocks
from tokenunify.segmentation import rag

SHAPE = (5, 8, 11)
FIELDS = ("nodes", "sizes", "edges", "counts", "sums", "highest", "starts", "bins", "amounts")


@pytest.fixture
def volume():
    random = np.random.default_rng(0)
    fragments = np.repeat(random.integers(0, 30, (5, 8, 6)), 2, axis=2)[..., :11].astype(np.uint64) * 1000
    return random.integers(0, 256, (3, *SHAPE)).astype(np.uint8), fragments


def nested_loops(affinities, fragments) -> dict:
    edges = {}
    for voxel in np.ndindex(fragments.shape):
        for axis in range(3):
            lower = tuple(v - (a == axis) for a, v in enumerate(voxel))
            u, v = sorted((int(fragments[lower]), int(fragments[voxel]))) if min(lower) >= 0 else (0, 0)
            if u != v and u > 0:
                edges.setdefault((u, v), []).append(int(affinities[(axis, *voxel)]))
    return dict(sorted(edges.items()))


def assert_equal(one, two):
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name), err_msg=name)
        assert getattr(one, name).dtype == getattr(two, name).dtype


def test_equals_nested_loops(volume):
    affinities, fragments = volume
    graph = rag.from_arrays(affinities, fragments)
    expected = nested_loops(affinities, fragments)
    np.testing.assert_array_equal(graph.edges, list(expected))
    statistics = [(len(levels), sum(levels), max(levels)) for levels in expected.values()]
    np.testing.assert_array_equal(np.stack([graph.counts, graph.sums, graph.highest], axis=1), statistics)
    for levels, (first, last) in zip(expected.values(), pairwise(graph.starts), strict=True):
        histogram = dict(zip(graph.bins[first:last].tolist(), graph.amounts[first:last].tolist(), strict=True))
        assert list(histogram.items()) == sorted(Counter(levels).items())
    ids, sizes = np.unique(fragments[fragments > 0], return_counts=True)
    np.testing.assert_array_equal(graph.nodes, ids)
    np.testing.assert_array_equal(graph.sizes, sizes)
    types = [np.uint64] * 5 + [np.uint8, np.int64, np.uint8, np.uint64]
    assert [getattr(graph, name).dtype for name in FIELDS] == types
    np.testing.assert_allclose(graph.mean_affinities(), graph.sums / graph.counts / 255)


@pytest.mark.parametrize("histograms", [True, False])
@pytest.mark.parametrize("block_shape", [(1, 3, 4), (2, 8, 11), (5, 5, 3)])
def test_blocks_add_up_to_the_whole_in_any_order(volume, block_shape, histograms):
    affinities, fragments = volume
    blocks = Blocks(SHAPE, block_shape)
    parts = []
    for index in range(len(blocks)):
        roi = blocks.roi(index)
        outer = roi.grow((1, 1, 1), (0, 0, 0), SHAPE)
        around = affinities[(slice(None), *outer.slices)], fragments[outer.slices]
        parts.append(rag._owned(*around, roi.within(outer), histograms=histograms))
    whole = rag.from_arrays(affinities, fragments, histograms=histograms)
    assert bool(whole.bins.size) == histograms
    assert_equal(rag.merge(parts), whole)
    assert_equal(rag.merge_all(iter(parts[::-1])), whole)


def test_isolated_fragments_are_nodes_and_id_0_is_none(volume):
    fragments = np.zeros(SHAPE, np.uint64)
    fragments[0, 0, 0], fragments[2, 3:5, 4] = 7, 3
    graph = rag.from_arrays(volume[0], fragments)
    assert (graph.nodes.tolist(), graph.sizes.tolist(), graph.edges.shape) == ([3, 7], [2, 1], (0, 2))
    assert_equal(rag.merge([graph, rag.from_arrays(volume[0], fragments * 0)]), graph)


def test_floats_are_binned_as_waterz_does():
    values = np.array([np.nan, -1, 0, 1e-9, 1 / 256, 0.5, 0.999999, 1, 7, np.inf, -np.inf], np.float32)
    assert rag.levels(values).tolist() == [0, 0, 0, 0, 1, 128, 255, 255, 255, 255, 0]
    stored = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(rag.levels(stored.astype(np.float32) / np.float32(255)), stored)


def test_channels_are_found_by_their_offsets(volume):
    affinities, fragments = volume
    offsets = [(0, 0, -1), (-1, 0, 0), (0, -9, 0), (0, -1, 0)]
    shuffled = affinities[[2, 0, 0, 1]]
    assert_equal(rag.from_arrays(shuffled, fragments, offsets), rag.from_arrays(affinities, fragments))
    with pytest.raises(ValueError, match=r"\(0, -1, 0\)"):
        rag.from_arrays(affinities, fragments, offsets[:2])


def test_pairs_across_all_corners_of_a_block_are_counted_once():
    fragments = 1 + np.arange(8, dtype=np.uint64).reshape(2, 2, 2)
    graph = rag.from_arrays(np.full((3, 2, 2, 2), 9, np.uint8), fragments)
    assert len(graph.edges) == 12
    assert graph.counts.tolist() == [1] * 12
    neighbours = {(u, v) for u, v in product(range(8), range(8)) if u < v and (u ^ v) in (1, 2, 4)}
    assert {(int(u) - 1, int(v) - 1) for u, v in graph.edges} == neighbours
