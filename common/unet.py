"""The velocity network: a UNet of residual blocks with time (and label) embedding by scale and shift.

The blocks follow Ho et al. 2020 (DDPM) with the scale-and-shift conditioning of Dhariwal and Nichol 2021. With
`patch_size=2` the image enters through a pixel unshuffle, so that the heavy work happens at 16x16.
"""

from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from common.blocks import (
    CHANNELS_PER_GROUP,
    GroupNorm,
    ResidualBlock,
    SelfAttention,
    Upsample,
    time_features,
    zero_initialised,
)

SKIPS = ("concatenated", "added")

RETIRED_OPTIONS = {"normalisation": "group", "activation": "silu", "convolution_groups": 1, "middle_attention": False}
"""What a network could once choose, and the only value that is left of it.

The configurations of earlier checkpoints, the shipped ones among them, still name it.
"""


@dataclass(frozen=True)
class UNetConfig:
    """Everything that is needed to rebuild the network; stored as JSON in the header of its checkpoint."""

    image_size: int = 32
    image_channels: int = 3
    patch_size: int = 2
    widths: tuple[int, ...] = (64, 96, 112)
    """Channels of each resolution level; every level after the first halves the resolution."""
    blocks_per_level: int | tuple[int, ...] = 1
    """Residual blocks of each level on the way down, one more on the way up; one number for all levels, or one each."""
    skips: str = "concatenated"
    """How the way up takes what the way down left at its level: `concatenated` or `added` (after a 1x1 convolution)."""
    attention_levels: tuple[int, ...] = (1,)
    head_width: int = 32
    embedding_width: int = 128
    num_classes: int = 0
    """0 for an unconditional network. Otherwise labels are 0 ... num_classes - 1, and num_classes is the null label."""

    def __post_init__(self):
        # A config that was read back from JSON has lists where ours has tuples.
        object.__setattr__(self, "widths", tuple(self.widths))
        object.__setattr__(self, "attention_levels", tuple(self.attention_levels))
        if not isinstance(self.blocks_per_level, int):
            object.__setattr__(self, "blocks_per_level", tuple(self.blocks_per_level))
            if len(self.blocks_per_level) != len(self.widths):
                raise ValueError(f"blocks_per_level {self.blocks_per_level} is not one number for each of the widths")
        if self.skips not in SKIPS:
            raise ValueError(f"skips must be one of {', '.join(SKIPS)}, not {self.skips!r}")
        blocks = [self.blocks(level) for level in range(len(self.widths))]
        sizes = (self.image_size, self.image_channels, self.patch_size, self.head_width, *self.widths, *blocks)
        counts = (*sizes, self.embedding_width)
        if not self.widths or not all(isinstance(count, int) and count > 0 for count in counts):
            raise ValueError("sizes, widths and numbers of blocks must be whole numbers above 0")
        if self.embedding_width % 2:
            raise ValueError(f"embedding_width {self.embedding_width} is not even")
        smallest_step = self.patch_size * 2 ** (len(self.widths) - 1)
        if self.image_size % smallest_step:
            raise ValueError(f"image_size {self.image_size} is not a multiple of {smallest_step}")
        if any(width % CHANNELS_PER_GROUP for width in self.widths):
            raise ValueError(f"every width must be a multiple of {CHANNELS_PER_GROUP}, got {self.widths}")
        if not all(level in range(len(self.widths)) for level in self.attention_levels):
            raise ValueError(f"attention_levels {self.attention_levels} are not levels of {len(self.widths)} widths")
        if any(self.widths[level] % self.head_width for level in self.attention_levels):
            raise ValueError(f"the width of an attention level must be a multiple of head_width {self.head_width}")

    def blocks(self, level: int) -> int:
        return self.blocks_per_level if isinstance(self.blocks_per_level, int) else self.blocks_per_level[level]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return (self.image_channels, self.image_size, self.image_size)

    def to_dict(self) -> dict:
        return asdict(self)


def without_retired_options(config: dict) -> dict:
    """A configuration as `UNetConfig` takes it; one of a network that is gone keeps what is refused there."""
    return {name: value for name, value in config.items() if (name, value) not in RETIRED_OPTIONS.items()}


class AttendedBlock(nn.Module):
    """A residual block, followed by self-attention at the levels that have it."""

    def __init__(self, in_channels: int, out_channels: int, config: UNetConfig, attention: bool):
        super().__init__()
        self.block = ResidualBlock(in_channels, out_channels, config.embedding_width)
        self.attention = SelfAttention(out_channels, config.head_width) if attention else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        return self.attention(self.block(x, embedding))


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
            blocks = nn.ModuleList()
            for _ in range(config.blocks(level)):
                blocks.append(AttendedBlock(channels, width, config, level in config.attention_levels))
                channels = width
                skip_channels.append(channels)
            self.down.append(blocks)
            if level < len(widths) - 1:
                self.downsample.append(nn.Conv2d(channels, channels, 3, stride=2, padding=1))
                skip_channels.append(channels)

        # Without attention, and still no bare ResidualBlock: the names of the weights are those of the shipped files.
        self.middle = nn.ModuleList(AttendedBlock(channels, channels, config, attention=False) for _ in range(2))

        self.up = nn.ModuleList()
        self.skip_projections = nn.ModuleList()  # for added skips, in the order of the way up
        self.upsample = nn.ModuleList()
        for level, width in reversed(list(enumerate(widths))):
            blocks = nn.ModuleList()
            for _ in range(config.blocks(level) + 1):
                attention = level in config.attention_levels
                if config.skips == "added":
                    self.skip_projections.append(nn.Conv2d(skip_channels.pop(), channels, 1))
                    blocks.append(AttendedBlock(channels, width, config, attention))
                else:
                    blocks.append(AttendedBlock(channels + skip_channels.pop(), width, config, attention))
                channels = width
            self.up.append(blocks)
            if level > 0:
                self.upsample.append(Upsample(channels))

        self.final_norm = GroupNorm(channels)
        self.final_conv = zero_initialised(nn.Conv2d(channels, patch_channels, 3, padding=1))

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """The velocity (N, C, H, W) in fp32 at states x (N, C, H, W) and times t (N,) in [0, 1].

        `labels` (N,), int64: the class of each image, `num_classes` for no label; None means no label for all.
        An unconditional network ignores them.
        """
        embedding = self.embed(t, labels, len(x))
        hidden = self.stem(F.pixel_unshuffle(x, self.config.patch_size))

        skips = [hidden]
        for level, blocks in enumerate(self.down):
            for block in blocks:
                hidden = block(hidden, embedding)
                skips.append(hidden)
            if level < len(self.downsample):
                hidden = self.downsample[level](hidden)
                skips.append(hidden)

        for block in self.middle:
            hidden = block(hidden, embedding)

        projections = iter(self.skip_projections)
        for level, blocks in enumerate(self.up):
            for block in blocks:
                if self.config.skips == "added":
                    joined = hidden + next(projections)(skips.pop())
                else:
                    joined = torch.cat([hidden, skips.pop()], dim=1)
                hidden = block(joined, embedding)
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
