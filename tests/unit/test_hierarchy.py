import numpy as np
import pytest

from tokenunify.config import Fragments
from tokenunify.data.phantom import phantom
from tokenunify.evaluation import metrics
from tokenunify.geometry import Blocks
from tokenunify.segmentation import fragments, graph, hierarchy, rag, waterz
from tokenunify.segmentation.baseline import lower_of_pairs, smooth
from tokenunify.store import arrays

SHAPE = (22, 90, 110)
SCORES = ("max50", "hist50", "mean")
THRESHOLDS = [0.3, 0.4, 0.5, 0.6]


@pytest.fixture(scope="module")
def volume():
    """Smoothed raw of a phantom for affinities, and their watershed."""
    raw, _ = phantom.generate(SHAPE, seed=5)
    affinities = lower_of_pairs(np.rint(smooth(raw, (0.5, 2.0, 2.0))).astype(np.uint8))
    return affinities, fragments.watershed(arrays.to_float(affinities), Fragments())


def parts_of(volume, number: int, block_shape=(6, 40, 40)):
    blocks = Blocks(SHAPE, block_shape)
    found = [rag.of_block(*volume, blocks.roi(index)) for index in range(len(blocks))]
    return [graph.merge([found[index] for index in blocks.part(part, number)]) for part in range(number)]


def assert_equal(one, two):
    for name, table in vars(two).items():
        np.testing.assert_array_equal(getattr(one, name), table, err_msg=name)


def test_a_contracted_graph_is_that_of_the_segments(volume):
    affinities, labels = volume
    whole = rag.from_arrays(affinities, labels)
    table = waterz.agglomerate(whole, [0.4])[0.4]
    found = graph.contract(whole, table.segments)
    assert 10 < len(found.edges) < len(whole.edges) / 2
    assert_equal(found, rag.from_arrays(affinities, table.apply(labels)))


def test_frozen_nodes_stay_as_they_are(volume):
    whole = rag.from_arrays(*volume)
    frozen = whole.nodes % 3 == 0
    table = waterz.agglomerate(whole, [0.6], frozen=frozen)[0.6]
    np.testing.assert_array_equal(table.segments[frozen], table.fragments[frozen])
    assert not np.isin(table.segments[~frozen], whole.nodes[frozen]).any()
    assert np.unique(table.segments[~frozen]).size < np.count_nonzero(~frozen) / 2


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize(("number", "limit"), [(1, 0.3), (4, 0.0)])
def test_one_part_or_no_merging_is_exact(volume, score, number, limit):
    exact = waterz.agglomerate(rag.from_arrays(*volume), THRESHOLDS, score)
    found = hierarchy.agglomerate(parts_of(volume, number), THRESHOLDS, score, limit)
    assert list(found) == THRESHOLDS
    for threshold in THRESHOLDS:
        np.testing.assert_array_equal(found[threshold].fragments, exact[threshold].fragments)
        np.testing.assert_array_equal(found[threshold].segments, exact[threshold].segments)


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("number", [2, 5, 8])
def test_the_last_graph_is_the_whole_one_contracted(volume, number, score):
    """In max50, too, where an edge that parts cut counts once, with its highest level."""
    parts = parts_of(volume, number, block_shape=(5, 31, 23))
    tree = hierarchy.Tree(parts, score, 0.3)
    last = tree.gather(0, number)
    whole = graph.merge(parts)
    table = tree.whole(waterz.agglomerate(last, [0.0])[0.0])
    assert tree.most_edges < 0.9 * len(whole.edges)
    expected = graph.contract(graph.highest_alone(whole) if score == "max50" else whole, table.segments)
    assert_equal(last, expected)


@pytest.mark.parametrize("score", SCORES)
def test_the_difference_is_far_below_that_of_neighbouring_thresholds(volume, score):
    _, labels = volume
    exact = waterz.agglomerate(rag.from_arrays(*volume), [0.3, 0.4, 0.5], score)
    below, wanted, above = (table.apply(labels) for table in exact.values())
    found = hierarchy.agglomerate(parts_of(volume, 6), [0.4], score, 0.3)[0.4]
    difference = metrics.scores(found.apply(labels), wanted)["voi"]
    assert difference < min(metrics.scores(other, wanted)["voi"] for other in (below, above)) / 2


@pytest.mark.parametrize("score", SCORES)
def test_every_fragment_has_a_segment_named_after_its_smallest_fragment(volume, score):
    found = hierarchy.agglomerate(parts_of(volume, 6), [0.5], score, 0.3)[0.5]
    np.testing.assert_array_equal(found.fragments, np.unique(volume[1][volume[1] > 0]))
    assert np.unique(found.segments).size < found.fragments.size / 2
    for segment in np.unique(found.segments):
        assert found.fragments[found.segments == segment].min() == segment
