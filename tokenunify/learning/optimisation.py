"""How weights move: the learning rate of each step, the optimisers, and the running average of the weights."""

import math

import torch
from torch import Tensor, nn

from tokenunify import config as c
from tokenunify.learning.muon import Muon
from tokenunify.learning.task import Task


def learning_rate(step: int, config: c.Optimisation) -> float:
    """Linear warm-up, then constant or a cosine to the final rate."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.lr_schedule == "constant":
        return config.learning_rate
    done = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    span = config.learning_rate - config.final_learning_rate
    return config.final_learning_rate + span * 0.5 * (1 + math.cos(math.pi * done))


def make_optimizers(task: Task, config: c.Optimisation) -> list[torch.optim.Optimizer]:
    """AdamW, which decays weights, not biases and normalisation; where it is wanted, Muon for the hidden weights."""
    hidden = hidden_weights(task) if config.optimizer == "muon" else []
    taken = set(map(id, hidden))
    parameters = [p for p in task.parameters() if p.requires_grad and id(p) not in taken]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas)
    return [adamw, Muon(hidden, config.learning_rate, config.weight_decay)] if hidden else [adamw]


def hidden_weights(task: Task) -> list[Tensor]:
    """Weights that mix channels of hidden layers: neither those that read raw nor the head's."""
    layers = (nn.Linear, nn.Conv1d, nn.Conv3d, nn.ConvTranspose3d)
    heads = tuple(f"network.{prefix}" for prefix in task.network.HEAD)
    weights = [
        module.weight
        for name, module in task.named_modules()
        if isinstance(module, layers) and not f"{name}.".startswith(heads) and module.weight.shape[1] > 1
    ]
    return [weight for weight in weights if weight.requires_grad]


def update_average(average: nn.Module, module: nn.Module, decay: float) -> None:
    """Move the running average towards the module: average = decay * average + (1 - decay) * module."""
    with torch.no_grad():
        for a, b in zip(average.state_dict().values(), module.state_dict().values(), strict=True):
            a.lerp_(b, 1 - decay) if a.is_floating_point() else a.copy_(b)
