"""The objectives as sets of patches: disjoint, complete, without a leak, and as the paper's sums say."""

import itertools

import numpy as np
import pytest
import torch

from tokenunify import config as c
from tokenunify.learning import networks
from tokenunify.learning.tokens import masking
from tokenunify.learning.tokens.patches import PatchGrid
from tokenunify.learning.tokens.token_prediction import TokenTask

CROP, PATCH = (4, 12, 16), (2, 4, 8)  # 2 x 3 x 2 patches
NETWORK = {"name": "superhuman", "filters": [3, 4], "normalisation": "instance"}
OBJECTIVES = ("random", "next", "next-all")


def make_task(**given):
    torch.manual_seed(0)
    resampler = c.Resampler(latents=3, width=8, heads=2, layers=2)
    config = c.Pretrain(crop=CROP, patch=PATCH, resampler=resampler, **given)
    network = networks.build(NETWORK, None)
    return TokenTask(network, config, PatchGrid.of(network.config, CROP, PATCH)).eval()


def make_batch(task, *, size=2, seed=0, **given):
    rng, number = np.random.default_rng(seed), task.grid.number
    batch = {
        "raw": rng.random((size, 1, *CROP), np.float32),
        "noise": rng.standard_normal((size, 1, *CROP), np.float32),
        "permutation": np.stack([rng.permutation(number) for _ in range(size)]),
        "gumbel": rng.gumbel(size=(size, number)).astype(np.float32),
        "hidden": np.full((size, 1), 5),
        "cut": rng.integers(1, number, (size, 1), endpoint=True),
    }
    return {"objective": "random next next-all", **{k: torch.from_numpy(v) for k, v in batch.items()}, **given}


def sets_of(name, ranks, *, cut, hidden=5):
    if name == "random":
        return masking.random_token(ranks, torch.full_like(cut, hidden))
    return (masking.next_token if name == "next" else masking.next_all_token)(ranks, cut)


def test_patches_are_numbered_in_raster_order():
    grid = PatchGrid((0, 0, 0), (2, 3, 2), PATCH)
    volume = torch.arange(4 * 12 * 16.0).reshape(1, 1, 4, 12, 16)
    patches = grid.split(volume)
    for number, (z, y, x) in enumerate(itertools.product(range(2), range(3), range(2))):
        box = volume[0, 0, 2 * z : 2 * z + 2, 4 * y : 4 * y + 4, 8 * x : 8 * x + 8]
        assert torch.equal(patches[0, number], box.flatten())
    assert torch.equal(grid.join(patches), volume)
    chosen = torch.zeros(1, 12, dtype=torch.bool)
    chosen[0, 5] = True
    assert grid.voxels(chosen)[0, 0, 0:2, 8:12, 8:16].all() and grid.voxels(chosen).sum() == 64


def test_patches_of_a_smaller_output_lie_in_the_middle_of_the_crop():
    grid = PatchGrid((1, 2, 3), (1, 2, 1), (2, 4, 8))
    crop = torch.rand(1, 1, 5, 13, 15)
    hidden = grid.hidden_in(crop, torch.tensor([[True, False]]))
    assert hidden.shape == crop.shape and hidden.sum() == 64 and hidden[0, 0, 1:3, 2:6, 3:11].all()
    assert torch.equal(grid.of_crop(crop), crop[:, :, 1:3, 2:10, 3:11])


@pytest.mark.parametrize("name", OBJECTIVES)
def test_sets_are_disjoint_and_every_patch_is_a_target_for_some_cut(name):
    order = torch.tensor([[3, 0, 5, 1, 4, 2]])
    ranks, seen = masking.ranks_of(order), torch.zeros(1, 6, dtype=torch.bool)
    assert torch.equal(ranks.gather(1, order), torch.arange(6)[None])
    for cut in range(1, 7):
        visible, target = sets_of(name, ranks, cut=torch.tensor([[cut]]))
        assert not (visible & target).any() and target.any()
        if name != "random":
            assert set(visible[0].nonzero()[:, 0].tolist()) == set(order[0, : cut - 1].tolist())
            expected = order[0, cut - 1 : cut if name == "next" else None]
            assert set(target[0].nonzero()[:, 0].tolist()) == set(expected.tolist())
            seen |= target
    assert name == "random" or seen.all()


