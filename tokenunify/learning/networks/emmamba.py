"""EMmamba: a U-Net whose encoder reads its maps as tokens with tri-directional Mamba blocks (TokenUnify's network).

Letters: b batch, c channels, z y x the extent of a map, l its tokens; f features and h hidden of the description.

    raw -> vit: per stage [down-sampling -> GSC -> token layers] -> the next stage
                                                              \\-> norm, MLP: the side output
    raw -> encoder1, side outputs -> encoder2 .. -> skips;   the last -> decoder5 .. decoder2 with the skips -> decoder1

The modules carry the names of the published weights. Instance normalisation has neither learned parameters nor
running statistics.
"""

from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenunify.config import EMmamba as Config
from tokenunify.config import validate
from tokenunify.errors import InputError
from tokenunify.geometry import Coordinate
from tokenunify.learning.mamba import Mamba
from tokenunify.learning.networks.base import Network
from tokenunify.learning.networks.layers import ResBlock, UpBlock, convolution, instance_norm, named
from tokenunify.learning.networks.recompute import Stage
from tokenunify.learning.networks.released import check_keys, per_axis


class Gsc(Stage):
    """Gated spatial convolution (SegMamba): 3x3x3 and 1x1x1 branches, and a shortcut; keeps the map's shape."""

    def __init__(self, channels: int):
        super().__init__()
        self.proj = nn.Conv3d(channels, channels, 3, padding=1)
        self.proj2 = nn.Conv3d(channels, channels, 3, padding=1)
        self.proj3 = nn.Conv3d(channels, channels, 1)
        self.proj4 = nn.Conv3d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        left = normal_relu(self.proj2(normal_relu(self.proj(x))))
        right = normal_relu(self.proj3(x))
        return normal_relu(self.proj4(left + right)) + x


def normal_relu(x: Tensor) -> Tensor:
    """Instance normalisation and ReLU."""
    return F.relu(instance_norm(x), inplace=True)


class TokenLayer(Stage):
    """Layer normalisation and Mamba over the tokens of a map (b, c, z, y, x); the published layer has no residual."""

    def __init__(self, channels: int, config: Config):
        super().__init__()
        self.residual = config.residual
        self.norm = nn.LayerNorm(channels)
        slices: int | Literal["sections"] = 5 if config.slices == "fifths" else "sections"
        self.mamba = Mamba(channels, slices=slices, equal_initialisation=config.equal_initialisation)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)  # (b, l, c) in raster order
        y = self.mamba(self.norm(tokens), x.shape[2:]).transpose(1, 2).unflatten(2, x.shape[2:])
        return x + y if self.residual else y.contiguous()


