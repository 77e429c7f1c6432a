"""The rectified flow (Liu et al. 2022), and the project's one time convention.

t = 0 is noise and t = 1 is data. A noise sample x0 and an image x1 are joined by the straight line

    x_t = (1 - t) x0 + t x1,        velocity  v = dx/dt = x1 - x0,

and the network learns E[v | x_t, t]; following it from t = 0 to t = 1 turns noise into images.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TIME_DISTRIBUTIONS = ("uniform", "logit-normal", "u-shaped")

U_SHAPE_STEEPNESS = 4.0


def per_sample(t: Tensor, like: Tensor) -> Tensor:
    """Times (N,) shaped so that they broadcast over `like` (N, C, H, W)."""
    return t.reshape(-1, *[1] * (like.dim() - 1))


def interpolate(noise: Tensor, image: Tensor, t: Tensor) -> Tensor:
    """x_t = (1 - t) x0 + t x1 for times t (N,) in [0, 1]."""
    return torch.lerp(noise, image, per_sample(t, image))


def target_velocity(noise: Tensor, image: Tensor) -> Tensor:
    """x1 - x0, the velocity of the straight line."""
    return image - noise


def matching_loss(network: nn.Module, noise: Tensor, image: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
    """The mean squared error of the network's velocity at times t (N,), a scalar (Liu et al. 2022, equation 1)."""
    return F.mse_loss(network(interpolate(noise, image, t), t, labels), target_velocity(noise, image))


def sample_times(distribution: str, count: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """Times (count,) in [0, 1] for the training loss.

    - `uniform`;
    - `logit-normal`: sigmoid of a standard normal, most weight in the middle (Esser et al. 2024, section 3.1);
    - `u-shaped`: density proportional to e^{4t} + e^{4(1-t)}, most weight at both ends, for reflow (Lee et al. 2024,
      section 4.1, where the second term is written up to a factor).
    """
    if distribution == "logit-normal":
        return torch.sigmoid(torch.randn(count, generator=generator, device=device))
    uniform = torch.rand(count, generator=generator, device=device)
    if distribution == "uniform":
        return uniform
    if distribution == "u-shaped":
        # The inverse of the cumulative distribution of e^{at}, mirrored for half of the samples.
        rising = torch.log1p(uniform * math.expm1(U_SHAPE_STEEPNESS)) / U_SHAPE_STEEPNESS
        mirrored = torch.rand(count, generator=generator, device=device) < 0.5
        return torch.where(mirrored, 1 - rising, rising)
    raise ValueError(f"unknown time distribution {distribution!r}")
