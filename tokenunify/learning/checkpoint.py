"""Weights and training states on disk: written in one step, and enough to rebuild the network."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tokenunify import manifest
from tokenunify.errors import InputError
from tokenunify.learning import networks, published

WEIGHTS = "weights.safetensors"


def save_weights(path: Path, state_dict: Mapping[str, Tensor]) -> None:
    """Replace a safetensors file in one step."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state_dict.items()}
    manifest.replace(path, lambda temporary: save_file(tensors, temporary))


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Replace a training state (tensors, numbers, strings and containers of them) in one step."""
    manifest.replace(path, lambda temporary: torch.save(state, temporary))


def load_state(path: Path) -> dict[str, Any]:
    """A training state on the CPU; nothing but tensors, numbers, strings and containers is accepted."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, ValueError) as error:
        raise InputError(f"{path} is damaged ({error}): delete {path.parent} and train again") from None


def read_weights(weights: Path) -> tuple[dict[str, Tensor], dict]:
    """The tensors that a `weights.json` describes, and its content.

    They are read from the safetensors file beside it, whose checksum must be the recorded one.
    """
    content, path = manifest.content(weights), weights.with_name(WEIGHTS)
    if not path.exists():
        raise InputError(f"{path} does not exist: {_again(weights)}")
    if (found := manifest.file_sha256(path)) != content["weights"]:
        raise InputError(
            f"{path} has SHA-256 {found}, expected {content['weights']} as in {weights.name}: {_again(weights)}"
        )
    return load_file(path), content


def rebuild(weights: Path) -> tuple[nn.Module, dict]:
    """The trained network that a `weights.json` describes, in evaluation mode, and the manifest's content."""
    tensors, content = read_weights(weights)
    network = networks.build(content["network"], content["finetune"]["offsets"])
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        raise InputError(
            f"{weights.with_name(WEIGHTS)} does not fit the network in {weights.name} ({error}): {_again(weights)}"
        ) from None
    return network.eval(), content


def _again(weights: Path) -> str:
    return f"delete {weights} and make it again with `snakemake {weights}`"


@dataclass
class Report:
    """What became of the tensors of a published state dict."""

    loaded: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    """Tensors of the network that the state dict lacks, or has in another shape."""
    unexpected: list[str] = field(default_factory=list)


def load_released(module: nn.Module, state_dict: Mapping[str, Tensor]) -> Report:
    """Load published weights by name, also from a wrapped network; the report tells what did not load.

    What no output depends on may be absent.
    """
    given = {name: tensor for name, (_, tensor) in published.own_names(state_dict).items()}
    own = module.state_dict()
    fits = {name: given[name] for name in own if name in given and given[name].shape == own[name].shape}
    module.load_state_dict(fits, strict=False)
    missing = [name for name in own if name not in fits and not name.startswith(getattr(module, "UNUSED", ()))]
    return Report(list(fits), missing, [name for name in given if name not in own])