@pytest.mark.parametrize("fill", ["noise", "zero", "learned"])
@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("ordering", ["raster", c.Relevance(iterations=4, width=8)])
def test_what_is_hidden_never_changes_a_prediction(name, fill, ordering):
    task = make_task(fill=fill, ordering=ordering)
    batch = make_batch(task, cut=torch.tensor([[4], [9]]))
    patches = task.grid.split(batch["raw"])
    ranks = masking.ranks_of(task.order(patches, torch.zeros_like(batch["gumbel"]))[0])
    ranks = batch["permutation"] if name == "random" else ranks
    visible, target = sets_of(name, ranks, cut=batch["cut"])
    other = torch.where(visible[:, :, None], patches, torch.rand_like(patches))
    with torch.no_grad():
        shown = [task.shown(batch | {"raw": raw}, name) for raw in (batch["raw"], task.grid.join(other))]
        nothing_hidden = task.shown(batch | {"raw": torch.rand_like(batch["raw"])}, name)
    assert torch.equal(shown[0][0], shown[1][0]) and torch.equal(shown[0][1], shown[1][1])
    made = [task.grid.split(volume)[target] for volume in (shown[0][1], nothing_hidden[1])]
    assert not torch.equal(*made)  # and what is visible does


@pytest.mark.parametrize(("name", "pairs"), [("next", lambda n: [n]), ("next-all", lambda n: range(n, 13))])
@pytest.mark.parametrize("ordering", ["raster", c.Relevance(iterations=4, width=8)])
def test_mean_over_cuts_is_the_papers_sum(name, pairs, ordering):
    """Eq. 3 and eq. 4 by brute force: one forward pass for every n, one squared error for every (n, j)."""
    task = make_task(normalise=False, ordering=ordering).double()
    batch = make_batch(task, size=1, objective=name)
    batch |= {key: batch[key].double() for key in ("raw", "noise", "gumbel")}
    patches, total = task.grid.split(batch["raw"]), 0.0
    order = task.order(patches, batch["gumbel"])[0][0].tolist()
    with torch.no_grad():
        losses = [task(batch | {"cut": torch.tensor([[n]])})[name].item() for n in range(1, 13)]
        for n in range(1, 13):
            raw = patches.clone()
            hidden = order[n - 1 :]
            raw[0, hidden] = task.grid.split(batch["noise"])[0, hidden]
            features = task.network.features(task.grid.join(raw))
            whole = task.grid.split(task.network.head(features, CROP))
            for j in pairs(n):
                number = order[j - 1]
                made = whole[0, number] if name == "next-all" else task.resampler(features, torch.tensor([number]))[0]
                total += 0.5 * (made - patches[0, number]).square().sum().item()
    assert np.mean(losses) == pytest.approx(total, rel=1e-5 if name == "next" else 1e-6)


def test_losses_are_means_over_the_targets_alone():
    task = make_task()
    batch = make_batch(task, hidden=torch.tensor([[2], [7]]), cut=torch.tensor([[12], [4]]))
    patches = task.grid.split(batch["raw"])
    with torch.no_grad():
        losses, counts = task(batch), task.counts(batch)
        for name in ("random", "next-all"):
            ranks = batch["permutation"] if name == "random" else torch.arange(12).expand(2, -1)
            sets = [sets_of(name, ranks[i : i + 1], cut=batch["cut"][i : i + 1], hidden=(2, 7)[i]) for i in range(2)]
            target = torch.cat([s.target for s in sets])
            made = task.grid.split(task.shown(batch, name)[1])
            expected = (made - patches)[target].square().mean()
            assert losses[name].item() == pytest.approx(expected.item(), rel=1e-5)
            assert counts[name] == target.sum()
    assert counts["next"] == 2
