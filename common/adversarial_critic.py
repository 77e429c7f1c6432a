"""A critic by discriminators that learn to tell a student's images from others."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.augmentation import flip, random_flips
from common.classifier import Classifier
from common.distances import unit_length
from common.epoch_order import EpochOrder
from common.noise import derive_seed
from common.target_images import TargetImages


def discriminator_loss(real: list[Tensor], generated: list[Tensor]) -> Tensor:
    """The hinge loss of each logit, averaged within each map of logits (N, 1, H, W), then over the maps."""
    losses = [F.relu(1 - yes).mean() + F.relu(1 + no).mean() for yes, no in zip(real, generated, strict=True)]
    return torch.stack(losses).mean()


def generator_loss(generated: list[Tensor]) -> Tensor:
    """Minus the mean logit of generated images, maps (N, 1, H, W) of any size counting alike."""
    return -torch.stack([logits.mean() for logits in generated]).mean()


class AdversarialCritic(nn.Module):
    """Discriminators on frozen features (Sauer et al. 2021, "Projected GANs converge faster").

    One for each map of the network, of two 1x1 convolutions: a logit for each position, with a hinge loss of its own.
    """

    WIDTH, LEARNING_RATE = 64, 1e-3
    setup_flop = 0

    def __init__(self, network: Classifier, target: TargetImages, per_step: int, seed: int, flips: bool):
        super().__init__()
        self.network, self.target, self.seed, self.flips = [network], target, derive_seed("critic", seed), flips
        self.order = EpochOrder(target.count, per_step, self.seed)
        torch.manual_seed(self.seed)
        self.heads = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, self.WIDTH, 1), nn.LeakyReLU(0.2), nn.Conv2d(self.WIDTH, 1, 1))
            for width in network.config.widths
        ).to(network.stem.weight.device)
        self.optimizer = torch.optim.Adam(self.heads.parameters(), lr=self.LEARNING_RATE, betas=(0.0, 0.99))
        self.latest: list[Tensor] = []

    def forward(self, images: Tensor, labels: Tensor | None, generator: torch.Generator) -> Tensor:
        """A scalar loss of the student's images (N, C, H, W): how far the discriminators take them for generated."""
        maps = self._maps(images)
        self.latest = [features.detach() for features in maps]
        return generator_loss(self._logits(maps))

    def loss(self, step: int) -> Tensor:
        """The discriminators', on the student's latest images and as many of the target's."""
        with torch.no_grad():
            real = self._maps(self._target_images(step))
        return discriminator_loss(self._logits(real), self._logits(self.latest))

    def update(self) -> None:
        self.optimizer.step()

    def _target_images(self, step: int) -> Tensor:
        images = self.target.gather(self.order.indices(step))
        generator = torch.Generator(images.device).manual_seed(derive_seed("critic", self.seed, step))
        return flip(images, random_flips(len(images), self.flips, generator))

    def _maps(self, images: Tensor) -> list[Tensor]:
        return [unit_length(features) * features.shape[1] ** 0.5 for features in self.network[0].features(images)]

    def _logits(self, maps: list[Tensor]) -> list[Tensor]:
        return [head(features).float() for head, features in zip(self.heads, maps, strict=True)]

    def get_extra_state(self) -> dict:
        return self.optimizer.state_dict()

    def set_extra_state(self, state: dict) -> None:
        self.optimizer.load_state_dict(state)
