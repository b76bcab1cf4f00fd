"""The networks in a table: parameters, legal crops, and what one crop costs. No weight or voxel is ever stored."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from tokenunify import config as c
from tokenunify.config import NEAREST
from tokenunify.geometry import Coordinate
from tokenunify.learning import networks
from tokenunify.learning.networks.base import Network, output_extent
from tokenunify.text_table import aligned

HEADER = ("network", "parameters", "used", "legal crops", "crop", "output", "GFLOP", "activations")
NOTES = """
used: parameters that the output depends on
GFLOP: 10^9 operations of one forward pass on the crop, a multiply-add counted as 2: convolutions, matrix products and
  attention; what works element by element is left out
activations: float32 tensors that training on the crop keeps for the gradient, batch size 1, without parameters; with
  the scores of attention, which fused kernels do without
"""


def run(configfile: Sequence[Path]) -> None:
    """Print the table of every network that can be built by its name alone, or of a configuration's models."""
    entries = configured(c.load(*configfile)) if configfile else named()
    rows = [row(*entry) for entry in entries]
    sys.stdout.write(aligned([HEADER, *rows], left=("network", "legal crops")) + NOTES)


Entry = tuple[str, dict, tuple[Coordinate, ...], Coordinate | None]
"""Name in the table, the network's description, offsets, and the crop if not the network's own."""


def named() -> Iterator[Entry]:
    """Every network as its defaults describe it, the published forms last."""
    for name in (*networks.BUILDERS, *networks.RELEASED):
        yield name, {"name": name}, NEAREST, None


def configured(config: c.Config) -> Iterator[Entry]:
    """The networks of a configuration's models, at their training crops."""
    for name, model in config.models.items():
        description = model.network.model_dump(mode="json")
        yield f"{name} ({model.network.name})", description, model.finetune.offsets, model.finetune.crop


def row(name: str, description: dict, offsets: tuple[Coordinate, ...], crop: Coordinate | None) -> tuple[str, ...]:
    """One line of the table."""
    with torch.device("meta"):
        network = networks.build(description, offsets)
    crop = crop or network.config.CROP
    cost = measure(network, crop)
    sizes = {key: p.numel() for key, p in network.named_parameters()}
    used = sum(size for key, size in sizes.items() if not key.startswith(network.UNUSED))
    return (
        name,
        f"{sum(sizes.values()):,}",
        f"{used:,}",
        network.config.legal_crops,
        "x".join(map(str, crop)),
        "x".join(map(str, output_extent(network.config, crop))),
        f"{cost.flops / 1e9:,.1f}",
        f"{cost.activation_bytes / 2**20:,.0f} MiB",
    )


def cost(description: dict, offsets: tuple[Coordinate, ...], crop: Coordinate) -> "Cost":
    """The cost of a crop for a network that is described, found without computing anything."""
    with torch.device("meta"):
        network = networks.build(description, offsets)
    return measure(network, crop)


@dataclass(frozen=True)
class Cost:
    """What one crop costs."""

    flops: int
    """Operations of the forward pass; a multiply-add counts as 2."""
    activation_bytes: int
    """Bytes of the tensors that are kept for the gradient, without parameters."""


def measure(network: Network, crop: Coordinate) -> Cost:
    """The cost of training on one crop, from a forward pass on the network's device, which may be `meta`."""
    parameters = {storage_of(p) for p in network.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}  # by identity: views of one storage count once

    def pack(tensor: Tensor) -> Tensor:
        if (key := storage_of(tensor)) not in parameters:
            kept[key] = tensor.untyped_storage()
        return tensor

    raw = torch.zeros(1, 1, *crop, device=next(network.parameters()).device)
    network.train()
    with FlopCounterMode(display=False) as counter, saved_tensors_hooks(pack, lambda tensor: tensor):
        output = network(raw)
    del output
    return Cost(counter.get_total_flops(), sum(storage.nbytes() for storage in kept.values()))


def storage_of(tensor: Tensor) -> int:
    """Identity of the memory behind a tensor, valid while the memory is held; meta tensors have no address."""
    return tensor.untyped_storage()._cdata
