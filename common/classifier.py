"""A small convolutional classifier. What it learns of images is a space in which two of them can be compared.

After the networks of the CIFAR-10 speed runs (Jordan 2024, "94% on CIFAR-10 in 3.29 seconds"): few and wide
convolutions, pooled early, with batch normalisation and GELU, behind a first one that whitens patches of the image.
"""

from dataclasses import asdict, dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PATCH = 2
"""Pixels on a side of the patches that are whitened."""
WHITENING_WIDTH = 2 * 3 * PATCH**2
"""Channels of a whitening stem: a filter for each direction in the space of patches, and its negative."""
WHITENING_FLOOR = 1e-4
"""Added to the variances of the directions, of pixels in [-1, 1]: what is below is noise."""


@dataclass(frozen=True)
class ClassifierConfig:
    """Everything that is needed to rebuild the network; stored as JSON in the header of its checkpoint."""

    num_classes: int
    image_size: int = 32
    widths: tuple[int, ...] = (32, 64, 128, 256)
    """Channels of the stem, and of each level, which halves the resolution."""
    convolutions_per_level: int = 2
    residual: bool = False
    """Whether what follows a level's first convolution is added to it."""
    speed_run: bool = False
    """Whether it begins as the networks of the speed runs do: the stem's filters whiten patches of 2 x 2 pixels and are
    not learned, each convolution first passes on what it is given (Jordan 2024, sections 3.2 and 3.3), and logits are
    small, so that the head can be trained at the rate of the rest."""

    def __post_init__(self):
        object.__setattr__(self, "widths", tuple(self.widths))  # JSON has lists
        sizes = (self.image_size, self.convolutions_per_level, *self.widths)
        if len(self.widths) < 2 or not all(isinstance(size, int) and size > 0 for size in sizes):
            raise ValueError("sizes, two widths or more and numbers of convolutions must be whole numbers above 0")
        for name in ("residual", "speed_run"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} is true or false, not {getattr(self, name)!r}")
        if self.speed_run and self.widths[0] != WHITENING_WIDTH:
            raise ValueError(
                f"with speed_run the stem's width is {WHITENING_WIDTH}, not {self.widths[0]}; speed_run can be false"
            )
        left = (self.image_size - self.speed_run * (PATCH - 1)) >> (len(self.widths) - 1)
        if self.image_size % 2 ** (len(self.widths) - 1) or not left:
            raise ValueError(f"widths {self.widths} at image_size {self.image_size} are no network")

    def to_dict(self) -> dict:
        return asdict(self)


class Level(nn.Module):
    """Halves the resolution after its first convolution; the others keep what they are given."""

    def __init__(self, in_channels: int, out_channels: int, convolutions: int, residual: bool):
        super().__init__()
        channels = [in_channels, *[out_channels] * convolutions]
        self.convolutions = nn.ModuleList(
            nn.Conv2d(first, second, 3, padding=1, bias=False) for first, second in pairwise(channels)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(out_channels) for _ in range(convolutions))
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        x = entry = F.gelu(self.norms[0](F.max_pool2d(self.convolutions[0](x), 2)))
        for convolution, norm in zip(self.convolutions[1:], self.norms[1:], strict=True):
            x = F.gelu(norm(convolution(x)))
        return entry + x if self.residual and len(self.norms) > 1 else x


class Classifier(nn.Module):
    """Logits of the classes of an image, and on the way there its features."""

    def __init__(self, config: ClassifierConfig):
        super().__init__()
        self.config = config
        stem, *widths = config.widths
        self.stem = nn.Conv2d(3, stem, PATCH) if config.speed_run else nn.Conv2d(3, stem, 3, padding=1)
        self.levels = nn.ModuleList(
            Level(before, width, config.convolutions_per_level, config.residual)
            for before, width in pairwise(config.widths)
        )
        self.head = nn.Linear(widths[-1], config.num_classes)
        self.logit_scale = widths[-1] ** -0.5 if config.speed_run else 1.0
        if config.speed_run:
            self.stem.weight.requires_grad_(False)
            nn.init.zeros_(self.stem.bias)
            for level in self.levels:
                for convolution in level.convolutions:
                    nn.init.dirac_(convolution.weight[: convolution.in_channels].data)

    @torch.no_grad()
    def whiten(self, images: Tensor) -> None:
        """Makes the stem's filters the principal directions of the patches of images (N, 3, H, W) in [-1, 1].

        Each is scaled so that its output has variance 1, or less where there is little but noise. A network with
        `speed_run` needs that once, before training.
        """
        patches = F.unfold(images.contiguous(), PATCH).transpose(1, 2).flatten(0, 1)
        variances, directions = torch.linalg.eigh(torch.cov(patches.T))
        filters = directions.T / (variances[:, None] + WHITENING_FLOOR).sqrt()
        self.stem.weight.copy_(torch.cat([filters, -filters]).view_as(self.stem.weight))

    def features(self, images: Tensor) -> list[Tensor]:
        """Of images in [-1, 1]: maps (N, widths[k], size / 2^k, ...) after the stem (k = 0) and each level.

        `size` is that of the image, or with `speed_run` one pixel less, and halves are rounded down.
        """
        maps = [F.gelu(self.stem(images))]
        for level in self.levels:
            maps.append(level(maps[-1]))
        return maps

    def summary(self, images: Tensor) -> Tensor:
        """(N, D) in fp32: what is anywhere in an image, each level's channels' means, and the maxima of the last."""
        levels = [level.float() for level in self.features(images)[1:]]
        return torch.cat([*(level.mean(dim=(2, 3)) for level in levels), levels[-1].amax(dim=(2, 3))], dim=1)

    @property
    def summary_size(self) -> int:
        """D of `summary`."""
        return sum(self.config.widths[1:]) + self.config.widths[-1]

    def embedding(self, images: Tensor) -> Tensor:
        """(N, widths[-1]): the last map's largest value in each channel, from which the head tells the classes."""
        return self.features(images)[-1].amax(dim=(2, 3))

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, num_classes) in fp32 of images (N, C, H, W) in [-1, 1]."""
        return self.logit_scale * self.head(self.embedding(images)).float()
