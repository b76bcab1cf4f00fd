import numpy as np
import pytest
import waterz as reference

from tokenunify.config import NEAREST
from tokenunify.errors import InputError
from tokenunify.evaluation import metrics
from tokenunify.segmentation import rag, waterz

HISTOGRAM = "OneMinus<HistogramQuantileAffinity<RegionGraphType, {}, ScoreValue, 256{}>>"
SCORES = {
    **{f"max{quantile}": HISTOGRAM.format(quantile, "") for quantile in (25, 50, 75)},
    **{f"hist{quantile}": HISTOGRAM.format(quantile, ", false") for quantile in (25, 50, 75)},
    "mean": "OneMinus<MeanAffinity<RegionGraphType, ScoreValue>>",
}
THRESHOLDS = [0.1, 0.25, 0.4, 0.5, 0.6, 0.75, 0.9, 1.0]


def run_reference(affinities, fragments, thresholds, score="max50"):
    arguments = {"scoring_function": SCORES[score], "discretize_queue": 256, "fragments": fragments.copy()}
    results = reference.agglomerate(np.ascontiguousarray(affinities, np.float32), thresholds, **arguments)
    return [result.copy() for result in results]


def random_volume(seed: int):
    """Few distinct affinities (heavy ties), all steps of uint8, or any floats; with or without id 0."""
    random = np.random.default_rng(seed)
    shape = tuple(random.integers((1, 3, 4), (5, 9, 12)))
    steps = (3, 6, 255, 10**6)[seed % 4]
    affinities = (random.integers(0, steps + 1, (3, *shape)) / steps).astype(np.float32)
    fragments = random.integers(seed % 3 == 0, 1 + random.integers(2, 60), shape).astype(np.uint64)
    return affinities, fragments


@pytest.mark.parametrize("score", [score for score in SCORES if score != "mean"])
@pytest.mark.parametrize("seed", range(60))
def test_labels_are_identical_to_waterz_on_small_volumes(seed, score):
    affinities, fragments = random_volume(seed)
    tables = waterz.agglomerate(rag.from_arrays(affinities, fragments, NEAREST), THRESHOLDS, score)
    for threshold, expected in zip(THRESHOLDS, run_reference(affinities, fragments, THRESHOLDS, score), strict=True):
        np.testing.assert_array_equal(tables[threshold].apply(fragments), expected)


def medium_volume():
    """Section-wise fragments of several voxels with affinities that are low between some of them."""
    random = np.random.default_rng(7)
    coarse = np.arange(1, 12 * 20 * 24 + 1).reshape(12, 20, 24)
    fragments = coarse.repeat(3, axis=1).repeat(4, axis=2).astype(np.uint64)
    affinities = np.clip(random.normal(0.6, 0.25, (3, *fragments.shape)), 0, 1)
    return np.rint(affinities * 255).astype(np.uint8), fragments


@pytest.mark.parametrize(("score", "raised"), [("max50", 0), ("hist50", 0.15), ("hist25", 0.3)])
def test_labels_are_identical_to_waterz_on_a_medium_volume(score, raised):
    affinities, fragments = medium_volume()
    thresholds = [raised + step for step in (0.02, 0.05, 0.1, 0.15, 0.3, 0.5)]
    tables = waterz.agglomerate(rag.from_arrays(affinities, fragments), thresholds, score)
    numbers = [np.unique(table.segments).size for table in tables.values()]
    assert numbers[0] > numbers[2] > numbers[-1]
    expected = run_reference(affinities / np.float32(255), fragments, thresholds, score)
    for threshold, result in zip(thresholds, expected, strict=True):
        np.testing.assert_array_equal(tables[threshold].apply(fragments), result)


def test_a_threshold_alone_gives_what_it_gives_among_others():
    graph = rag.from_arrays(*random_volume(6))
    together = waterz.agglomerate(graph, THRESHOLDS[::-1])
    assert list(together) == THRESHOLDS
    for threshold in THRESHOLDS:
        alone = waterz.agglomerate(graph, [threshold])[threshold]
        np.testing.assert_array_equal(alone.segments, together[threshold].segments)


def test_a_graph_without_histograms_is_refused_where_they_are_needed():
    graph = rag.from_arrays(*random_volume(6), histograms=False)
    with pytest.raises(InputError, match="without histograms"):
        waterz.agglomerate(graph, [0.5], "hist50")
    assert waterz.agglomerate(graph, [0.5]).keys() == {0.5}


def test_mean_affinity_is_that_of_waterz_but_for_rounding():
    affinities, fragments = medium_volume()
    thresholds = [0.3, 0.38, 0.42]
    tables = waterz.agglomerate(rag.from_arrays(affinities, fragments), thresholds, "mean")
    expected = run_reference(affinities / np.float32(255), fragments, thresholds, "mean")
    for table, result in zip(tables.values(), expected, strict=True):
        assert metrics.scores(table.apply(fragments), result)["voi"] < 0.2


def test_a_graph_without_edges_stays_as_it_is():
    graph = rag.from_arrays(np.ones((3, 2, 3, 4), np.float32), np.full((2, 3, 4), 9, np.uint64))
    table = waterz.agglomerate(graph, [0.5])[0.5]
    assert (table.fragments.tolist(), table.segments.tolist()) == ([9], [9])
    empty = rag.from_arrays(np.ones((3, 2, 3, 4), np.float32), np.zeros((2, 3, 4), np.uint64))
    assert waterz.agglomerate(empty, [0.5])[0.5].apply(np.zeros((1, 2, 3), np.uint64)).max() == 0


@pytest.mark.parametrize("name", ["post_a.npz", "post_b.npz"])
def test_partitions_of_real_labels_equal_the_stored_ones(golden, name):
    stored = golden(name)
    fragments = stored["fragments"].astype(np.uint64)
    graph = rag.from_arrays(stored["affs_u8"], fragments)
    for threshold, table in waterz.agglomerate(graph, [0.1, 0.3, 0.5, 0.7, 0.9]).items():
        expected = stored[f"seg_waterz_{threshold}"] + 1
        assert metrics.scores(table.apply(fragments), expected)["voi"] == 0
    mean = waterz.agglomerate(graph, [0.5], "mean")[0.5].apply(fragments)
    assert metrics.scores(mean, stored["seg_waterz_mean_0.5"] + 1)["voi"] < 0.01
