"""Read the tensors of a weights file that somebody else wrote, without running any code that it may hold."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy._core import multiarray
from safetensors.torch import load_file
from torch import Tensor

from tokenunify.errors import InputError

KEYS = ("model", "state_dict", "model_state_dict")
"""Where trainers put the state dict beside other things (Lightning: state_dict)."""
WRAPPERS = ("module.", "_orig_mod.", "model.")
"""What data-parallel training, torch.compile and Lightning put in front of a network's own names."""
NUMPY: list[Any] = [
    np.dtype,
    np.ndarray,
    *(type(np.dtype(code)) for code in np.typecodes["All"] if code not in "OV"),
    *(
        (function, f"{module}.{function.__name__}")
        for function in (multiarray.scalar, multiarray._reconstruct)
        for module in ("numpy._core.multiarray", "numpy.core.multiarray")  # numpy 2 and 1
    ),
]
"""What numpy's numbers and arrays, the best score say, are pickled with: data alone."""


def read(file: Path) -> dict[str, Tensor]:
    """Tensors by their published names, from a file of safetensors, or of torch.save.

    torch.save may have written the state dict by itself or under one of `KEYS`, beside numbers, strings and containers
    of them. Raises InputError for any other content.
    """
    try:
        if file.suffix == ".safetensors":
            value: Any = load_file(file)
        else:
            with torch.serialization.safe_globals(NUMPY):
                value = torch.load(file, "cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # a file that is no pickle, or a damaged one, can fail in any way
        # torch's own message advises to trust the file.
        if code := re.search(r"GLOBAL (\S+) was not an allowed global", str(error)):
            reason = (
                f"it holds an object of {code[1]}, which only code of the file could make; where it was written, "
                'save the tensors alone: torch.save({"model": network.state_dict()}, path)'
            )
        else:
            first = str(error).partition("\n")[0] or type(error).__name__
            reason = (
                "expected tensors by name, written by torch.save, or by safetensors under a name that ends in "
                f".safetensors, found something else or a damaged file ({first}); get it again"
            )
        raise InputError(f"{file} cannot be read: {reason}") from None
    found = next((value[key] for key in KEYS if key in value), value) if isinstance(value, dict) else value
    if isinstance(found, dict) and found and all(isinstance(item, Tensor) for item in found.values()):
        return found
    keys = list(value) if isinstance(value, dict) else type(value).__name__
    raise InputError(
        f"{file}: expected a state dict, tensors by name, by itself or under one of {list(KEYS)}, found {keys}"
    )


def own_name(published: str) -> str:
    """The name of a published tensor in the network itself, without what wrapped the network when it was saved."""
    name = published.replace("_orig_mod.", "")
    while name.startswith(WRAPPERS):
        name = name.partition(".")[2]
    return name


def own_names(tensors: Mapping[str, Tensor]) -> dict[str, tuple[str, Tensor]]:
    """Published name and tensor by own name; two tensors of one own name are refused."""
    named: dict[str, tuple[str, Tensor]] = {}
    for name, tensor in tensors.items():
        other, _ = named.setdefault(own_name(name), (name, tensor))
        if other != name:
            raise InputError(
                f"published weights have both {other} and {name} for the tensor {own_name(name)}; save one alone"
            )
    return named
