"""Which part of a network fine-tuning changes; the rest is frozen, and the head is always trained."""

import copy
from typing import Any

from torch import nn

from tokenunify.config import Lora
from tokenunify.learning.networks.base import Network

ADAPTER = "lora"
PROJECTIONS = ("in_proj", "x_proj", "dt_proj", "out_proj")
"""Linear layers of a Mamba block; those of the other directions have _b and _s behind the name."""


def train_only(network: Network, part: str, lora: Lora | None = None) -> None:
    """Freeze all but the head and the part: `all`, a part's name, several with + between them, or `lora`."""
    if part == "all":
        return
    prefixes = network.HEAD
    if lora is None:
        prefixes += tuple(prefix for name in part.split("+") for prefix in network.PARTS[name])
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name.startswith(prefixes))
    if lora is not None:
        adapt(network, lora)


def adapt(network: Network, lora: Lora) -> None:
    """Give every Mamba projection and every 1x1x1 convolution of the body an adapter, in place.

    The adapters begin without effect: A from torch's global generator, B zero.
    """
    from peft import LoraConfig  # peft takes seconds to import
    from peft.functional import inject_adapter_in_model

    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    alpha: Any = lora.alpha  # peft divides it by the rank; only its annotation says that it is an integer
    settings = LoraConfig(r=lora.rank, lora_alpha=alpha, target_modules=adaptable(network))
    inject_adapter_in_model(settings, network, ADAPTER)
    for parameter in trained:
        parameter.requires_grad_(True)  # the head, which peft has frozen


def adaptable(network: Network) -> list[str]:
    """Names of the layers that adapters go to."""
    names = []
    for name, module in network.named_modules():
        own = name.rpartition(".")[2].removesuffix("_b").removesuffix("_s")
        if isinstance(module, nn.Conv3d):
            adapted = module.kernel_size == module.stride == (1, 1, 1) and module.groups == 1
        else:
            adapted = isinstance(module, nn.Linear) and own in PROJECTIONS
        if adapted and not f"{name}.".startswith(network.HEAD):
            names.append(name)
    return names


def merged(network: Network) -> Network:
    """The network without adapters, each added to the layer that it adapts; the network itself where it has none."""
    adapted = [name for name, module in network.named_modules() if hasattr(module, "lora_A")]
    if not adapted:
        return network
    network = copy.deepcopy(network)
    for name in adapted:
        layer: Any = network.get_submodule(name)  # a layer of peft's, whose attributes torch knows nothing of
        down, up = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
        # peft's own merge takes no 1x1x1 convolution: it squeezes two of the three axes.
        change = layer.scaling[ADAPTER] * up.flatten(1) @ down.flatten(1)
        base = layer.get_base_layer()
        base.weight.data += change.view_as(base.weight)
        network.set_submodule(name, base)
    return network
