"""UNETR: transformer encoder, convolutional decoder (Hatamizadeh et al., 2022, arXiv:2103.10504), in its EM form.

Letters: b batch, c channels, f the feature maps at full resolution; level i is 2^i times coarser than the crop in y, x.

    patches -> tokens -> layers, of which four hand their tokens on as maps (b, hidden, z / 4, y / 16, x / 16):
    encoder2, 3, 4 and decoder5 make them finer, decoder4, 3 and 2 join them; encoder1 sees the raw crop itself.

No position is added to the tokens, as in the published network, so any crop that patches divide will do. Every step
makes a map twice as fine in each axis, which is too fine in those where a patch is short: `dtrans`, before the last
step, makes it coarser there.
"""

from collections.abc import Mapping
from math import prod

import torch
from torch import Tensor, nn

from tokenunify.config import Unetr, validate
from tokenunify.geometry import Coordinate
from tokenunify.learning.networks.base import Network
from tokenunify.learning.networks.layers import ResBlock, UpBlock, convolution, named, upsampling
from tokenunify.learning.networks.recompute import Stage
from tokenunify.learning.networks.released import check_keys, per_axis
from tokenunify.learning.networks.transformer import Transformer, to_patches

HEAD_WIDTH = 64
UNUSED_ATTENTION = 4096, 4
UNUSED_CLASSES = 1000
"""Sizes of published modules that no output depends on."""


class Encoder(nn.Module):
    """Raw (b, 1, z, y, x) to the tokens (b, n, hidden) behind every layer."""

    def __init__(self, config: Unetr):
        super().__init__()
        z, y, x = self.patch = config.patch
        self.to_patch_embedding = named("1", nn.Linear(z * y * x, config.hidden))
        self.dropout = nn.Dropout(config.dropout)
        self.transformer = Transformer(
            layers=config.layers,
            hidden=config.hidden,
            heads=config.heads,
            width=HEAD_WIDTH,
            mlp=config.mlp,
            dropout=config.dropout,
        )

    def forward(self, raw: Tensor) -> list[Tensor]:
        return self.transformer(self.dropout(self.to_patch_embedding(to_patches(raw, self.patch))))


class Refine(Stage):
    """A map of tokens, (b, c_in, z, y, x), made finer by 2 and then `steps` times by 2: (b, c_out, ...)."""

    def __init__(self, c_in: int, c_out: int, kernel: Coordinate, steps: int):
        super().__init__()
        self.transp_conv_init = upsampling(c_in, c_out)
        self.blocks = nn.ModuleList(
            nn.Sequential(upsampling(c_out, c_out), ResBlock(c_out, c_out, kernel)) for _ in range(steps)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.transp_conv_init(x)
        for block in self.blocks:
            x = block(x)
        return x


class UNETR(Network):
    """The whole network."""

    HEAD = ("out.",)
    MEMORY_FORMAT = torch.contiguous_format  # instance normalisation is several times slower in the other
    PARTS: Mapping[str, tuple[str, ...]] = {
        "encoder": ("vit.", *(f"encoder{i}." for i in range(1, 5))),
        "decoder": (*(f"decoder{i}." for i in range(2, 6)), "dtrans."),
    }

    def __init__(self, config: Unetr, out_channels: int):
        super().__init__(config)
        f, hidden, kernel = config.feature, config.hidden, config.kernel
        self.patch, self.feature_channels = config.patch, f
        self.handed_on = [*(k * config.layers // 4 for k in (1, 2, 3)), config.layers - 1]
        self.vit = Encoder(config)
        self.encoder1 = named("layer", ResBlock(1, f, kernel))
        self.encoder2 = Refine(hidden, 2 * f, kernel, steps=2)
        self.encoder3 = Refine(hidden, 4 * f, kernel, steps=1)
        self.encoder4 = Refine(hidden, 8 * f, kernel, steps=0)
        self.decoder5 = UpBlock(hidden, 8 * f, kernel)
        self.decoder4 = UpBlock(8 * f, 4 * f, kernel)
        self.decoder3 = UpBlock(4 * f, 2 * f, kernel)
        z, y, x = (config.REFINEMENT // p for p in config.patch)
        self.dtrans = nn.Conv3d(2 * f, 2 * f, 3, stride=(z, y, x), padding=1, bias=False)
        self.decoder2 = UpBlock(2 * f, f, kernel)
        self.out = named("conv", convolution(f, out_channels, (1, 1, 1), bias=True))

    def features(self, raw: Tensor) -> Tensor:
        tokens = self.vit(raw)
        grid = [n // p for n, p in zip(raw.shape[2:], self.patch, strict=True)]
        fine, middle, coarse, last = (tokens[i].transpose(1, 2).unflatten(2, grid) for i in self.handed_on)
        x = self.decoder5(last, self.encoder4(coarse))
        x = self.decoder4(x, self.encoder3(middle))
        x = self.decoder3(x, self.encoder2(fine))
        return self.decoder2(self.dtrans(x), self.encoder1(raw))

    def head(self, features: Tensor, extent: Coordinate) -> Tensor:
        return self.out(features)


class Released(UNETR):
    """The network with the parameters that the published class registers and never uses."""

    UNUSED = ("mha.", "vit.pos_embedding", "vit.cls_token", "vit.mlp_head.")

    def __init__(self, config: Unetr, out_channels: int, image: Coordinate):
        super().__init__(config, out_channels)
        hidden, tokens = config.hidden, prod(image) // prod(config.patch)
        self.vit.pos_embedding = nn.Parameter(torch.randn(1, tokens + 1, hidden))
        self.vit.cls_token = nn.Parameter(torch.randn(1, 1, hidden))
        self.vit.mlp_head = nn.Sequential(nn.LayerNorm(hidden), nn.Linear(hidden, UNUSED_CLASSES))
        self.mha = nn.MultiheadAttention(*UNUSED_ATTENTION)


NAMES = {
    "feature_size": "feature",
    "hidden_size": "hidden",
    "mlp_dim": "mlp",
    "num_heads": "heads",
    "patch_size": "patch",
    "kernel_size": "kernel",
}
"""Constructor keys of the published class, and ours."""
WITHOUT_EFFECT = ("pos_embed", "dropout_rate", "skip_connection")


def from_released(keys: dict) -> Released:
    """The network that the published class builds from these constructor keys; its weights load by name."""
    covered = {
        "cls": ("UNETR",),
        "in_channels": (1,),
        "norm_name": ("instance",),
        "conv_block": (True,),
        "res_block": (True,),
        "show_feature": (False,),
    }
    keys = per_axis(keys)
    check_keys(keys, covered, free=(*NAMES, *WITHOUT_EFFECT, "out_channels", "img_size"))
    config = validate(Unetr, {own: keys[key] for key, own in NAMES.items() if key in keys}, "network")
    z, y, x = keys.get("img_size", config.CROP)
    return Released(config, keys.get("out_channels", 3), (z, y, x))
