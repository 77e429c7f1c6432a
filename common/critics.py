"""Judges of a student's images as a whole: are they distributed as the real ones, or as the teacher's?

A critic is asked for a loss at every training step, remembers what it was shown, and learns from it after the step. Two
look at the features of a frozen network; a third, in `score_critic.py`, follows the student's flow.
"""

import argparse
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from common.checkpoint import Checkpoint
from common.classifier import Classifier
from common.data import EpochOrder, ImageData, flip, images_behind
from common.device import Precision
from common.distances import unit_length
from common.distillation import Distillation
from common.errors import UserError
from common.frechet import RunningFrechetLoss
from common.noise import derive_seed
from common.pairs import PairSet, random_flips
from common.score_critic import ScoreCritic

CHUNK = 250
CRITICS = ("frechet", "adversarial", "score")


class RealImages:
    """What a student's images are compared with: those that trained its teacher, or the teacher's own, of the pairs."""

    def __init__(self, args: argparse.Namespace, teacher: Checkpoint, pairs: PairSet):
        self.labels = None
        if args.critic_images == "teacher":
            self.count, self.first = pairs.training_count, pairs.held_out_count
            self.gather = lambda indices: pairs.gather(indices + self.first).image
            return
        images = teachers_images(args, teacher).to(pairs.device)
        self.count, self.labels = len(images), images.labels
        self.gather = lambda indices: images.batch(indices.to(pairs.device))[0]

    def draw_labels(self, count: int, num_classes: int, generator: torch.Generator) -> Tensor | None:
        """Labels (count,) with classes as frequent as among these images; None where there are no classes."""
        if not num_classes:
            return None
        if self.labels is None:  # the pairs' classes take turns
            return torch.randint(num_classes, (count,), generator=generator, device=generator.device)
        return self.labels[torch.randint(len(self.labels), (count,), generator=generator, device=generator.device)]


def teachers_images(args: argparse.Namespace, teacher: Checkpoint) -> ImageData:
    """The images that trained the teacher, without those that it never saw. Raises UserError where there are none."""
    if "images_sha256" not in teacher.header:
        raise UserError(f"{teacher.path} was trained on noise pairs, not on images: --critic-images teacher")
    return images_behind(teacher.path, teacher.header, args.data_dir)[0]


class FrechetCritic(nn.Module):
    """The Fréchet distance between the student's images and the real ones (FD-loss, arXiv 2604.28190).

    `flips`: the reference is the real images together with their mirror images. Its features are computed when the loss
    starts, and again after a resume.
    """

    def __init__(self, network: Classifier, real: RealImages, window: int, flips: bool, precision: Precision):
        super().__init__()
        self.setup_flop = real.count * (2 if flips else 1) * summary_flop(network)
        self.network = [network]  # in a list: it is no part of the critic's state
        load_features = partial(real_features, network, real, flips, precision)
        device = network.stem.weight.device
        self.running = RunningFrechetLoss(network.summary_size, load_features, window, device=device)

    def forward(self, images: Tensor, labels: Tensor | None, generator: torch.Generator) -> Tensor:
        """A scalar loss of the student's images (N, C, H, W)."""
        return self.running(self.network[0].summary(images))

    def loss(self, step: int) -> None:
        return None

    def update(self) -> None:
        """Adds the student's latest images to the moments."""
        self.running.update()


@torch.no_grad()
def real_features(network: Classifier, real: RealImages, flips: bool, precision: Precision) -> Tensor:
    """`network.summary` of all real images, with `flips` also of their mirror images: (N, D) or (2 N, D)."""
    features = []
    with precision.autocast():
        for indices in tqdm(torch.arange(real.count).split(CHUNK), desc="features of the real images", leave=False):
            images = real.gather(indices)
            features += [network.summary(views) for views in ([images, images.flip(-1)] if flips else [images])]
    return torch.cat(features)


@torch.no_grad()
def summary_flop(network: Classifier) -> int:
    """Floating-point operations of `network.summary` for one image, two to a multiply-add."""
    size = network.config.image_size
    with FlopCounterMode(display=False) as counter:
        network.summary(torch.zeros(1, 3, size, size, device=network.stem.weight.device))
    return counter.get_total_flops()


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

    def __init__(self, network: Classifier, real: RealImages, per_step: int, seed: int, flips: bool):
        super().__init__()
        self.network, self.real, self.seed, self.flips = [network], real, derive_seed("critic", seed), flips
        self.order = EpochOrder(real.count, per_step, self.seed)
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
        """The discriminators', on the student's latest images and as many real ones."""
        with torch.no_grad():
            real = self._maps(self._real_images(step))
        return discriminator_loss(self._logits(real), self._logits(self.latest))

    def update(self) -> None:
        self.optimizer.step()

    def _real_images(self, step: int) -> Tensor:
        images = self.real.gather(self.order.indices(step))
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


def make_critic(
    args: argparse.Namespace, run: Distillation, real: RealImages, per_step: int
) -> FrechetCritic | AdversarialCritic | ScoreCritic:
    """The critic that was asked for, of a student that shows it `per_step` images at every step."""
    if args.critic == "frechet":
        require_fitting_window(args, run.load_feature_network().summary_size, per_step)
        return FrechetCritic(run.load_feature_network(), real, args.critic_window, not args.no_flips, run.precision)
    if args.critic == "adversarial":
        return AdversarialCritic(run.load_feature_network(), real, per_step, args.seed, not args.no_flips)
    run.require_guide_of_pairs(run.teacher.guide)
    return ScoreCritic(run.teacher.model, run.teacher.guide_model, run.pairs.settings, args.seed)


def require_fitting_window(args: argparse.Namespace, num_features: int, per_step: int) -> None:
    """Raises UserError for a `--critic-window` too small for a covariance."""
    smallest = max(num_features, per_step)
    if args.critic_window < smallest:
        raise UserError(
            f"--critic-window {args.critic_window} is too small: for {num_features} features and {per_step} images a "
            f"step it must be {smallest} or more"
        )
