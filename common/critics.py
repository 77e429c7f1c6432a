"""Critics: losses on the distribution of a student's images, against the real ones or the teacher's.

A critic gives a loss at every training step, keeps what it was shown, and learns from it after the step. Two compare
features of a frozen classifier; the third, in `score_critic.py`, is distribution matching by the teacher's flow.
"""

import argparse
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from common import command_line
from common.checkpoint import Checkpoint
from common.classifier import Classifier
from common.data import EpochOrder, ImageData, flip, images_behind, random_flips
from common.device import Precision
from common.distances import unit_length
from common.distillation import Distillation
from common.errors import UserError
from common.frechet import RunningFrechetLoss
from common.noise import derive_seed
from common.pairs import PairSet
from common.score_critic import ScoreCritic

CHUNK = 250
WEIGHTS = {"frechet": 0.4, "adversarial": 0.01, "score": 0.5}
"""Of the critics' losses, where none is given."""
USUAL_WINDOW = 4096


def add_critic_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("critic")
    group.add_argument("--critic", choices=WEIGHTS, default="frechet", help="what compares the distributions")
    weights = ", ".join(f"{weight:g} for {name}" for name, weight in WEIGHTS.items())
    group.add_argument("--critic-weight", type=command_line.POSITIVE, help=f"of its loss (default: {weights})")
    group.add_argument(
        "--critic-share",
        type=command_line.FRACTION,
        default=0.5,
        help="share of the batch that starts from fresh noise, of which the teacher's images are not known",
    )
    group.add_argument(
        "--critic-images",
        choices=("real", "teacher"),
        help="what the student's are compared with (default: real; the teacher's for score, which knows no others)",
    )
    group.add_argument(
        "--critic-window",
        type=command_line.COUNT,
        help=f"samples that frechet's moments run over (default: {USUAL_WINDOW})",
    )
    group.add_argument("--data-dir", type=Path, help="of the real images (default: as it was given to the teacher)")


def settle_critic_arguments(args: argparse.Namespace) -> None:
    """Fills in the defaults that depend on the critic. Raises UserError for an option that would do nothing."""
    if args.critic == "score" and (args.critic_images == "real" or args.data_dir):
        raise UserError("--critic score knows the teacher's images alone: without --critic-images real or --data-dir")
    if args.critic == "score" and args.steps <= ScoreCritic.WARMUP_STEPS:
        raise UserError(f"--critic score starts after {ScoreCritic.WARMUP_STEPS} steps: give more --steps")
    args.critic_images = args.critic_images or ("teacher" if args.critic == "score" else "real")
    if args.critic_images == "teacher" and args.data_dir:
        raise UserError("--data-dir is of the real images: it goes with --critic-images real")
    if args.critic != "frechet" and args.critic_window:
        raise UserError("--critic-window needs --critic frechet")
    if args.critic == "frechet":
        args.critic_window = args.critic_window or USUAL_WINDOW
    args.critic_weight = args.critic_weight or WEIGHTS[args.critic]


def split_batch(args: argparse.Namespace, num_steps: int) -> tuple[int, int]:
    """How many images of a batch start from the noise of pairs, and how many from fresh noise, for the critic.

    An image takes as many places of the batch as the student has steps. Raises UserError where one of the two is 0.
    """
    num_images = args.batch_size // num_steps
    num_fresh = round(args.critic_share * num_images)
    if not 0 < num_fresh < num_images:
        raise UserError(
            f"--critic-share {args.critic_share} of --batch-size {args.batch_size} must leave something to the critic "
            "and to the pairs"
        )
    return num_images - num_fresh, num_fresh


class TargetImages:
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
    """The Fréchet distance between the student's images and the target's (FD-loss, arXiv 2604.28190).

    Divided by the number of features, each of unit variance. `flips`: the reference is the target images together with
    their mirror images. Its features are computed when the loss starts, and again after a resume.
    """

    def __init__(self, network: Classifier, target: TargetImages, window: int, flips: bool, precision: Precision):
        super().__init__()
        self.setup_flop = target.count * (2 if flips else 1) * summary_flop(network)
        self.network = [network]  # in a list: it is no part of the critic's state
        load_features = partial(target_features, network, target, flips, precision)
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
def target_features(network: Classifier, target: TargetImages, flips: bool, precision: Precision) -> Tensor:
    """`network.summary` of all target images, with `flips` also of their mirror images: (N, D) or (2 N, D)."""
    features = []
    with precision.autocast():
        for indices in tqdm(torch.arange(target.count).split(CHUNK), desc="features of the target images", leave=False):
            images = target.gather(indices)
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


class MeanCritic(nn.Module):
    """The mean of what critics say of the same images, each by a feature network of its own."""

    def __init__(self, critics: list[FrechetCritic | AdversarialCritic]):
        super().__init__()
        self.critics = nn.ModuleList(critics)
        self.setup_flop = sum(critic.setup_flop for critic in critics)

    def forward(self, images: Tensor, labels: Tensor | None, generator: torch.Generator) -> Tensor:
        """A scalar loss of the student's images (N, C, H, W)."""
        return torch.stack([critic(images, labels, generator) for critic in self.critics]).mean()

    def loss(self, step: int) -> Tensor | None:
        """The sum, since each learns for itself."""
        losses = [loss for critic in self.critics if (loss := critic.loss(step)) is not None]
        return torch.stack(losses).sum() if losses else None

    def update(self) -> None:
        for critic in self.critics:
            critic.update()


def make_critic(
    args: argparse.Namespace, run: Distillation, target: TargetImages, per_step: int
) -> MeanCritic | ScoreCritic:
    """The critic that was asked for, of a student that shows it `per_step` images at every step.

    Raises UserError for a window that the features or the run do not fit, and for a guide that is not the pairs'.
    """
    flips = not args.no_flips
    if args.critic == "frechet":
        networks = run.load_feature_networks()
        require_fitting_window(args, max(network.summary_size for network in networks), per_step)
        return MeanCritic(
            [FrechetCritic(network, target, args.critic_window, flips, run.precision) for network in networks]
        )
    if args.critic == "adversarial":
        networks = run.load_feature_networks()
        return MeanCritic([AdversarialCritic(network, target, per_step, args.seed, flips) for network in networks])
    run.require_guide_of_pairs(run.teacher.guide)
    return ScoreCritic(run.teacher.model, run.teacher.guide_model, run.pairs.settings, args.seed)


def require_fitting_window(args: argparse.Namespace, num_features: int, per_step: int) -> None:
    """Raises UserError for a `--critic-window` too small for a covariance, or that the run would never fill."""
    smallest = max(num_features, per_step)
    if args.critic_window < smallest:
        raise UserError(
            f"--critic-window {args.critic_window} is too small: for {num_features} features and {per_step} images a "
            f"step it must be {smallest} or more"
        )
    if per_step * args.steps <= args.critic_window:
        raise UserError(
            f"--critic frechet starts after {args.critic_window:,} images of fresh noise, and {args.steps:,} steps "
            f"make {per_step * args.steps:,}: give more --steps or a smaller --critic-window"
        )
