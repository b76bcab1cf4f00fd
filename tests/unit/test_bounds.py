"""What compiled loops index by is checked before: arrays of other shapes, other types, ids and tables beyond."""

from dataclasses import replace

import numpy as np
import pytest

from tokenunify import affinities, blockings
from tokenunify.config import NEAREST, Fragments, Waterz
from tokenunify.errors import InputError
from tokenunify.evaluation import metrics
from tokenunify.segmentation import fragments, graph, lut, multicut, rag, waterz
from tokenunify.segmentation.flood import flood
from tokenunify.stages.sections import Blockings

SHAPE = (3, 6, 10)
SEGMENTS = (np.indices(SHAPE)[2] // 3 + 4 * (np.indices(SHAPE)[1] // 3) + 1).astype(np.uint64)
LEVELS = np.random.default_rng(0).integers(0, 256, (3, *SHAPE)).astype(np.uint8)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"fragments": SEGMENTS[:, :, :-1]},
            r"fragments has shape \[3, 6, 9\], expected that of the affinities, \[3, 6",
        ),
        ({"fragments": SEGMENTS.transpose(0, 2, 1)}, r"fragments has shape \[3, 10, 6\], expected .*\[3, 6, 10\]"),
        ({"fragments": np.tile(SEGMENTS, (2, 1, 1))}, r"fragments has shape \[6, 6, 10\], expected .*\[3, 6, 10\]"),
        ({"fragments": SEGMENTS.astype(np.float32)}, "fragments must be integers, found float32"),
        ({"fragments": SEGMENTS.astype(np.int32) - 2}, "fragments must not be negative, found -1"),
        ({"affinities": LEVELS[0]}, r"affinities have shape \[3, 6, 10\], expected \(c, z, y, x\)"),
        ({"affinities": LEVELS[:2]}, "with a channel for each of 3 offsets"),
        ({"affinities": LEVELS.astype(np.int64)}, r"affinities must be uint8 or floats in \[0, 1\], found int64"),
        ({"offsets": [(-1, 0, 0), (0, -1, 0), (0, 0, -2)]}, r"offsets lack \(0, 0, -1\)"),
    ],
)
def test_a_graph_of_arrays_that_do_not_belong_together_is_refused(given, message):
    with pytest.raises(InputError, match=message):
        rag.from_arrays(**{"affinities": LEVELS, "fragments": SEGMENTS, "offsets": NEAREST} | given)


@pytest.fixture
def whole() -> graph.Rag:
    return rag.from_arrays(LEVELS, SEGMENTS)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (lambda g: {"edges": g.edges + np.uint64(50)}, "edges"),
        (lambda g: {"edges": g.edges[:, ::-1]}, "ends of edges"),
        (lambda g: {"edges": g.edges.astype(np.int64)}, "edges"),
        (lambda g: {"nodes": g.nodes[::-1]}, "nodes"),
        (lambda g: {"counts": g.counts[:-1]}, "statistics"),
        (lambda g: {"starts": g.starts + 5}, "histograms"),
        (lambda g: {"starts": g.starts[:-1]}, "histograms"),
        (lambda g: {"bins": g.bins[::-1].copy()}, "histograms"),
        (lambda g: {"amounts": g.amounts[:-3]}, "histograms"),
    ],
)
def test_tables_of_a_graph_that_do_not_fit_are_refused(whole, changes, named):
    broken = replace(whole, **changes(whole))
    for agglomerate in (lambda: waterz.agglomerate(broken, [0.5], "hist50"), lambda: multicut.agglomerate(broken)):
        with pytest.raises(InputError, match=f"the graph's {named} do not fit"):
            agglomerate()
    if named == "histograms":
        with pytest.raises(InputError, match="histograms of a graph do not fit"):
            graph.merge([whole, broken])


def test_frozen_nodes_and_lifted_edges_of_another_graph_are_refused(whole):
    with pytest.raises(InputError, match=r"frozen has shape \[3\], expected \[8\]"):
        waterz.agglomerate(whole, [0.5], frozen=np.zeros(3, bool))
    far = rag.from_arrays(LEVELS, SEGMENTS * np.uint64(2))
    with pytest.raises(InputError, match="lifted edges join fragments that the graph lacks"):
        multicut.agglomerate(whole, lifted=far)
    with pytest.raises(InputError, match="the lut lacks"):
        multicut.energy(far, multicut.agglomerate(whole))