class Mlp(Stage):
    """Two 1x1x1 convolutions with a GELU between."""

    def __init__(self, channels: int):
        super().__init__()
        self.fc1 = nn.Conv3d(channels, 2 * channels, 1)
        self.fc2 = nn.Conv3d(2 * channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Trunk(nn.Module):
    """The encoder: raw (b, c_in, z, y, x) -> one side output per stage, (b, f[stage], ...)."""

    def __init__(self, config: Config, in_channels: int):
        super().__init__()
        features, strides = config.features, config.strides
        first = nn.Conv3d(in_channels, features[0], (1, 7, 7), stride=strides[0], padding=(0, 3, 3))
        self.downsample_layers = nn.ModuleList([nn.Sequential(first)])
        for c_in, c_out, stride in zip(features, features[1:], strides[1:], strict=False):
            down = nn.Conv3d(c_in, c_out, (1, *stride[1:]), stride=stride)
            # one channel per group: instance normalisation, see blocks.instance_norm
            self.downsample_layers.append(nn.Sequential(nn.GroupNorm(c_in, c_in, affine=False), down))
        self.gscs = nn.ModuleList([Gsc(c) for c in features])
        self.stages = nn.ModuleList(
            nn.Sequential(*(TokenLayer(c, config) for _ in range(depth)))
            for c, depth in zip(features, config.depths, strict=True)
        )
        self.mlps = nn.ModuleList([Mlp(c) for c in features])

    def forward(self, x: Tensor) -> list[Tensor]:
        sides = []
        for down, gsc, stage, mlp in zip(self.downsample_layers, self.gscs, self.stages, self.mlps, strict=True):
            x = stage(gsc(down(x)))
            sides.append(mlp(instance_norm(x)))
        return sides


class EMmamba(Network):
    """The whole network."""

    HEAD = ("out.",)
    MEMORY_FORMAT = torch.contiguous_format  # instance normalisation is several times slower in the other
    PARTS: Mapping[str, tuple[str, ...]] = {
        "mamba": ("vit.stages.",),
        "encoder": ("vit.downsample_layers.", "vit.gscs.", "vit.mlps.", "encoder"),
        "decoder": ("decoder",),
    }

    def __init__(self, config: Config, out_channels: int, in_channels: int = 1):
        super().__init__(config)
        features, kernel = config.features, config.kernel
        self.feature_channels = features[0]
        self.vit = Trunk(config, in_channels)
        widths = [in_channels, *features, config.hidden]
        outputs = [features[0], *widths[2:]]  # of encoder1, encoder2, ...
        for level, (c_in, c_out) in enumerate(zip(widths, outputs, strict=False), start=1):
            self.add_module(f"encoder{level}", named("layer", ResBlock(c_in, c_out, kernel)))
        for level in range(len(features) + 1, 1, -1):
            c_in, c_out, stride = outputs[level - 1], outputs[level - 2], config.strides[level - 2]
            self.add_module(f"decoder{level}", UpBlock(c_in, c_out, kernel, stride))
        self.decoder1 = named("layer", ResBlock(features[0], features[0], kernel))
        self.out = named("conv", convolution(features[0], out_channels, (1, 1, 1), bias=True))

    def features(self, raw: Tensor) -> Tensor:
        maps = [raw, *self.vit(raw)]
        *skips, x = (self.get_submodule(f"encoder{level}")(m) for level, m in enumerate(maps, start=1))
        for level in range(len(skips) + 1, 1, -1):
            x = self.get_submodule(f"decoder{level}")(x, skips.pop())
        return self.decoder1(x)

    def head(self, features: Tensor, extent: Coordinate) -> Tensor:
        return self.out(features)


KEYS = {"feat_size": "features", "hidden_size": "hidden", "depths": "depths", "kernel_size": "kernel"}
"""Constructor keys of the published class that are keys of the description."""


def from_released(keys: dict) -> EMmamba:
    """The network that the published class builds from these constructor keys; its weights load by name."""
    keys = per_axis(keys)
    check_keys(keys, {"cls": ("SegMamba",)}, free=("in_chans", "out_chans", *KEYS))
    config = validate(Config, {KEYS[key]: value for key, value in keys.items() if key in KEYS}, "network")
    return EMmamba(config, keys.get("out_chans", 3), keys.get("in_chans", 1))


BLOCK_KEYS = {"d_state": "num_states", "d_conv": "kernel", "expand": "expand", "nslices": "slices"}
"""Constructor keys of the published class that are arguments of the block."""


def block_from_released(keys: dict) -> Mamba:
    """The block that the published class builds from these constructor keys; its weights load by name."""
    check_keys(keys, {"cls": ("Mamba",), "bimamba_type": ("v3",)}, free=("d_model", "dt_rank", *BLOCK_KEYS))
    if "d_model" not in keys:
        raise InputError("network.d_model: this key is required and was not found; add it")
    rank = keys.get("dt_rank", "auto")
    arguments = {BLOCK_KEYS[key]: value for key, value in keys.items() if key in BLOCK_KEYS}
    return Mamba(keys["d_model"], rank=None if rank == "auto" else rank, **arguments)
