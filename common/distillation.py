"""What the two student stages share: their arguments, their start from teacher and pairs, and the held-out report."""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from common import command_line
from common.checkpoint import (
    load_checkpoint,
    load_feature_network,
    load_initial_weights,
    prepare,
    student_settings,
)
from common.classifier import Classifier
from common.critics import RealImages, add_critic_arguments, make_critic
from common.data import EpochOrder
from common.device import Precision, choose_device, choose_precision
from common.distances import (
    PIXEL_LOSSES,
    FeatureDistance,
    mean_squared,
    pseudo_huber,
    share_of_variance,
    variance_around_class_mean,
)
from common.errors import UserError
from common.noise import BLOCK_SIZE, derive_seed
from common.pairs import PairBatch, PairSet, random_flips
from common.presets import NETWORKS, STUDENT_RECIPES
from common.previews import preview_grid
from common.sampling import SamplingSettings, draw
from common.training import Trainer
from common.training_arguments import add_training_arguments, check_training_arguments
from common.unet import UNet


def student_parser(description: str, out: str) -> argparse.ArgumentParser:
    """The parser of a student stage, to which the stage adds its own arguments."""
    preset = command_line.peek_preset(STUDENT_RECIPES, default="base")
    parser = command_line.ArgumentParser(description)
    parser.add_argument("--preset", choices=STUDENT_RECIPES, default=preset, help="recipe: sets the defaults below")
    group = parser.add_argument_group("distillation")
    group.add_argument(
        "--teacher", type=Path, default=Path("checkpoints/teacher/teacher.safetensors"), help="checkpoint of stage 1"
    )
    group.add_argument("--pairs", type=Path, default=Path("noise_pairs"), help="folder of stage 2, by the same teacher")
    group.add_argument(
        "--student-network", choices=NETWORKS, help="that of a preset, from random weights (default: the teacher's)"
    )
    group.add_argument("--init", type=Path, help="start from this checkpoint's weights (default: the teacher's)")
    group.add_argument(
        "--loss",
        choices=(*PIXEL_LOSSES, "features"),
        default="l2",
        help="distance to the teacher; features: pseudo-huber, and for images the distance of their features",
    )
    group.add_argument(
        "--feature-network",
        type=Path,
        default=Path("checkpoints/feature_network/feature_network.safetensors"),
        help="for --loss features and --critic: checkpoint of feature_network.py",
    )
    group.add_argument("--feature-weight", type=command_line.POSITIVE, help="of the features' distance (default: 0.2)")
    group.add_argument("--no-flips", action="store_true", help="no joint mirroring of noise and images")

    add_critic_arguments(parser)
    add_training_arguments(parser, STUDENT_RECIPES[preset], out)
    command_line.add_device_arguments(parser)
    return parser


