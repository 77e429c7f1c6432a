"""Noise that depends on a seed and a sample's index alone, never on the batch size or the device."""

import zlib

import numpy as np
import torch
from torch import Tensor

BLOCK_SIZE = 64
"""Samples that share one generator; also the micro-batch of every sampler, since images are the same to the bit only at
one micro-batch (matrix products of another shape round differently)."""


def derive_seed(*parts: int | str) -> int:
    """A well-mixed 63-bit seed for a tuple of non-negative integers and names.

    Neighbouring tuples give unrelated seeds (numpy's `SeedSequence`), so every use of randomness has a name of its own.
    """
    words = [zlib.crc32(part.encode()) if isinstance(part, str) else part for part in parts]
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> np.uint64(1))


def spherical_interpolation(start: Tensor, end: Tensor, weights: Tensor) -> Tensor:
    """Points (N, *shape) on the arc from `start` to `end` (*shape), at the shares `weights` (N,) of its angle.

    The straight line between two samples of normal noise passes through points far too close to the origin to be noise;
    this keeps their length (Shoemake 1985; White 2016, "Sampling generative networks").
    """
    cosine = torch.nn.functional.cosine_similarity(start.flatten(), end.flatten(), dim=0)
    angle = torch.arccos(cosine.clamp(-1, 1))
    if angle < 1e-3:  # the same direction, where the formula divides by zero and the line is as good
        from_start, from_end = 1 - weights, weights
    else:
        from_start, from_end = (torch.sin(share * angle) / torch.sin(angle) for share in (1 - weights, weights))
    shape = (-1, *[1] * start.ndim)
    return from_start.view(shape) * start + from_end.view(shape) * end


def sample_noise(seed: int, start: int, count: int, shape: tuple[int, ...], stream: str = "samples") -> Tensor:
    """Standard normal noise (count, *shape), float32 on the CPU, of the samples start ... start + count - 1.

    Rounded to fp16 precision, so that a noise pair, which stores fp16, holds exactly what was integrated. The pairs
    have a `stream` of their own: what is drawn to look at or to measure is never noise that a student trained on.
    """
    pieces = []
    for block in range(start // BLOCK_SIZE, (start + count - 1) // BLOCK_SIZE + 1):
        generator = torch.Generator().manual_seed(derive_seed(stream, seed, block))
        noise = torch.randn(BLOCK_SIZE, *shape, generator=generator).half().float()
        first = block * BLOCK_SIZE
        pieces.append(noise[max(start - first, 0) : start + count - first])
    return torch.cat(pieces)
