"""Where pieces of an error touch, against a slow search; volumes and voxels are anisotropic."""

import numpy as np
import pytest

from tokenunify.evaluation import false_contacts, metrics, objects
from tokenunify.geometry import Blocks

SHAPE = (4, 12, 30)
VOXEL_SIZE = (40.0, 16.0, 8.0)


def located(segmentation, labels, block_shape=SHAPE, *, merges: bool, unscored=(0,)) -> list[objects.Error]:
    """The worst errors of a volume, looked at block by block."""
    unscored, blocks = np.array(unscored, np.uint64), Blocks(SHAPE, block_shape)
    segmentation, labels = segmentation.astype(np.uint64), labels.astype(np.uint64)
    table = metrics.without(metrics.contingency(segmentation, labels), 0, unscored)
    worst = objects.worst_merges(table, SHAPE) if merges else objects.worst_splits(table, SHAPE)

    def of_block(index: int) -> metrics.Contingency:
        roi = blocks.roi(index)
        return metrics.contingency(segmentation[roi.slices], labels[roi.slices], roi, SHAPE)

    found = false_contacts.of_volume(
        false_contacts.Objects(worst, merges, unscored),
        lambda roi: (segmentation[roi.slices], labels[roi.slices]),
        of_block,
        blocks,
        VOXEL_SIZE,
    )
    return objects.located(worst, found)


@pytest.mark.parametrize("block_shape", [SHAPE, (1, 5, 7), (4, 12, 20), (2, 4, 11)])
def test_a_merge_is_found_where_the_neurons_touch_inside_the_segment(block_shape):
    labels = np.where(np.indices(SHAPE)[2] < 20, 7, 8)
    segmentation = labels + 100
    segmentation[2, 3:8, 15:26] = 55  # merges them in section 2 alone
    (merge,) = located(segmentation, labels, block_shape, merges=True)
    assert {piece.contact for piece in merge.pieces} == {(2, 5, 20)}
    splits = located(segmentation, labels, block_shape, merges=False)
    assert [len(split.pieces) for split in splits] == [2, 2]
    for split in splits:
        (one, other) = split.pieces
        assert one.contact == other.contact
        around = tuple(slice(max(0, c - 1), c + 2) for c in one.contact)
        there = segmentation[around][labels[around] == split.id]
        assert {one.id, other.id} <= set(there.tolist())


@pytest.mark.parametrize("gap", [0, 3, 17, 18])
@pytest.mark.parametrize("unknown", [0, 9, 2**64 - 1])
def test_what_is_not_scored_may_lie_between(gap, unknown):
    labels = np.full(SHAPE, 7, np.uint64)
    labels[..., 5:], labels[..., 5 : 5 + gap] = 8, unknown
    found = located(np.full(SHAPE, 3), labels, (4, 6, 9), merges=True, unscored=(0, 9, 2**64 - 1))
    assert found[0].pieces[0].contact == (None if gap == 18 else (0, 5, 5 + gap - (gap + 1) // 2))


def test_another_segment_between_keeps_them_apart():
    labels = np.where(np.indices(SHAPE)[2] < 15, 7, 8)
    segmentation = np.full(SHAPE, 3)
    labels[..., 14], segmentation[..., 14] = 0, 4
    (merge,) = located(segmentation, labels, merges=True)
    assert [piece.contact for piece in merge.pieces] == [None, None]
    assert {piece.position for piece in merge.pieces} == {(0, 0, 0), (0, 0, 15)}


def test_a_piece_is_shown_at_the_largest_one_that_it_touches():
    labels = np.full(SHAPE, 7)
    labels[..., 16:26], labels[..., 26:] = 8, 9
    (merge,) = located(np.full(SHAPE, 3), labels, (1, 12, 16), merges=True)
    assert {piece.id: piece.contact[2] for piece in merge.pieces} == {7: 16, 8: 16, 9: 26}


def test_contacts_of_noise_are_those_of_a_slow_search():
    random = np.random.default_rng(2)
    labels = random.integers(1, 5, (4, 4, 6)).repeat(3, axis=1).repeat(5, axis=2)
    segmentation = random.integers(1, 4, (4, 3, 5)).repeat(4, axis=1).repeat(6, axis=2)
    for merges, owners, others in ((True, segmentation, labels), (False, labels, segmentation)):
        whole = located(segmentation, labels, merges=merges)
        assert located(segmentation, labels, (3, 5, 8), merges=merges) == whole
        for error in whole:
            for n, piece in enumerate(error.pieces):
                touched = touching(owners == error.id, others, piece.id)
                larger = [other.id for m, other in enumerate(error.pieces) if m != n and other.id in touched]
                assert (piece.contact is None) == (not larger)
                if larger:
                    assert piece.contact in touched[larger[0]]


def touching(mine, others, piece) -> dict[int, set]:
    """The upper voxels of the pairs of a piece's voxel and another's that share a face."""
    found: dict[int, set] = {}
    for voxel in map(tuple, np.argwhere(mine)):
        for axis in range(3):
            lower = tuple(v - (a == axis) for a, v in enumerate(voxel))
            if min(lower) >= 0 and mine[lower] and piece in (pair := {int(others[voxel]), int(others[lower])}):
                for other in pair - {piece}:
                    found.setdefault(other, set()).add(voxel)
    return found
