"""Critics: losses on the distribution of a student's images, against the real ones or the teacher's.

A critic gives a loss at every training step, keeps what it was shown, and learns from it after the step. Both compare
features of a frozen classifier: `frechet_critic.py`, `adversarial_critic.py`.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn

from common import command_line
from common.adversarial_critic import AdversarialCritic
from common.distillation import Distillation
from common.errors import UserError
from common.frechet_critic import FrechetCritic
from common.target_images import TargetImages

WEIGHTS = {"frechet": 0.4, "adversarial": 0.01}
"""Of the critics' losses, where none is given."""
USUAL_WINDOW = 4096


def add_critic_arguments(parser: command_line.ArgumentParser) -> None:
    parser.checks.append(settle_critic_arguments)
    group = parser.add_argument_group("critic")
    group.add_argument("--critic", choices=WEIGHTS, default="frechet", help="what compares the distributions")
    weights = ", ".join(f"{weight:g} for {name}" for name, weight in WEIGHTS.items())
    group.add_argument(
        "--critic-weight", type=command_line.POSITIVE, help=f"weight of the critic's loss (default: {weights})"
    )
    group.add_argument(
        "--critic-share",
        type=command_line.FRACTION,
        default=0.5,
        help="share of the batch that starts from fresh noise, of which the teacher's images are not known",
    )
    group.add_argument(
        "--critic-images", choices=("real", "teacher"), default="real", help="what the student's are compared with"
    )
    group.add_argument(
        "--critic-window",
        type=command_line.COUNT,
        help=f"samples that frechet's moments run over (default: {USUAL_WINDOW})",
    )
    group.add_argument(
        "--data-dir", type=Path, help="where the real images are (default: as it was given to the teacher)"
    )


def settle_critic_arguments(args: argparse.Namespace) -> None:
    """Fills in the defaults that depend on the critic. Raises UserError for an option that would do nothing."""
    if args.critic_images == "teacher" and args.data_dir:
        raise UserError("--data-dir needs --critic-images real")
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


def make_critic(args: argparse.Namespace, run: Distillation, target: TargetImages, per_step: int) -> MeanCritic:
    """The critic that was asked for, of a student that shows it `per_step` images at every step.

    Raises UserError for a window that the features or the run do not fit, and for fewer images than features.
    """
    flips, networks = not args.no_flips, run.feature_networks
    if args.critic == "frechet":
        num_features = max(network.summary_size for network in networks)
        require_fitting_window(args, num_features, per_step)
        if target.count * (2 if flips else 1) <= num_features:
            raise UserError(
                f"{target.count:,} images{' and their mirror images' * flips} are too few for the covariance of "
                f"{num_features:,} features: use --critic adversarial, or smaller feature networks"
            )
        return MeanCritic(
            [FrechetCritic(network, target, args.critic_window, flips, run.precision) for network in networks]
        )
    return MeanCritic([AdversarialCritic(network, target, per_step, args.seed, flips) for network in networks])


def require_fitting_window(args: argparse.Namespace, num_features: int, per_step: int) -> None:
    """Raises UserError for a `--critic-window` too small for a covariance, or that the run would never fill."""
    smallest = max(num_features, per_step)
    if args.critic_window < smallest:
        raise UserError(
            f"--critic-window {args.critic_window} is too small: for {num_features} features and {per_step} images a "
            f"step it must be {smallest} or more"
        )
    before_the_last = per_step * (args.steps - 1)
    if before_the_last < args.critic_window:
        raise UserError(
            f"--critic frechet starts after {args.critic_window:,} images of fresh noise, and before the last of "
            f"{args.steps:,} steps there are {before_the_last:,}: give more --steps or a smaller --critic-window"
        )
