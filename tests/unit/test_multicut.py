from itertools import product

import numpy as np
import pytest
from bioimage_cpp.graph import UndirectedGraph
from bioimage_cpp.graph.lifted_multicut import LiftedMulticutObjective
from elf.segmentation import lifted_multicut as elf_lifted
from elf.segmentation.multicut import compute_edge_costs, multicut_kernighan_lin

from tokenunify import affinities as target
from tokenunify.config import NEAREST, Fragments
from tokenunify.data.phantom import phantom
from tokenunify.evaluation import metrics
from tokenunify.geometry import Roi
from tokenunify.segmentation import fragments, lifted, multicut, rag
from tokenunify.segmentation.baseline import lower_of_pairs, smooth
from tokenunify.store import arrays

SOLVERS = ["kernighan-lin", "greedy-additive", "fusion-moves", "decomposed"]


def energy(edges: np.ndarray, costs: np.ndarray, groups: np.ndarray) -> float:
    """Sum of the costs of the edges (m, 2) between node indices that the groups (n,) cut."""
    return float(costs[groups[edges[:, 0]] != groups[edges[:, 1]]].sum())


@pytest.fixture
def graph():
    random = np.random.default_rng(3)
    labels = np.arange(1, 28).reshape(3, 3, 3).repeat(2, axis=1).repeat(3, axis=2).astype(np.uint64) * 10
    return rag.from_arrays(random.integers(0, 256, (3, *labels.shape)).astype(np.uint8), labels)


@pytest.mark.parametrize("beta", [0.2, 0.5, 0.8])
def test_costs_equal_elfs_and_rise_with_the_affinity(graph, beta):
    boundary = 0.998 * (1 - graph.mean_affinities()) + 0.001
    expected = compute_edge_costs(boundary, edge_sizes=graph.counts.astype(float), weighting_scheme="all", beta=beta)
    found = multicut.costs(graph, beta)
    np.testing.assert_allclose(found, expected, rtol=0.01, atol=2e-3)  # elf clips the probabilities once more
    assert found[np.argmax(graph.mean_affinities())] > 0 or beta > 0.5


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_best_partition_of_a_small_graph_is_found(solver):
    edges = np.array([(0, 1), (0, 2), (0, 4), (1, 2), (1, 3), (2, 4), (3, 4)], np.uint64)
    costs = np.array([2.0, 1.0, -1.0, -0.5, -3.0, 0.5, 1.5])
    groupings = (np.array(groups) for groups in product(range(5), repeat=5))
    best = min(energy(edges, costs, groups) for groups in groupings)
    assert energy(edges, costs, multicut.solve(5, edges, costs, solver)) == pytest.approx(best)


def test_kernighan_lin_is_never_worse_than_its_start(graph):
    pairs = np.searchsorted(graph.nodes, graph.edges).astype(np.uint64)
    costs = multicut.costs(graph)
    energies = [energy(pairs, costs, multicut.solve(graph.nodes.size, pairs, costs, s)) for s in SOLVERS[:2]]
    assert energies[0] <= energies[1] < 0 or energies[0] == energies[1] == 0


@pytest.fixture(scope="module")
def over_segmented():
    """Graph of an over-segmented phantom: its nodes, edges between their indices, and costs."""
    raw, _ = phantom.generate((16, 96, 96), seed=5)
    affinities = lower_of_pairs(np.rint(smooth(raw, (0.5, 2.0, 2.0))).astype(np.uint8))
    labels = fragments.watershed(arrays.to_float(affinities), Fragments())
    graph = rag.from_arrays(affinities, labels)
    return graph, np.searchsorted(graph.nodes, graph.edges).astype(np.uint64), multicut.costs(graph, 0.5)


@pytest.mark.parametrize(
    ("solver", "tolerance"), [("kernighan-lin", 1e-3), ("fusion-moves", 1e-3), ("decomposed", 5e-3)]
)
def test_energies_are_those_of_elf(over_segmented, solver, tolerance, monkeypatch):
    monkeypatch.setattr(multicut, "NODES_OF_SLAB", 200)
    graph, pairs, costs = over_segmented
    assert graph.nodes.size > 900
    peer = multicut_kernighan_lin(UndirectedGraph.from_unique_edges(graph.nodes.size, pairs), costs)
    wanted = energy(pairs, costs, peer)
    found = energy(pairs, costs, multicut.solve(graph.nodes.size, pairs, costs, solver))
    assert wanted < 0
    assert found <= wanted + tolerance * abs(wanted)


def test_every_solver_gives_the_same_twice(over_segmented):
    graph, pairs, costs = over_segmented
    for solver in SOLVERS:
        first, second = (multicut.solve(graph.nodes.size, pairs, costs, solver) for _ in range(2))
        np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("beta", [0.5, 0.7])
def test_the_energy_is_that_of_the_cut_edges(graph, beta):
    table = multicut.agglomerate(graph, beta)
    segment = dict(zip(table.fragments.tolist(), table.segments.tolist(), strict=True))
    costs = multicut.costs(graph, beta)
    cut = [cost for (u, v), cost in zip(graph.edges.tolist(), costs, strict=True) if segment[u] != segment[v]]
    assert multicut.energy(graph, table, beta) == pytest.approx(sum(cut))
    assert len(cut) > 0


def test_segments_are_named_after_their_smallest_fragment_and_beta_cuts(graph):
    tables = [multicut.agglomerate(graph, beta) for beta in (0.05, 0.5, 0.95)]
    for table in tables:
        for segment in np.unique(table.segments):
            assert table.fragments[table.segments == segment].min() == segment
    numbers = [np.unique(table.segments).size for table in tables]
    assert numbers[0] < numbers[1] < numbers[2]


