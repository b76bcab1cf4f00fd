"""Networks by name: a plain description in, a torch module out."""

from collections.abc import Sequence

from tokenunify import config as c
from tokenunify.errors import InputError
from tokenunify.geometry import Coordinate
from tokenunify.learning.networks import emmamba, mala, pea, resunet, superhuman, unetr, vit
from tokenunify.learning.networks.base import Network

BUILDERS = {
    "superhuman": superhuman.UNet,
    "mala": mala.UNet,
    "pea": superhuman.UNet,
    "unetr": unetr.UNETR,
    **{name: emmamba.EMmamba for name, description in c.NETWORKS.items() if description is c.EMmamba},
    "resunet": resunet.UNet,
    "vit": vit.ViT,
}
"""Class of each name: (description, number of output channels) -> network."""
COMPARING = {"pea": pea.AffinityNetwork}
"""Classes whose affinities compare two voxels: (description, offsets) -> network."""
RELEASED = {
    "superhuman-released": superhuman.from_released,
    "mala-released": mala.from_released,
    "pea-released": pea.from_released,
    "pea-deep-released": pea.deep_from_released,
    "unetr-released": unetr.from_released,
    "emmamba-released": emmamba.from_released,
}
"""Builder of each published class from its constructor's keys, which fix the channels too."""
BLOCKS = {"mamba-v3-released": emmamba.block_from_released}
"""The same for published classes that are a part of a network."""


def build(config: dict, offsets: Sequence[Coordinate] | None = c.NEAREST) -> Network:
    """The network that `config` describes, freshly initialised from torch's global generator.

    `config` holds `name` and the keys of that network's class in tokenunify.config; for a `*-released` name the keys
    of the published class's constructor. The module maps raw in [0, 1], (b, 1, z, y, x), to affinities in [0, 1],
    one channel per offset; offsets=None gives it a head that predicts raw intensities, for pre-training.
    """
    name = config.get("name")
    if name in BUILDERS:
        description = c.validate(c.NETWORKS[name], config, "network")
        if name in COMPARING and offsets is not None:
            assert isinstance(description, c.Pea)
            return COMPARING[name](description, offsets)
        return BUILDERS[name](description, 1 if offsets is None else len(offsets))
    keys = {key: value for key, value in config.items() if key != "name"}
    if name in RELEASED:
        return RELEASED[name](keys)
    if name in BLOCKS:
        return BLOCKS[name](keys)  # type: ignore[return-value]  # a block alone, which nothing trains or predicts with
    raise InputError(f"network.name: expected one of {[*BUILDERS, *RELEASED, *BLOCKS]}, found {name!r}; correct it")