class Distillation:
    """Teacher, pairs and student of one run, checked against each other."""

    def __init__(
        self,
        args: argparse.Namespace,
        stage: str,
        pairs_per_step: int,
        fresh_per_step: int,
        num_states: int = 0,
        state_times: Sequence[float] | None = None,
    ):
        """`fresh_per_step`: images of fresh noise that a critic is shown.

        `num_states`: of the trajectory, between noise and image; `state_times`: which, if the pairs hold more.
        """
        check_training_arguments(args)
        if args.loss != "features" and args.feature_weight is not None:
            raise UserError("--feature-weight needs --loss features")
        args.feature_weight = args.feature_weight or (0.2 if args.loss == "features" else None)
        self.args, self.stage, self.fresh_per_step = args, stage, fresh_per_step
        self.device = choose_device(args.device)
        self.precision = choose_precision(args.precision, self.device)
        self.teacher = load_checkpoint(args.teacher, self.device)
        self.pairs = PairSet(args.pairs, self.device)
        self.pairs.require_teacher(self.teacher)
        step_times = [0.0, *self.pairs.select_states(num_states, state_times)]
        self.settings = student_settings(stage, step_times)
        self.header = {
            "stage": stage,
            "class_names": self.teacher.class_names,
            "teacher": self.teacher.sha256,
            "teacher_training_flop": self.teacher.header["training_flop"],
            **self.pairs.description,
        }
        if self.settings.step_times:
            self.header["step_times"] = list(self.settings.step_times)
        self.distance = PIXEL_LOSSES.get(args.loss, pseudo_huber)
        network = self._load_feature_network() if args.loss == "features" or args.critic else None
        self.feature_distance = FeatureDistance(network) if args.loss == "features" else None
        self.real = RealImages(args, self.teacher, self.pairs) if args.critic else None
        self.critic = make_critic(args, network, self.real, fresh_per_step, self.precision) if args.critic else None
        self.order = EpochOrder(self.pairs.training_count, pairs_per_step, args.seed)
        self.held_out = self.pairs.held_out()
        self.student = self._start()

    def _load_feature_network(self) -> Classifier:
        network, header, content = load_feature_network(self.args.feature_network, self.device)
        size = network.config.image_size
        if tuple(self.pairs.header["image_shape"]) != (3, size, size):
            raise UserError(f"{self.args.feature_network} looks at images of {size} x {size}, which these are not")
        self.header |= {"feature_network": content, "feature_network_flop": header["training_flop"]}
        return network

    def _start(self) -> UNet:
        teacher_config = self.teacher.model.config
        torch.manual_seed(derive_seed("weights", self.args.seed))
        if self.args.student_network:
            config = replace(NETWORKS[self.args.student_network], num_classes=teacher_config.num_classes)
            self.pairs.require_shape(config.image_shape)
            student = UNet(config)
        else:
            student = UNet(teacher_config)
        if self.args.init:
            self.header |= load_initial_weights(student, self.args.init)
            if self.header["initial"]["stage"] == "teacher":
                self.header["initial_flop"] = 0  # as without --init: the teacher's are counted apart
        elif not self.args.student_network:
            student.load_state_dict(self.teacher.model.state_dict())
        return prepare(student, self.device)

    def image_distance(self, prediction: Tensor, target: Tensor) -> Tensor:
        """(n,) of images (n, C, H, W), as `distance` is of any states; of features, too, if that was asked for."""
        distance = self.distance(prediction, target)
        if self.feature_distance:
            distance = distance + self.args.feature_weight * self.feature_distance(prediction, target)
        return distance

    def batch(self, step: int, generator: torch.Generator) -> PairBatch:
        """The training pairs of a step; noise, states and image of a pair are mirrored together or not at all."""
        indices = self.order.indices(step)
        flips = random_flips(len(indices), not self.args.no_flips, generator)
        return self.pairs.training_batch(indices, flips)

    def with_fresh_noise(self, pair: PairBatch, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """The pairs' noise and labels and, for the critic, those of fresh noise after them."""
        if not self.critic:
            return pair.noise, pair.labels
        noise, labels = self._fresh_noise(self.fresh_per_step, generator)
        return torch.cat([pair.noise, noise]), None if labels is None else torch.cat([pair.labels, labels])

    def _fresh_noise(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """Noise (count, C, H, W) that belongs to no pair, and labels (count,) where the student has classes."""
        noise = torch.randn(count, *self.student.config.image_shape, generator=generator, device=self.device)
        num_classes = len(self.teacher.class_names)
        if not num_classes:
            return noise, None
        if self.real.labels is None:
            return noise, torch.randint(num_classes, (count,), generator=generator, device=self.device)
        rows = torch.randint(len(self.real.labels), (count,), generator=generator, device=self.device)
        return noise, self.real.labels[rows]  # classes as frequent as among the images that these are compared with

    def critic_loss(self, images: Tensor) -> Tensor:
        """A scalar, of the student's images (n, C, H, W) from fresh noise; 0 without a critic."""
        return self.args.critic_weight * self.critic(images) if self.critic else torch.zeros((), device=self.device)

    def train(self, batch_loss, weights_name: str) -> int:
        settings = self.settings
        trainer = Trainer(
            self.args,
            self.student,
            self.precision,
            weights_name,
            batch_loss,
            evaluate=lambda network: {"held_out_error": self.held_out_error(network, settings)},
            preview=lambda network: preview_grid(network, settings, self.precision),
            header=self.header,
            critic=self.critic,
        )
        status = trainer.train()
        if status == 0:  # who asked the run to stop is not kept waiting for the report
            print(self.held_out_report(trainer.ema_model.eval()))
        return status

    def held_out_error(self, network: UNet, settings: SamplingSettings) -> float:
        """Mean squared error against the teacher's images, from the same noise, on pairs that trained nothing."""
        return error_on_pairs(network, settings, self.held_out, self.precision)

    def held_out_report(self, student: UNet) -> str:
        """The student beside its teacher run with as many and with twice as many Euler steps.

        Guided as for the pairs, but without their guide, if they had one: its file is not asked for here.
        """
        steps = self.settings.num_steps
        variance = variance_around_class_mean(self.held_out.image, self.held_out.labels)
        rows = [(f"student, {steps} step{'s' * (steps > 1)}", student, self.settings)]
        for num_steps in sorted({steps, 2 * steps}):
            settings = replace(self.pairs.settings, solver="euler", num_steps=num_steps, guide_scale=1.0)
            unguided = ", without its guide" if self.pairs.settings.needs_guide else ""
            rows.append((f"teacher, {settings.describe()}{unguided}", self.teacher.model, settings))
        lines = [
            f"mean squared error against the teacher's images, {self.pairs.held_out_count} held-out pairs, "
            "and its share of their variance around the class mean"
        ]
        for name, network, settings in rows:
            error = self.held_out_error(network, settings)
            lines.append(f"  {name:55} {error:.4f}  {share_of_variance(error, variance)}")
        return "\n".join(lines)


def error_on_pairs(network: UNet, settings: SamplingSettings, pairs: PairBatch, precision: Precision) -> float:
    """The mean squared error of a network's images against the pairs', from the same noise."""
    batches = [pairs[start : start + BLOCK_SIZE] for start in range(0, len(pairs), BLOCK_SIZE)]
    drawn = [draw(network, batch.noise, batch.labels, settings, precision=precision) for batch in batches]
    return mean_squared(torch.cat([batch.images for batch in drawn]), pairs.image).item()
