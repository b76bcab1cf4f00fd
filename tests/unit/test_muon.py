"""Muon: what it makes orthogonal, what it leaves to AdamW, and that it resumes."""

import torch

from tokenunify import config as c
from tokenunify.learning import muon, networks, optimisation
from tokenunify.learning.objectives import AffinityTask

NETWORK = {"name": "superhuman", "filters": [3, 4]}


def test_singular_values_become_one():
    matrix = torch.randn(5, 40, generator=torch.Generator().manual_seed(0)) * torch.logspace(0, -2, 5)[:, None]
    for given in (matrix, matrix.T):
        values = torch.linalg.svdvals(muon.orthogonal(given))
        assert values.min() > 0.6 and values.max() < 1.3
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    assert torch.nn.functional.cosine_similarity(muon.orthogonal(matrix).flatten(), (u @ v).flatten(), dim=0) > 0.97


def test_a_step_has_the_size_of_the_rate_whatever_the_gradient():
    sizes = []
    for scale in (1e-6, 1e3):
        weights = torch.zeros(8, 4, 3, 3, 3, requires_grad=True)
        weights.grad = torch.randn(weights.shape, generator=torch.Generator().manual_seed(0)) * scale
        muon.Muon([weights], lr=0.1, weight_decay=0.0).step()
        sizes.append(weights.detach().square().mean().sqrt().item())
    assert abs(sizes[0] - sizes[1]) < 1e-3 and 0.01 < sizes[0] < 0.04  # 0.1 * 0.2


def test_hidden_weights_are_neither_the_first_layer_nor_the_head():
    task = AffinityTask(networks.build(NETWORK), c.Finetune(optimizer="muon"))
    names = {id(p): name for name, p in task.named_parameters()}
    hidden = {names[id(p)] for p in optimisation.hidden_weights(task)}
    assert "network.center.block2.0.weight" in hidden and "network.up0.1.weight" in hidden
    assert not any(name.startswith(("network.out_put", "network.embed_in")) for name in hidden)
    held = [id(p) for o in optimisation.make_optimizers(task, task.config) for g in o.param_groups for p in g["params"]]
    assert sorted(held) == sorted(names)
