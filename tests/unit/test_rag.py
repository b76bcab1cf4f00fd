from collections import Counter
from dataclasses import fields
from itertools import pairwise, product

import numpy as np
import pytest

from tokenunify.errors import InputError
from tokenunify.geometry import Blocks
from tokenunify.segmentation import graph, rag
from tokenunify.store import arrays

SHAPE = (5, 8, 11)
BLOCKS = [(1, 3, 4), (2, 8, 11), (5, 5, 3), (3, 1, 7), (4, 6, 2), (2, 5, 10)]
FIELDS = [field.name for field in fields(graph.Rag)]


def random_fragments(random) -> np.ndarray:
    """Ids with gaps, some 0, in runs along x."""
    return np.repeat(random.integers(0, 30, (5, 8, 6)), 2, axis=2)[..., :11].astype(np.uint64) * 1000


@pytest.fixture
def volume():
    random = np.random.default_rng(0)
    fragments = random_fragments(random)
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
    found = rag.from_arrays(affinities, fragments)
    expected = nested_loops(affinities, fragments)
    np.testing.assert_array_equal(found.edges, list(expected))
    statistics = [(len(levels), sum(levels), max(levels)) for levels in expected.values()]
    np.testing.assert_array_equal(np.stack([found.counts, found.sums, found.highest], axis=1), statistics)
    for levels, (first, last) in zip(expected.values(), pairwise(found.starts), strict=True):
        histogram = dict(zip(found.bins[first:last].tolist(), found.amounts[first:last].tolist(), strict=True))
        assert list(histogram.items()) == sorted(Counter(levels).items())
    ids, sizes = np.unique(fragments[fragments > 0], return_counts=True)
    np.testing.assert_array_equal(found.nodes, ids)
    np.testing.assert_array_equal(found.sizes, sizes)
    types = [np.uint64] * 5 + [np.uint8, np.int64, np.uint8, np.uint64]
    assert [getattr(found, name).dtype for name in FIELDS] == types
    np.testing.assert_allclose(found.mean_affinities(), found.sums / found.counts / 255)


def by_blocks(affinities, fragments, block_shape, **options):
    blocks = Blocks(fragments.shape, block_shape)
    return [rag.of_block(affinities, fragments, blocks.roi(index), **options) for index in range(len(blocks))]


@pytest.mark.parametrize("histograms", [True, False])
@pytest.mark.parametrize("block_shape", BLOCKS)
def test_blocks_add_up_to_the_whole_in_any_order_and_by_parts(volume, block_shape, histograms):
    whole = rag.from_arrays(*volume, histograms=histograms)
    assert bool(whole.bins.size) == histograms
    blocks = by_blocks(*volume, block_shape, histograms=histograms)
    assert_equal(graph.merge(blocks[::-1]), whole)
    cut = len(blocks) // 3
    parts = [graph.merge(blocks[:cut]), graph.merge(blocks[cut:])]
    assert_equal(graph.merge(parts), whole)


@pytest.mark.parametrize("threads", [2, 3, 9])
def test_threads_change_nothing(volume, threads):
    for one, more in zip(by_blocks(*volume, (4, 6, 2)), by_blocks(*volume, (4, 6, 2), threads=threads), strict=True):
        assert_equal(more, one)


def test_stored_graphs_are_read_as_they_are_merged_and_damage_is_named(volume, tmp_path):
    parts = []
    for number, part in enumerate(by_blocks(*volume, (3, 8, 5))):
        arrays.write_npz(tmp_path / f"{number}.npz", **vars(part))
        parts.append(graph.Stored(tmp_path / f"{number}.npz", "make it again"))
    assert_equal(graph.merge(parts), rag.from_arrays(*volume))
    parts[2].path.write_bytes(parts[2].path.read_bytes()[:-40])
    with pytest.raises(InputError, match=r"2\.npz is damaged .*; make it again"):
        graph.merge(parts)


def test_more_nodes_than_a_key_holds_are_refused(volume, monkeypatch):
    found = rag.from_arrays(*volume)
    monkeypatch.setattr(graph, "MANY_NODES", found.nodes.size - 1)
    with pytest.raises(InputError, match=f"the graph has {found.nodes.size} fragments, expected at most"):
        rag.merge([found])


def test_isolated_fragments_are_nodes_and_id_0_is_none(volume):
    fragments = np.zeros(SHAPE, np.uint64)
    fragments[0, 0, 0], fragments[2, 3:5, 4] = 7, 3
    found = rag.from_arrays(volume[0], fragments)
    assert (found.nodes.tolist(), found.sizes.tolist(), found.edges.shape) == ([3, 7], [2, 1], (0, 2))
    assert_equal(graph.merge([found, rag.from_arrays(volume[0], fragments * 0)]), found)


def test_a_node_beyond_a_block_is_listed_without_voxels(volume):
    fragments = np.repeat(np.array([9, 4, 6], np.uint64), 3)[None, None]
    first, second, third = by_blocks(volume[0][:, :1, :1, :9], fragments, (1, 1, 3))
    assert (first.nodes.tolist(), second.nodes.tolist(), third.nodes.tolist()) == ([9], [4, 9], [4, 6])
    assert (second.sizes.tolist(), third.sizes.tolist()) == ([3, 0], [0, 3])


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
    found = rag.from_arrays(np.full((3, 2, 2, 2), 9, np.uint8), fragments)
    assert len(found.edges) == 12
    assert found.counts.tolist() == [1] * 12
    neighbours = {(u, v) for u, v in product(range(8), range(8)) if u < v and (u ^ v) in (1, 2, 4)}
    assert {(int(u) - 1, int(v) - 1) for u, v in found.edges} == neighbours
