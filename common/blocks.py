"""What the velocity network is built of: residual blocks, self-attention, their norms, and the features of time."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CHANNELS_PER_GROUP = 16


class GroupNorm(nn.GroupNorm):
    """Group normalisation (Wu and He 2018), in groups of CHANNELS_PER_GROUP channels."""

    def __init__(self, channels: int):
        super().__init__(channels // CHANNELS_PER_GROUP, channels)


class ChannelRMSNorm(nn.Module):
    """Divides the channels of each position by their root mean square, and scales each channel."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        # Channels-last makes the channels of a position neighbours in memory: torch's own kernel then applies.
        # Its fused form also wants the weight in the type of its input, which autocast on a CPU leaves to us.
        normalised = F.rms_norm(x.permute(0, 2, 3, 1), self.weight.shape, self.weight.to(x.dtype))
        return normalised.permute(0, 3, 1, 2)


class ChannelLayerNorm(nn.LayerNorm):
    """Layer normalisation over the channels of each position (as in ConvNeXt, Liu et al. 2022)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


NORMALISATIONS = {"group": GroupNorm, "layer": ChannelLayerNorm, "rms": ChannelRMSNorm, "magnitude": ChannelRMSNorm}
"""Outside the residual blocks a magnitude-preserving network normalises as the RMS one does."""


ACTIVATIONS = {"silu": F.silu, "hardswish": F.hardswish, "relu": F.relu}


def convolution(in_channels: int, out_channels: int, groups: int) -> nn.Module:
    """A 3x3 convolution; in groups (0: one for each channel), it is followed by a 1x1 convolution across them."""
    if groups == 1:
        return nn.Conv2d(in_channels, out_channels, 3, padding=1)
    return nn.Sequential(
        nn.Conv2d(in_channels, in_channels, 3, padding=1, groups=groups or in_channels),
        nn.Conv2d(in_channels, out_channels, 1),
    )


def zero_initialised(module: nn.Module) -> nn.Module:
    """A residual branch that starts at zero makes its block start as the identity, so that deep networks train well."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


class ResidualBlock(nn.Module):
    """Two convolutions around a scale and shift by the embedding (N, embedding_width), added to a shortcut."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        embedding_width: int,
        normalisation: str = "group",
        activation: str = "silu",
        groups: int = 1,
    ):
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        norm = NORMALISATIONS[normalisation]
        self.norm1 = norm(in_channels)
        self.conv1 = convolution(in_channels, out_channels, groups)
        self.modulation = nn.Linear(embedding_width, 2 * out_channels)
        self.norm2 = norm(out_channels)
        self.conv2 = convolution(out_channels, out_channels, groups)
        zero_initialised(self.conv2 if groups == 1 else self.conv2[-1])
        same = in_channels == out_channels
        self.shortcut = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        hidden = self.conv1(self.activation(self.norm1(x)))
        scale, shift = self.modulation(embedding)[:, :, None, None].chunk(2, dim=1)
        hidden = torch.addcmul(shift, self.norm2(hidden), 1 + scale)
        return self.shortcut(x) + self.conv2(self.activation(hidden))


class MagnitudePreservingConv2d(nn.Conv2d):
    """A convolution without bias whose kernels have unit norm, whatever the optimiser makes of their length."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, F.normalize(self.weight, dim=(1, 2, 3)), None)


class MagnitudePreservingBlock(nn.Module):
    """A residual block whose weights keep its activations at size 1 (after Karras et al. 2024, EDM2).

    Only its input is normalised. The kernels have unit norm, SiLU is divided by what it does to the size of normal
    values, and the sum of shortcut and branch is weighted so that the sum of two unrelated ones keeps theirs.
    """

    SILU_SIZE = 0.596
    BRANCH_SHARE = 0.3

    def __init__(self, in_channels: int, out_channels: int, embedding_width: int):
        super().__init__()
        self.conv1 = MagnitudePreservingConv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.modulation = zero_initialised(nn.Linear(embedding_width, out_channels))
        self.conv2 = MagnitudePreservingConv2d(out_channels, out_channels, 3, padding=1, bias=False)
        same = in_channels == out_channels
        self.shortcut = nn.Identity() if same else MagnitudePreservingConv2d(in_channels, out_channels, 1, bias=False)

    def branch(self, x: Tensor, embedding: Tensor) -> Tensor:
        hidden = self.conv1(F.silu(x) / self.SILU_SIZE)
        hidden = hidden * (1 + self.modulation(embedding)[:, :, None, None])
        return self.conv2(F.silu(hidden) / self.SILU_SIZE)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        x = F.rms_norm(x.permute(0, 2, 3, 1), (x.shape[1],)).permute(0, 3, 1, 2)
        share = self.BRANCH_SHARE
        return ((1 - share) * self.shortcut(x) + share * self.branch(x, embedding)) / math.hypot(share, 1 - share)


class SelfAttention(nn.Module):
    """Multi-head self-attention over the positions of a feature map.

    Written as two matrix products and a softmax: at 64 to 256 tokens the backward pass of the fused CPU kernel
    (`scaled_dot_product_attention`) in bf16 is several times slower than this.
    """

    def __init__(self, channels: int, head_width: int, normalisation: str = "group"):
        super().__init__()
        self.num_heads = channels // head_width
        self.norm = NORMALISATIONS[normalisation](channels)
        self.query_key_value = nn.Conv2d(channels, 3 * channels, 1)
        self.projection = zero_initialised(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        head_width = channels // self.num_heads
        projected = self.query_key_value(self.norm(x)).flatten(2).transpose(1, 2)  # (N, tokens, 3 C)
        projected = projected.reshape(batch, height * width, 3, self.num_heads, head_width)
        query, key, value = projected.permute(2, 0, 3, 1, 4)  # each (N, heads, tokens, head width)
        query = query / math.sqrt(head_width)  # before the product, which has more values than the query
        weights = torch.softmax(query @ key.transpose(-1, -2), dim=-1)
        attended = (weights @ value).transpose(1, 2).reshape(batch, height, width, channels)
        return x + self.projection(attended.permute(0, 3, 1, 2))


class Upsample(nn.Module):
    """Every position four times, and a convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


def time_features(t: Tensor, width: int) -> Tensor:
    """Sinusoidal features (N, width) of times t (N,) in [0, 1] (Vaswani et al. 2017, with t scaled to 0 ... 1000)."""
    half = width // 2
    frequencies = torch.exp(-math.log(10000.0) * torch.arange(half, device=t.device, dtype=torch.float32) / half)
    angles = 1000.0 * t.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)
