import numpy as np
import pytest
import waterz as reference

from tokenunify.errors import InputError
from tokenunify.evaluation import metrics
from tokenunify.geometry import Blocks
from tokenunify.segmentation import rag, waterz
from tokenunify.segmentation.graph import merge

HISTOGRAM = "OneMinus<HistogramQuantileAffinity<RegionGraphType, {}, ScoreValue, 256{}>>"
SCORES = {
    **{f"max{quantile}": HISTOGRAM.format(quantile, "") for quantile in (25, 50, 75)},
    **{f"hist{quantile}": HISTOGRAM.format(quantile, ", false") for quantile in (25, 50, 75)},
    "mean": "OneMinus<MeanAffinity<RegionGraphType, ScoreValue>>",
}
QUANTILES = [score for score in SCORES if score != "mean"]
THRESHOLDS = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
NUM_VOLUMES = 504
"""Each score meets as many."""


def run_reference(affinities, fragments, thresholds, score="max50"):
    """Segmentations by waterz, from compact ids: its memory goes with the largest."""
    ids, compact = np.unique(np.append(np.uint64(0), fragments), return_inverse=True)
    arguments = {"scoring_function": SCORES[score], "discretize_queue": 256}
    arguments["fragments"] = compact[1:].reshape(fragments.shape).astype(np.uint64)  # a copy: it is overwritten
    floats = np.ascontiguousarray(as_floats(affinities))
    return [ids[result] for result in reference.agglomerate(floats, thresholds, **arguments)]  # the buffer is reused


def as_floats(affinities):
    return affinities / np.float32(255) if affinities.dtype == np.uint8 else affinities


def random_affinities(random, shape):
    """All steps of uint8, any floats, some that are no numbers, only 0 and 1, or few values (heavy ties)."""
    kind = random.integers(6)
    if kind == 0:
        return random.integers(0, 256, shape).astype(np.uint8)
    if kind in (1, 2):
        values = random.random(shape, np.float32)
        return np.where(random.random(shape) < 0.1, np.nan, values) if kind == 2 else values
    steps = (1, 3, 6)[kind - 3]
    return (random.integers(0, steps + 1, shape) / steps).astype(np.float32)


def random_volume(seed: int):
    """Affinities and fragments of up to 5 x 7 x 9 voxels; ids dense or sparse, with or without 0."""
    random = np.random.default_rng(seed)
    shape = tuple(random.integers((1, 3, 4), (6, 8, 10)))
    fragments = random.integers(random.integers(2), 1 + random.integers(2, 60), shape).astype(np.uint64)
    if random.integers(2):
        fragments = np.concatenate([[0], np.sort(random.choice(10**12, 60, replace=False))]).astype(np.uint64)[
            fragments
        ]
    return random_affinities(random, (3, *shape)), fragments


def merged_from_blocks(affinities, fragments, block_shape):
    blocks, grey = Blocks(fragments.shape, block_shape), rag.levels(affinities)
    return merge([rag.of_block(grey, fragments, blocks.roi(index)) for index in range(len(blocks))])


@pytest.mark.parametrize("seed", range(NUM_VOLUMES))
def test_labels_are_identical_to_waterz_from_blocks_of_any_shape(seed):
    affinities, fragments = random_volume(seed)
    shapes = np.random.default_rng(seed).integers(1, np.array(fragments.shape) + 1, (3, 3))
    found = [merged_from_blocks(affinities, fragments, tuple(map(int, shape))) for shape in shapes]
    for name, table in vars(found[0]).items():
        assert all(np.array_equal(getattr(other, name), table) for other in found[1:])
    for score in (QUANTILES[seed % 6], QUANTILES[(seed + 1 + seed // 6 % 5) % 6]):
        tables = waterz.agglomerate(found[0], THRESHOLDS, score)
        expected = run_reference(affinities, fragments, THRESHOLDS, score)
        for table, segmentation in zip(tables.values(), expected, strict=True):
            np.testing.assert_array_equal(table.apply(fragments), segmentation)


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
    expected = run_reference(affinities, fragments, thresholds, score)
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
    expected = run_reference(affinities, fragments, thresholds, "mean")
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
