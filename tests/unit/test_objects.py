import numpy as np
import pytest

from tokenunify.evaluation import metrics, objects

SHAPE = (3, 5, 8)


@pytest.fixture
def volumes():
    """Neuron 7 is split into 20, 21 and 22, and 22 merges it with neuron 8; 9 is whole; 0 is not scored."""
    labels, segmentation = np.full(SHAPE, 7), np.full(SHAPE, 20)
    labels[1], segmentation[1] = 8, 22
    labels[2], segmentation[2] = 9, 23
    segmentation[0, 3:], segmentation[0, 2, 5:] = 21, 22
    labels[2, :, 6:] = 0
    return segmentation, labels


def scored(segmentation, labels):
    return metrics.without(metrics.contingency(segmentation, labels), 0)


def test_the_worst_objects_are_named_with_their_pieces(volumes):
    table = scored(*volumes)
    (split,), (merge,) = objects.worst_splits(table, SHAPE), objects.worst_merges(table, SHAPE)
    assert (split.id, split.voxels, merge.id, merge.voxels) == (7, 40, 22, 43)
    assert split.pieces == (
        objects.Piece(20, 21, (0, 0, 0)),
        objects.Piece(21, 16, (0, 3, 0)),
        objects.Piece(22, 3, (0, 2, 5)),
    )
    assert merge.pieces == (objects.Piece(8, 40, (1, 0, 0)), objects.Piece(7, 3, (0, 2, 5)))


def test_their_bits_add_up_to_the_scores():
    random = np.random.default_rng(3)
    labels = random.integers(0, 4, (3, 5, 2)).repeat(4, axis=2)
    segmentation = np.where(random.random(SHAPE) < 0.2, random.integers(0, 5, SHAPE), labels + 10)
    scores, table = metrics.scores(segmentation, labels), scored(segmentation, labels)
    assert sum(error.bits for error in objects.worst_splits(table, SHAPE)) == pytest.approx(scores["voi_split"])
    assert sum(error.bits for error in objects.worst_merges(table, SHAPE)) == pytest.approx(scores["voi_merge"])
    bits = [error.bits for error in objects.worst_splits(table, SHAPE)]
    assert bits == sorted(bits, reverse=True) and len(bits) == 3
