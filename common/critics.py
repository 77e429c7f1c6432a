"""Judges of a student's images as a whole, in the features of a frozen network: are they distributed as the real ones?

A critic is asked for a loss at every training step, remembers what it was shown, and learns from it after the step.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.classifier import Classifier
from common.distances import unit_length
from common.frechet import FrechetDistance, RunningFrechetLoss

CHUNK = 250
RealBatch = Callable[[int], Tensor]
"""The images (n, C, H, W) in [-1, 1] with which a training step's are compared."""


class FrechetCritic(nn.Module):
    """The Fréchet distance between the student's images and the real ones (FD-loss, arXiv 2604.28190)."""

    def __init__(self, network: Classifier, real_images: Callable[[Tensor], Tensor], count: int, window: int):
        """`real_images`: from indices (n,) below `count` to images (n, C, H, W) in [-1, 1]."""
        super().__init__()
        self.network = [network]  # in a list: it is no part of the critic's state
        with torch.no_grad():
            features = torch.cat(
                [network.summary(real_images(indices)).double() for indices in torch.arange(count).split(CHUNK)]
            )
        covariance = torch.cov(features.T, correction=0)
        self.running = RunningFrechetLoss(FrechetDistance(features.mean(dim=0), covariance), window)

    def forward(self, images: Tensor) -> Tensor:
        """A scalar loss of the student's images (N, C, H, W)."""
        return self.running(self.network[0].summary(images))

    def update(self, step: int) -> None:
        self.running.update()


class AdversarialCritic(nn.Module):
    """A discriminator on the frozen features (Sauer et al. 2021, "Projected GANs converge faster").

    Two 1x1 convolutions on each map of the network, whose answers are averaged over positions and maps; the hinge loss.
    """

    WIDTH, LEARNING_RATE = 64, 1e-3

    def __init__(self, network: Classifier, real_batch: RealBatch):
        super().__init__()
        self.network, self.real_batch = [network], real_batch
        self.heads = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, self.WIDTH, 1), nn.LeakyReLU(0.2), nn.Conv2d(self.WIDTH, 1, 1))
            for width in network.config.widths
        ).to(network.stem.weight.device)
        self.optimizer = torch.optim.Adam(self.heads.parameters(), lr=self.LEARNING_RATE, betas=(0.0, 0.99))
        self.latest: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        """A scalar loss of the student's images (N, C, H, W): how far the discriminator takes them for generated."""
        maps = self._maps(images)
        self.latest = [features.detach() for features in maps]
        return -self._answers(maps).mean()

    def update(self, step: int) -> None:
        """One step of the discriminator, on the student's latest images and the real ones of this training step."""
        with torch.no_grad():
            real = self._maps(self.real_batch(step))
        loss = F.relu(1 - self._answers(real)).mean() + F.relu(1 + self._answers(self.latest)).mean()
        self.optimizer.zero_grad(set_to_none=True)  # the student's step left gradients here, too
        loss.backward()
        self.optimizer.step()

    def _maps(self, images: Tensor) -> list[Tensor]:
        return [unit_length(features) * features.shape[1] ** 0.5 for features in self.network[0].features(images)]

    def _answers(self, maps: list[Tensor]) -> Tensor:
        answers = [head(features).float().mean(dim=(1, 2, 3)) for head, features in zip(self.heads, maps, strict=True)]
        return torch.stack(answers).mean(dim=0)

    def get_extra_state(self) -> dict:
        return self.optimizer.state_dict()

    def set_extra_state(self, state: dict) -> None:
        self.optimizer.load_state_dict(state)
