import numpy as np

from tokenunify.kernels import pair_table


def random_pairs(num: int, seed: int) -> list[tuple[int, int]]:
    """Pairs of few ids, so that many are equal, and of ids beyond 2^63."""
    random = np.random.default_rng(seed)
    few = random.integers(0, 40, (num, 2))
    return [(int(u), int(v) + (2**63 if u % 3 == 0 else 0)) for u, v in few]


def test_a_table_counts_as_a_dictionary_does():
    table, expected = pair_table.table(1), {}
    for u, v in random_pairs(3000, seed=0):
        table = pair_table.with_room(table, 1)
        table.values[pair_table.row(table, np.uint64(u), np.uint64(v)), 0] += np.uint64(1)
        expected[u, v] = expected.get((u, v), 0) + 1
    keys, values = pair_table.used(table)
    assert dict(zip(map(tuple, keys.tolist()), values[:, 0].tolist(), strict=True)) == expected
    assert len(expected) > 1000 and list(expected) == list(map(tuple, keys.tolist()))
