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


def zero_initialised(module: nn.Module) -> nn.Module:
    """A residual branch that starts at zero makes its block start as the identity, so that deep networks train well."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


class ResidualBlock(nn.Module):
    """Two convolutions around a scale and shift by the embedding (N, embedding_width), added to a shortcut."""

    def __init__(self, in_channels: int, out_channels: int, embedding_width: int):
        super().__init__()
        self.norm1 = GroupNorm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.modulation = nn.Linear(embedding_width, 2 * out_channels)
        self.norm2 = GroupNorm(out_channels)
        self.conv2 = zero_initialised(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        same = in_channels == out_channels
        self.shortcut = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        hidden = self.conv1(F.silu(self.norm1(x)))
        scale, shift = self.modulation(embedding)[:, :, None, None].chunk(2, dim=1)
        hidden = torch.addcmul(shift, self.norm2(hidden), 1 + scale)
        return self.shortcut(x) + self.conv2(F.silu(hidden))


class SelfAttention(nn.Module):
    """Multi-head self-attention over the positions of a feature map.

    Written as two matrix products and a softmax: at 64 to 256 tokens the backward pass of the fused CPU kernel
    (`scaled_dot_product_attention`) in bf16 is several times slower than this.
    """

    def __init__(self, channels: int, head_width: int):
        super().__init__()
        self.num_heads = channels // head_width
        self.norm = GroupNorm(channels)
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
