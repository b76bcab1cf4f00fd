"""Networks by name: a plain description in, a torch module out."""

import torch

from tokenunify import config as c
from tokenunify.errors import InputError
from tokenunify.learning.networks import superhuman

NAMES = ("superhuman", "superhuman-released")


def build(config: dict, out_channels: int = 3) -> torch.nn.Module:
    """The network that `config` describes, freshly initialised from torch's global generator.

    `config` holds `name` and the keys of that network's class in tokenunify.config; for a `*-released` name the keys
    of the published class's constructor, which fix the channels too. The module maps raw in [0, 1], (b, 1, z, y, x),
    to `out_channels` affinities in [0, 1] of the same extent; its `logits` stop before the sigmoid.
    """
    name = config.get("name")
    if name == "superhuman":
        return superhuman.UNet(c.validate(c.Superhuman, config, "network"), out_channels)
    if name == "superhuman-released":
        return superhuman.from_released({key: value for key, value in config.items() if key != "name"})
    raise InputError(f"network.name: expected one of {list(NAMES)}, found {name!r}; correct it")
