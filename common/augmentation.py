"""Random changes to a batch of images that leave what they show as it was."""

import torch
import torch.nn.functional as F
from torch import Tensor


def flip(images: Tensor, flips: Tensor) -> Tensor:
    """Mirrors left and right where `flips` (N,) is true."""
    return torch.where(flips.reshape(-1, *[1] * (images.dim() - 1)), images.flip(-1), images)


def random_flips(count: int, enabled: bool, generator: torch.Generator) -> Tensor:
    """For each of `count` samples, whether it is mirrored."""
    return (torch.rand(count, generator=generator, device=generator.device) < 0.5) & enabled


def random_crops(images: Tensor, padding: int, generator: torch.Generator) -> Tensor:
    """Images (n, C, H, W), each shifted by up to `padding` pixels in both directions; what comes in is mirrored."""
    if not padding:
        return images
    count, _, height, width = images.shape
    padded = F.pad(images, [padding] * 4, mode="reflect")
    shifts = torch.randint(2 * padding + 1, (2, count, 1), generator=generator, device=images.device)
    rows = shifts[0] + torch.arange(height, device=images.device)
    columns = shifts[1] + torch.arange(width, device=images.device)
    samples = torch.arange(count, device=images.device)[:, None, None]
    return padded[samples, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def cutout(images: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Images (n, C, H, W) in [-1, 1], a square of `size` pixels made grey around any pixel of each, edges included.

    What is left of the square at an edge is smaller (DeVries and Taylor 2017).
    """
    if not size:
        return images
    count, _, height, width = images.shape

    def covered(length: int) -> Tensor:
        centre = torch.randint(length, (count, 1), generator=generator, device=images.device)
        offset = torch.arange(length, device=images.device) - centre + size // 2
        return (offset >= 0) & (offset < size)

    squares = covered(height)[:, None, :, None] & covered(width)[:, None, None, :]
    return images.masked_fill(squares, 0)
