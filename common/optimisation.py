"""The learning-rate schedule and the averaging of the weights."""

from collections.abc import Callable

import torch
from torch import Tensor


def learning_rate_factor(step: int, warmup_steps: int, steps: int, decay_steps: int) -> float:
    """Linear warm-up, constant rate, and over the last `decay_steps` a linear decay that is 0 after the last step."""
    warmup = (step + 1) / warmup_steps if step < warmup_steps else 1.0
    decay = (steps - step) / decay_steps if step > steps - decay_steps else 1.0
    return min(warmup, decay)


def ema_update(decay: float, num_averaged: Callable[[], int]) -> Callable:
    """The averaging step for `AveragedModel`: ema = d ema + (1 - d) weights.

    d = min(decay, (1 + n) / (10 + n)) after n = `num_averaged()` updates, so that a young average forgets the random
    start quickly. AveragedModel counts too, but on the GPU, where reading the count would stall every step.
    """

    @torch.no_grad()
    def update(ema_parameters: list[Tensor], parameters: list[Tensor], _) -> None:
        count = num_averaged()
        torch._foreach_lerp_(ema_parameters, parameters, 1 - min(decay, (1 + count) / (10 + count)))

    return update
