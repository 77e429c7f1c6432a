"""In which order a training run visits its samples."""

import torch
from torch import Tensor

from common.noise import derive_seed


class EpochOrder:
    """The order in which a run visits its samples: a new permutation every epoch, a function of seed and epoch alone.

    Batch `step` is positions step * batch_size ... of the endless sequence of permutations, so a run that is resumed
    needs no state but its step, and every sample is seen once before any is seen again.
    """

    def __init__(self, count: int, batch_size: int, seed: int):
        self.count, self.batch_size, self.seed = count, batch_size, seed
        self.permutations: dict[int, Tensor] = {}

    def indices(self, step: int) -> Tensor:
        positions = torch.arange(step * self.batch_size, (step + 1) * self.batch_size)
        epochs = positions // self.count
        first, last = int(epochs[0]), int(epochs[-1])
        self.permutations = {epoch: self._permutation(epoch) for epoch in range(first, last + 1)}
        return torch.cat(
            [self.permutations[epoch][positions[epochs == epoch] % self.count] for epoch in range(first, last + 1)]
        )

    def _permutation(self, epoch: int) -> Tensor:
        if epoch in self.permutations:
            return self.permutations[epoch]
        generator = torch.Generator().manual_seed(derive_seed("epoch", self.seed, epoch))
        return torch.randperm(self.count, generator=generator)