@pytest.mark.parametrize(
    ("heights", "seeds", "message"),
    [
        (np.zeros((4, 5)), np.zeros((5, 4)), r"seeds has shape \[5, 4\], expected that of the heights, \[4, 5\]"),
        (np.full((4, 5), 1.1), np.ones((4, 5)), r"heights must lie in \[0, 1\], found 1\.1\.\.1\.1"),
        (np.full((2, 4, 5), -0.01), np.ones((2, 4, 5)), r"heights must lie in \[0, 1\]"),
        (np.full((4, 5), np.nan), np.ones((4, 5)), r"heights must lie in \[0, 1\], found nan"),
        (np.zeros((4, 5)), np.full((4, 5), 2**31), r"seeds must be integers in 0\.\.2\^31-1"),
    ],
)
def test_what_cannot_be_flooded_is_refused(heights, seeds, message):
    with pytest.raises(InputError, match=message):
        flood(heights.astype(np.float32), seeds.astype(np.uint32))
    edge = np.nextafter(np.float32([[0, 1]]), np.float32([[-1, 2]]))
    assert flood(edge, np.array([[0, 7]], np.uint32)).tolist() == [[7, 7]]


def test_fragments_of_affinities_beyond_the_range_are_refused():
    with pytest.raises(InputError, match=r"heights must lie in \[0, 1\]"):
        fragments.watershed(np.full((3, *SHAPE), 300, np.float32), Fragments(dimensions=2))


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (np.array([1.0, 2.0]), "fragments must be integers, found float64"),
        (np.array([1, -2]), "fragments must not be negative, found -2"),
        (np.array([1, 2**40]), "the lut lacks 1 fragments, the first is 1099511627776"),
    ],
)
def test_ids_that_no_lut_has_are_refused(ids, message):
    with pytest.raises(InputError, match=message):
        lut.Lut(np.array([1, 2], np.uint64), np.array([1, 1], np.uint64)).apply(ids)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (SEGMENTS.astype(np.float64), "labels must be integers, found float64"),
        (SEGMENTS.astype(np.int16) - 9, "labels must not be negative, found -8"),
        (SEGMENTS[0], r"labels must be \(z, y, x\), found the shape \[6, 10\]"),
    ],
)
def test_affinities_of_what_is_no_labels_are_refused(labels, message):
    for function in (lambda: affinities.from_labels(labels, NEAREST), lambda: affinities.erode_labels(labels)):
        with pytest.raises(InputError, match=message):
            function()


@pytest.mark.parametrize(
    ("segmentation", "labels", "message"),
    [
        (SEGMENTS + 0.0, SEGMENTS, "segmentation must be integers, found float64"),
        (SEGMENTS, SEGMENTS.astype(np.float32), "labels must be integers, found float32"),
        (SEGMENTS, SEGMENTS.astype(object), "labels must be integers, found object"),
        (SEGMENTS.transpose(0, 2, 1), SEGMENTS, r"segmentation has shape \[3, 10, 6\], expected .* \[3, 6, 10\]"),
    ],
)
def test_scores_of_what_is_no_segmentation_are_refused(segmentation, labels, message):
    for function in (metrics.scores, metrics.contingency):
        with pytest.raises(InputError, match=message):
            function(segmentation, labels)


def test_blockings_with_a_mask_of_another_shape_are_refused(tmp_path):
    grid = {"chunk_shape": SHAPE, "shard_shape": SHAPE, "block_shape": SHAPE}
    section = Blockings(**grid, segmentation=Waterz(method="waterz"), block_shapes=[SHAPE, SHAPE])
    with pytest.raises(InputError, match=r"the mask has shape \[3, 5, 10\], expected that of the affinities"):
        blockings.compare(LEVELS, np.ones((3, 5, 10), np.uint8), section, 0.5, tmp_path)
