"""The optimisers, the learning-rate schedule and the averaging of the weights."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from common.muon import Muon

OPTIMIZERS = ("adamw", "muon")
MUON_MOMENTUM = 0.95


def make_optimizer(
    name: str, model: nn.Module, learning_rate: float, weight_decay: float, muon_momentum: float = MUON_MOMENTUM
) -> torch.optim.Optimizer:
    """One of `OPTIMIZERS` for all parameters of a model, whose convolutions are channels-last."""
    if name == "adamw":
        return torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=weight_decay, fused=True)
    return MuonWithAdamW(model, learning_rate, weight_decay, muon_momentum)


class MuonWithAdamW(torch.optim.Optimizer):
    """Muon for the hidden convolutions, AdamW for everything else, at one learning rate.

    Input and output layers, embeddings and vectors stay with AdamW, as Muon's authors advise; so do the linear layers
    of time and modulation.
    """

    def __init__(self, model: nn.Module, learning_rate: float, weight_decay: float, muon_momentum: float):
        hidden = [
            module.weight
            for name, module in model.named_modules()
            if isinstance(module, nn.Conv2d) and name not in ("stem", "final_conv")
        ]
        identities = {id(weight) for weight in hidden}
        others = [parameter for parameter in model.parameters() if id(parameter) not in identities]
        self.parts = {
            "muon": Muon(hidden, learning_rate, weight_decay, muon_momentum),
            "adamw": torch.optim.AdamW(others, lr=learning_rate, weight_decay=weight_decay, fused=True),
        }
        super().__init__(model.parameters(), {})
        self._join_groups()

    def _join_groups(self) -> None:
        self.param_groups = [group for part in self.parts.values() for group in part.param_groups]

    def step(self, closure: None = None) -> None:
        for part in self.parts.values():
            part.step()

    def state_dict(self) -> dict:
        return {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, state_dict: dict) -> None:
        for name, part in self.parts.items():
            part.load_state_dict(state_dict[name])
        self._join_groups()


def learning_rate_factor(step: int, warmup_steps: int, steps: int, decay_steps: int, warmed_up_from: int = 0) -> float:
    """Linear warm-up, constant rate, and over the last `decay_steps` a linear decay that is 0 after the last step.

    `warmed_up_from`: the step at which an optimiser without a memory began.
    """
    warm = step - warmed_up_from
    warmup = (warm + 1) / warmup_steps if warm < warmup_steps else 1.0
    decay = (steps - step) / decay_steps if step > steps - decay_steps else 1.0
    return min(warmup, decay)


def ema_update(decay: float, num_averaged: Callable[[], int]) -> Callable:
    """The averaging step for `AveragedModel` with buffers: ema = d ema + (1 - d) weights, and counts are copied.

    d = min(decay, (1 + n) / (10 + n)) after n = `num_averaged()` updates, so that a young average forgets the random
    start quickly. AveragedModel counts too, but on the GPU, where reading the count would stall every step.
    """

    @torch.no_grad()
    def update(ema_parameters: list[Tensor], parameters: list[Tensor], _) -> None:
        if not ema_parameters[0].is_floating_point():  # all are of one type: the batches that batch norm has counted
            torch._foreach_copy_(ema_parameters, parameters)
            return
        count = num_averaged()
        torch._foreach_lerp_(ema_parameters, parameters, 1 - min(decay, (1 + count) / (10 + count)))

    return update
