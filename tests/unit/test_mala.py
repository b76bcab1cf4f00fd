"""MALA: which crops it takes, and where in them its output lies."""

import pytest
import torch
import torch.nn.functional as F

from tokenunify.config import Mala
from tokenunify.learning.networks import build


def takes(length, pools):
    """Extent that is left of one axis after the published sequence of layers, None where it does not go through."""
    sizes = []
    for _ in range(3):
        length -= 4
        sizes.append(length)
        if length < 1 or length % pools:
            return None
        length //= pools
    length -= 4
    for size in reversed(sizes):
        length *= pools
        if not 0 < length <= size:
            return None
        length -= 4
    return length if length > 0 else None


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_legal_crops_are_those_that_the_layers_let_through(axis):
    for n in range(1, 300):
        crop = list(Mala.SMALLEST)
        crop[axis] = n
        expected = takes(n, pools=1 if axis == 0 else 3)
        if expected is None:
            with pytest.raises(ValueError, match="the nearest is"):
                Mala().output_extent(tuple(crop))
        else:
            assert Mala().output_extent(tuple(crop))[axis] == expected


def test_published_extents():
    assert Mala().output_extent((53, 268, 268)) == (25, 56, 56)


@pytest.mark.parametrize(
    ("crop", "words"),
    [
        ((53, 160, 250), r"nearest is \[53, 214, 241\] or \[53, 214, 268\]"),
        ((16, 160, 160), r"got \[16, 160, 160\]: the nearest is \[29, 214, 214\]$"),
    ],
)
def test_the_nearest_legal_crops_are_named(crop, words):
    with pytest.raises(ValueError, match=words):
        Mala().output_extent(crop)


def test_the_output_is_the_middle_of_the_crop():
    """What the outermost output voxels depend on reaches as far before the middle as behind it."""
    network = build({"name": "mala", "filters": [2, 2, 2, 2]})
    raw = torch.rand(1, 1, 30, 214, 241, requires_grad=True)
    output = network.logits(raw)
    assert output.shape == (1, 3, 2, 2, 29)
    output.sum().backward()
    for axis, n in enumerate(raw.shape[2:], 2):
        others = [a for a in range(5) if a != axis]
        used = raw.grad.abs().sum(others).nonzero().ravel()
        assert used[0] == n - 1 - used[-1]


def test_features_lose_the_same_everywhere():
    """A shift of the raw by one pooling step shifts the output by as much: no layer pads."""
    network = build({"name": "mala", "filters": [2, 2, 2, 2]}).eval()
    raw = torch.rand(1, 1, 30, 214, 268)
    with torch.no_grad():
        whole, part = network(raw), network(F.pad(raw, (0, -27)))
    torch.testing.assert_close(whole[..., : part.shape[-1]], part)
