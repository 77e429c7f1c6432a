"""The velocity network: a UNet of residual blocks with time (and label) embedding by scale and shift.

The blocks follow Ho et al. 2020 (DDPM) with the scale-and-shift conditioning of Dhariwal and Nichol 2021. With
`patch_size=2` the image enters through a pixel unshuffle, so that the heavy work happens at 16x16.
"""

import math
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

CHANNELS_PER_GROUP = 16


@dataclass(frozen=True)
class UNetConfig:
    """Everything that is needed to rebuild the network; stored as JSON in the header of its checkpoint."""

    image_size: int = 32
    image_channels: int = 3
    patch_size: int = 2
    widths: tuple[int, ...] = (64, 96, 112)
    """Channels of each resolution level; every level after the first halves the resolution."""
    blocks_per_level: int = 1
    attention_levels: tuple[int, ...] = (1,)
    head_width: int = 32
    embedding_width: int = 128
    num_classes: int = 0
    """0 for an unconditional network. Otherwise labels are 0 ... num_classes - 1, and num_classes is the null label."""

    def __post_init__(self):
        # A config that was read back from JSON has lists where ours has tuples.
        object.__setattr__(self, "widths", tuple(self.widths))
        object.__setattr__(self, "attention_levels", tuple(self.attention_levels))
        smallest_step = self.patch_size * 2 ** (len(self.widths) - 1)
        if self.image_size % smallest_step:
            raise ValueError(f"image_size {self.image_size} is not a multiple of {smallest_step}")
        if any(width % CHANNELS_PER_GROUP for width in self.widths):
            raise ValueError(f"every width must be a multiple of {CHANNELS_PER_GROUP}, got {self.widths}")
        if any(self.widths[level] % self.head_width for level in self.attention_levels):
            raise ValueError(f"the width of an attention level must be a multiple of head_width {self.head_width}")

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return (self.image_channels, self.image_size, self.image_size)

    def to_dict(self) -> dict:
        return asdict(self)


def group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(channels // CHANNELS_PER_GROUP, channels)


def zero_initialised(module: nn.Module) -> nn.Module:
    """A residual branch that starts at zero makes its block start as the identity, so that deep networks train well."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


class ResidualBlock(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, embedding_width: int):
        super().__init__()
        self.norm1 = group_norm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.modulation = nn.Linear(embedding_width, 2 * out_channels)
        self.norm2 = group_norm(out_channels)
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
        self.norm = group_norm(channels)
        self.query_key_value = nn.Conv2d(channels, 3 * channels, 1)
        self.projection = zero_initialised(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        head_width = channels // self.num_heads
        projected = self.query_key_value(self.norm(x)).flatten(2).transpose(1, 2)  # (N, tokens, 3 C)
        projected = projected.reshape(batch, height * width, 3, self.num_heads, head_width)
        query, key, value = projected.permute(2, 0, 3, 1, 4)  # each (N, heads, tokens, head width)
        weights = torch.softmax(query @ key.transpose(-1, -2) / math.sqrt(head_width), dim=-1)
        attended = (weights @ value).transpose(1, 2).reshape(batch, height, width, channels)
        return x + self.projection(attended.permute(0, 3, 1, 2))


class Stage(nn.Module):
    """A residual block, followed by self-attention at the levels that have it."""

    def __init__(self, in_channels: int, out_channels: int, config: UNetConfig, attention: bool):
        super().__init__()
        self.block = ResidualBlock(in_channels, out_channels, config.embedding_width)
        self.attention = SelfAttention(out_channels, config.head_width) if attention else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        return self.attention(self.block(x, embedding))


class Upsample(nn.Module):
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


class UNet(nn.Module):
    """u(x, t, label): predicts the velocity dx/dt of the flow at state x and time t."""

    def __init__(self, config: UNetConfig):
        super().__init__()
        self.config = config
        embedding_width, widths = config.embedding_width, config.widths

        self.time_embedding = nn.Sequential(
            nn.Linear(embedding_width, embedding_width), nn.SiLU(), nn.Linear(embedding_width, embedding_width)
        )
        if config.num_classes:
            self.label_embedding = nn.Embedding(config.num_classes + 1, embedding_width)  # the last row: no label

        patch_channels = config.image_channels * config.patch_size**2
        self.stem = nn.Conv2d(patch_channels, widths[0], 3, padding=1)

        self.down = nn.ModuleList()
        self.downsample = nn.ModuleList()
        channels, skip_channels = widths[0], [widths[0]]
        for level, width in enumerate(widths):
            stages = nn.ModuleList()
            for _ in range(config.blocks_per_level):
                stages.append(Stage(channels, width, config, level in config.attention_levels))
                channels = width
                skip_channels.append(channels)
            self.down.append(stages)
            if level < len(widths) - 1:
                self.downsample.append(nn.Conv2d(channels, channels, 3, stride=2, padding=1))
                skip_channels.append(channels)

        self.middle = nn.ModuleList([Stage(channels, channels, config, attention=False) for _ in range(2)])

        self.up = nn.ModuleList()
        self.upsample = nn.ModuleList()
        for level, width in reversed(list(enumerate(widths))):
            stages = nn.ModuleList()
            for _ in range(config.blocks_per_level + 1):
                stages.append(Stage(channels + skip_channels.pop(), width, config, level in config.attention_levels))
                channels = width
            self.up.append(stages)
            if level > 0:
                self.upsample.append(Upsample(channels))

        self.final_norm = group_norm(channels)
        self.final_conv = zero_initialised(nn.Conv2d(channels, patch_channels, 3, padding=1))

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """The velocity (N, C, H, W) in fp32 at states x (N, C, H, W) and times t (N,) in [0, 1].

        `labels` (N,), int64: the class of each image, `num_classes` for no label; None means no label for all.
        An unconditional network ignores them.
        """
        embedding = self.embed(t, labels, len(x))
        hidden = self.stem(F.pixel_unshuffle(x, self.config.patch_size))

        skips = [hidden]
        for level, stages in enumerate(self.down):
            for stage in stages:
                hidden = stage(hidden, embedding)
                skips.append(hidden)
            if level < len(self.downsample):
                hidden = self.downsample[level](hidden)
                skips.append(hidden)

        for stage in self.middle:
            hidden = stage(hidden, embedding)

        for level, stages in enumerate(self.up):
            for stage in stages:
                hidden = stage(torch.cat([hidden, skips.pop()], dim=1), embedding)
            if level < len(self.upsample):
                hidden = self.upsample[level](hidden)

        patches = self.final_conv(F.silu(self.final_norm(hidden)))
        return F.pixel_shuffle(patches, self.config.patch_size).float()

    def embed(self, t: Tensor, labels: Tensor | None, batch_size: int) -> Tensor:
        embedding = self.time_embedding(time_features(t, self.config.embedding_width))
        if self.config.num_classes:
            if labels is None:
                labels = torch.full((batch_size,), self.config.num_classes, device=t.device)
            embedding = embedding + self.label_embedding(labels)
        return F.silu(embedding)


def count_values(model: nn.Module) -> int:
    """Parameters and buffers together: what a checkpoint stores."""
    return sum(tensor.numel() for tensor in model.state_dict().values())


def count_forward_flop(model: UNet) -> int:
    """Floating-point operations of one evaluation for one image, two to a multiply-add (torch's own count)."""
    parameter = next(model.parameters())
    image = torch.zeros(1, *model.config.image_shape, device=parameter.device)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(image, torch.zeros(1, device=parameter.device))
    return counter.get_total_flops()