def test_a_graph_without_edges_stays_as_it_is():
    graph = rag.from_arrays(np.ones((3, 2, 3, 4), np.float32), np.full((2, 3, 4), 9, np.uint64))
    assert multicut.agglomerate(graph).segments.tolist() == [9]


@pytest.mark.parametrize("name", ["post_a.npz", "post_b.npz"])
def test_costs_and_partition_of_real_labels_equal_the_stored_ones(golden, name):
    stored = golden(name)
    labels = stored["lmc_fragments"].astype(np.uint64)
    graph = rag.from_arrays(stored["affs_u8"], labels)
    np.testing.assert_array_equal(graph.edges, stored["lmc_uv"])
    np.testing.assert_array_equal(graph.counts, stored["lmc_edge_size"])
    np.testing.assert_allclose(1 - graph.mean_affinities(), stored["lmc_edge_prob"], atol=1e-6)
    np.testing.assert_allclose(multicut.costs(graph), stored["lmc_costs"], atol=1e-6)
    found = multicut.agglomerate(graph).apply(labels)
    assert metrics.scores(found, stored["seg_lmc"] + 1)["voi"] == 0


def graphs_of(affinities, labels, offsets):
    """The graph of arrays, and its lifted edges."""
    near = rag.from_arrays(affinities, labels, offsets)
    return near, lifted.apart(lifted.of_block(affinities, labels, Roi((0, 0, 0), labels.shape), offsets), near)


@pytest.fixture(scope="module")
def linked():
    """An over-segmented phantom with noisy affinities of its neurites, near and far: graph and lifted edges."""
    raw, truth = phantom.generate((16, 96, 96), seed=5)
    offsets = [*NEAREST, (-2, 0, 0), (-3, 0, 0), (0, -9, 0), (0, 0, -9), (0, -15, 0), (0, 0, -15)]
    exact, _ = target.from_labels(truth, offsets)
    noise = np.random.default_rng(1).normal(0, 0.3, exact.shape)
    labels = fragments.watershed(lower_of_pairs(np.rint(smooth(raw, (0.5, 2.0, 2.0))).astype(np.uint8)), Fragments())
    return graphs_of(arrays.to_uint8(0.2 + 0.6 * exact + noise), labels.astype(np.uint64), offsets)


PEERS = {
    "kernighan-lin": elf_lifted.lifted_multicut_kernighan_lin,
    "greedy-additive": elf_lifted.lifted_multicut_gaec,
    "fusion-moves": elf_lifted.lifted_multicut_fusion_moves,
}


@pytest.mark.parametrize("beta", [0.5, 0.7])
@pytest.mark.parametrize("solver", PEERS)
def test_energies_with_lifted_edges_are_those_of_elf(linked, solver, beta):
    """Energies as the library's own objective counts them, on the whole graph."""
    graph, far = linked
    assert len(far.edges) > len(graph.edges) / 2
    pairs, far_pairs = (np.searchsorted(graph.nodes, g.edges).astype(np.uint64) for g in (graph, far))
    costs, far_costs = (
        compute_edge_costs(1 - g.mean_affinities(), g.counts.astype(float), weighting_scheme="all", beta=beta)
        for g in (graph, far)
    )
    peer_graph = UndirectedGraph.from_unique_edges(graph.nodes.size, pairs)
    problem = LiftedMulticutObjective(peer_graph, costs, lifted_uvs=far_pairs, lifted_costs=far_costs)
    wanted = problem.energy(PEERS[solver](peer_graph, costs, far_pairs, far_costs))
    table = multicut.agglomerate(graph, beta, solver, far)
    found = multicut.energy(graph, table, beta, far)
    assert found == pytest.approx(problem.energy(np.searchsorted(graph.nodes, table.segments).astype(np.uint64)))
    assert wanted < 0
    assert found <= wanted + 1e-3 * abs(wanted)
    if solver != "fusion-moves":
        assert found == pytest.approx(wanted)


@pytest.mark.parametrize("solver", PEERS)
def test_lifted_edges_give_the_same_twice(linked, solver):
    first, second = (multicut.agglomerate(linked[0], 0.5, solver, linked[1]).segments for _ in range(2))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("solver", PEERS)
@pytest.mark.parametrize(
    ("near", "far_level", "without", "groups"),
    [((178, 153), 0, [5, 5, 5], [5, 5, 7]), ((153, 102), 255, [5, 5, 7], [5, 5, 5])],
)
def test_a_lifted_edge_decides_against_the_near_ones(solver, near, far_level, without, groups):
    """Three slices in a row: the outer two do not touch, and their long-range affinities are surer than the near."""
    labels = np.repeat(np.array([5, 6, 7], np.uint64), 2)[None, None].repeat(4, axis=1)
    offsets = [*NEAREST, (0, 0, -3)]
    values = np.zeros((4, *labels.shape), np.uint8)
    values[2, ..., [2, 4]] = np.array(near)[:, None, None]
    values[3] = far_level
    graph, far = graphs_of(values, labels, offsets)
    assert far.edges.tolist() == [[5, 7]]
    assert multicut.agglomerate(graph, 0.5, solver).segments.tolist() == without
    assert multicut.agglomerate(graph, 0.5, solver, far).segments.tolist() == groups


def test_a_lifted_edge_joins_nothing_that_no_path_connects():
    labels = np.array([5, 5, 0, 0, 6, 6], np.uint64)[None, None]
    graph, far = graphs_of(np.full((4, *labels.shape), 255, np.uint8), labels, [*NEAREST, (0, 0, -4)])
    assert (far.edges.tolist(), len(graph.edges)) == ([[5, 6]], 0)
    assert multicut.agglomerate(graph, 0.5, "kernighan-lin", far).segments.tolist() == [5, 6]
