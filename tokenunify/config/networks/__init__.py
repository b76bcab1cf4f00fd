"""Networks: one class per architecture, its defaults the published form."""

from typing import Annotated, get_args

from pydantic import Field

from tokenunify.config.networks.base import Architecture
from tokenunify.config.networks.emmamba import EMmamba
from tokenunify.config.networks.transformers import Unetr, Vit
from tokenunify.config.networks.unets import Mala, Pea, ResUnet, Superhuman, SymmetricUNet

__all__ = [
    "NETWORKS",
    "Architecture",
    "EMmamba",
    "Mala",
    "Network",
    "Pea",
    "ResUnet",
    "Superhuman",
    "SymmetricUNet",
    "Unetr",
    "Vit",
]

Network = Annotated[Superhuman | Mala | Pea | Unetr | EMmamba | ResUnet | Vit, Field(discriminator="name")]
"""A network's description, told apart by its name."""

NETWORKS: dict[str, type[Architecture]] = {
    "superhuman": Superhuman,
    "mala": Mala,
    "pea": Pea,
    "unetr": Unetr,
    **dict.fromkeys(get_args(EMmamba.model_fields["name"].annotation), EMmamba),
    "resunet": ResUnet,
    "vit": Vit,
}
"""Class of each name."""
