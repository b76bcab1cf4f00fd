"""Weights and training states on disk: written in one step, and enough to rebuild the network."""

import hashlib
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import BufferedRandom, BufferedReader
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tokenunify.errors import InputError
from tokenunify.learning import networks, published_weights
from tokenunify.learning.networks.base import Network
from tokenunify.store import forms, manifest

WEIGHTS = "weights.safetensors"
DIGEST = 32
"""Bytes of a SHA-256."""


def save_weights(path: Path, state_dict: Mapping[str, Tensor]) -> None:
    """Replace a safetensors file in one step."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state_dict.items()}
    manifest.replace(path, lambda temporary: save_file(tensors, temporary))


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Replace a training state (tensors, numbers, strings and containers of them) in one step.

    The file begins with the SHA-256 of its folder's name, which is the training's, and of all that follows, what
    torch.save writes.
    """

    def write(temporary: Path) -> None:
        with open(temporary, "w+b") as file:
            file.write(bytes(DIGEST))
            torch.save(state, file)
            file.seek(DIGEST)
            found = _digest(path, file)
            file.seek(0)
            file.write(found)

    manifest.replace(path, write)


def _digest(path: Path, rest: BufferedReader | BufferedRandom) -> bytes:
    return hashlib.file_digest(rest, lambda: hashlib.sha256(path.parent.name.encode())).digest()


def load_state(path: Path) -> dict[str, Any]:
    """A training state on the CPU, as it was saved; nothing but tensors, numbers, strings and containers is accepted.

    Raises InputError for any other file: a damaged state, or another training's, would go on as another training.
    """
    with open(path, "rb") as file:
        recorded = file.read(DIGEST)
        if _digest(path, file) != recorded:
            raise damaged(path)
        file.seek(DIGEST)
        return torch.load(file, map_location="cpu", weights_only=True)


def damaged(path: Path) -> InputError:
    """What to say of a file of a training whose checksum is not the recorded one."""
    return InputError(
        f"{path} is damaged or of another training (its SHA-256 is not the recorded one): delete the training's folder "
        f"with `rm -r {shlex.quote(str(path.parent))}` and run snakemake again, to train again from the start"
    )


def read_weights(weights: Path, form: type[forms.Form] = forms.Weights) -> tuple[dict[str, Tensor], dict]:
    """The tensors that a `weights.json` describes, and its content.

    They are read from the safetensors file beside it, whose checksum must be the recorded one.
    """
    content, path = manifest.content(weights, form), weights.with_name(WEIGHTS)
    if not path.exists():
        raise InputError(f"{path} does not exist: {_again(weights)}")
    if (found := manifest.file_sha256(path)) != content["weights"]:
        raise InputError(
            f"{path} has SHA-256 {found}, expected {content['weights']} as in {weights.name}: {_again(weights)}"
        )
    return load_file(path), content


def rebuild(weights: Path) -> tuple[Network, dict]:
    """The trained network that a `weights.json` describes, in evaluation mode, and the manifest's content."""
    tensors, content = read_weights(weights, forms.Finetuned)
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
    given = {name: tensor for name, (_, tensor) in published_weights.own_names(state_dict).items()}
    own = module.state_dict()
    fits = {name: given[name] for name in own if name in given and given[name].shape == own[name].shape}
    module.load_state_dict(fits, strict=False)
    missing = [name for name in own if name not in fits and not name.startswith(getattr(module, "UNUSED", ()))]
    return Report(list(fits), missing, [name for name in given if name not in own])
