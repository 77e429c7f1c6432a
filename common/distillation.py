"""What the student stages share: teacher and pairs, the losses against these, the held-out report."""

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from common.augmentation import random_flips
from common.checkpoint import (
    Checkpoint,
    guide_beside,
    load_checkpoint,
    load_feature_network,
    load_initial_weights,
    prepare,
)
from common.class_turns import kept_counts
from common.classifier import Classifier
from common.device import Precision, choose_device, choose_precision
from common.distances import (
    PIXEL_LOSSES,
    FeatureDistance,
    pseudo_huber,
    share_of_variance,
    variance_around_class_mean,
)
from common.distillation_arguments import USUAL_FEATURE_NETWORK, needs_feature_networks
from common.epoch_order import EpochOrder
from common.errors import UserError
from common.files import sha256
from common.noise import BLOCK_SIZE, derive_seed
from common.pair_shards import how_guided
from common.pairs import PairBatch, PairSet
from common.presets import NETWORKS
from common.previews import preview_grid
from common.sampling import SamplingSettings, draw
from common.stages import STAGES
from common.training import Trainer
from common.training_run import Critic, TrainingRun
from common.training_state import has_begun
from common.unet import UNet


class Distillation:
    """Teacher and pairs of one run, checked against each other, and the losses against them."""

    def __init__(self, args: argparse.Namespace, pairs_per_step: int, state_times: Sequence[float] = ()):
        """`state_times`: the times between 0 and 1 at which the loss needs the teacher's states.

        Raises UserError where arguments, teacher, guide and pairs do not belong together.
        """
        self.args, self.pairs_per_step = args, pairs_per_step
        self.device = choose_device(args.device)
        self.precision = choose_precision(args.precision, self.device)
        self.teacher = load_checkpoint(args.teacher, self.device)
        self.pairs = PairSet(args.pairs, self.device, state_times, args.num_pairs)
        self.pairs.require_teacher(self.teacher)
        if path := args.guide or self.guide_of_pairs_beside_teacher():
            guide = load_checkpoint(path, self.device)
            self.require_guide_of_pairs(guide)
            self.teacher = self.teacher.guided_by(guide)
        self.header = {
            "class_names": self.teacher.class_names,
            **kept_counts(self.teacher.header),
            "teacher": self.teacher.sha256,
            **self.pairs.description,
        }
        self.feature_networks: list[Classifier] = []
        if needs_feature_networks(args):
            paths = args.feature_network or [USUAL_FEATURE_NETWORK]
            image_shape = self.pairs.header["image_shape"]
            self.feature_networks, flop = load_feature_networks(paths, image_shape, self.teacher.header, self.device)
            self.header["feature_networks"] = flop
        elif args.feature_network:
            raise UserError("--feature-network is for --loss features, and for a critic")
        self.distance = PIXEL_LOSSES.get(args.loss, pseudo_huber)
        self.feature_distance = FeatureDistance(self.feature_networks) if args.loss == "features" else None
        self.order = EpochOrder(self.pairs.training_count, pairs_per_step, args.seed)
        self.held_out = self.pairs.held_out()

    def guide_of_pairs_beside_teacher(self) -> Path | None:
        """The guide in the teacher's folder, where the pairs were made with it."""
        path = guide_beside(self.args.teacher)
        return path if path and sha256(path) == self.pairs.header.get("guide") else None

    def require_guide_of_pairs(self, guide: Checkpoint) -> None:
        """Raises UserError for another guide than the pairs were made with."""
        expected = self.pairs.header.get("guide")
        if guide.sha256 != expected:
            remedy = "give it as --guide" if expected else "leave out --guide"
            raise UserError(f"the pairs were made {how_guided(self.pairs.header)}: {remedy}")

    def require_own_student(self, student: Checkpoint) -> None:
        """Raises UserError for a student of another teacher or other pairs, or that has seen what is held out now."""
        if student.header.get("teacher") != self.teacher.sha256:
            raise UserError(f"{student.path} is no student of {self.args.teacher}: give its own --teacher")
        self.pairs.require_student(student)
        self.pairs.require_held_out_unseen(student.header, student.path)

    def new_student(self) -> tuple[UNet, dict]:
        """A student that begins as its teacher, or as --student-network and --init say; and what its header says of it.

        Raises UserError where weights are of another network, or may have seen what is held out now.
        """
        config = self.teacher.model.config
        if self.args.student_network:
            config = replace(NETWORKS[self.args.student_network], num_classes=config.num_classes)
            self.pairs.require_shape(config.image_shape)
        torch.manual_seed(derive_seed("weights", self.args.seed))
        student, beginning = UNet(config), {}
        if self.args.init or not self.args.student_network:
            self._require_held_out_unseen(self.teacher.header, self.args.teacher)
        if self.args.init:
            initial = load_initial_weights(student, self.args.init)["initial"]
            self._require_held_out_unseen(initial, self.args.init)
            beginning = {"initial": initial, "initial_flop": flop_beside(self.teacher, initial)}
        elif not self.args.student_network:
            student.load_state_dict(self.teacher.model.state_dict())
        return prepare(student, self.device), beginning

    def _require_held_out_unseen(self, header: dict, path: Path) -> None:
        if not has_begun(self.args.out):
            self.pairs.require_held_out_unseen(header, path)

    def image_distance(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Distances (n,) of images (n, C, H, W): of their pixels and, with --loss features, of their features."""
        distance = self.distance(prediction, target)
        if self.feature_distance:
            distance = distance + self.args.feature_weight * self.feature_distance(prediction, target)
        return distance

    def batch(self, step: int, generator: torch.Generator) -> PairBatch:
        """The training pairs of a step; noise, states and image of a pair are mirrored together or not at all."""
        indices = self.order.indices(step)
        flips = random_flips(len(indices), not self.args.no_flips, generator)
        return self.pairs.training_batch(indices, flips)

    def train(
        self,
        student: UNet,
        stage: str,
        settings: SamplingSettings,
        losses: Callable[[UNet, int], Iterator[Tensor]],
        beginning: dict,
        critic: Critic | None = None,
        fresh_per_step: int = 0,
    ) -> int:
        """Trains the student, which is one of its `stage`, run with `settings`. Returns the script's exit status.

        `beginning`: what the student's header says of the weights that it begins with. `fresh_per_step`: the images
        that a step makes for the critic, beside those of the pairs.
        """
        header = {"stage": stage, **self.header, **beginning}
        images_per_step = self.pairs_per_step + fresh_per_step
        run = TrainingRun(
            self.args, student, self.precision, STAGES[stage].weights_file, header, critic, images_per_step
        )
        trainer = Trainer(
            run,
            losses,
            evaluate=lambda network: {"held_out_error": self.held_out_error(network, settings)},
            preview=lambda network: preview_grid(network, settings, self.precision),
        )
        status = trainer.train()
        if status == 0:  # a run that was stopped by a signal ends at once, without the report
            print(self.held_out_report(run.ema_model.eval(), settings))
        return status

    def held_out_error(self, network: UNet, settings: SamplingSettings) -> float:
        """Mean squared error against the teacher's images, from the same noise, on pairs that trained nothing."""
        return error_on_pairs(network, settings, self.held_out, self.precision, self.teacher.guide_model)

    def held_out_report(self, student: UNet, settings: SamplingSettings) -> str:
        """The student beside its teacher run with as many and with twice as many Euler steps.

        Guided as for the pairs, but without their guide where neither --guide nor the teacher's folder has it.
        """
        steps = settings.num_steps
        variance = variance_around_class_mean(self.held_out.image, self.held_out.labels)
        rows = [(f"student, {steps} step{'s' * (steps > 1)}", student, settings)]
        for num_steps in sorted({steps, 2 * steps}):
            teachers, unguided = replace(self.pairs.settings, solver="euler", num_steps=num_steps), ""
            if teachers.needs_guide and not self.teacher.guide:
                teachers, unguided = replace(teachers, guide_scale=1.0), ", without its guide"
            rows.append((f"teacher, {teachers.describe()}{unguided}", self.teacher.model, teachers))
        lines = [
            f"mean squared error against the teacher's images, {self.pairs.held_out_count} held-out pairs, "
            "and its share of their variance around the class mean"
        ]
        for name, network, how in rows:
            error = self.held_out_error(network, how)
            lines.append(f"  {name:55} {error:.4f}  {share_of_variance(error, variance)}")
        return "\n".join(lines)


def load_feature_networks(
    paths: Sequence[Path], image_shape: Sequence[int], teacher: dict, device: torch.device
) -> tuple[list[Classifier], dict[str, int]]:
    """The frozen networks that help to train a student; what the training of each took, by its content.

    In the order of their contents, since a critic's state is by position, and a resume may name them otherwise.
    `teacher`: the teacher's header. Raises UserError for one that is given twice, that looks at images of another size,
    or that has learned from images which were held out from the teacher.
    """
    loaded = {}
    for path in paths:
        network, header, content = load_feature_network(path, device)
        size = network.config.image_size
        if tuple(image_shape) != (3, size, size):
            raise UserError(f"{path} looks at images of {size} x {size}, which these are not")
        same_images = "images_sha256" in teacher and header.get("images_sha256") == teacher["images_sha256"]
        if same_images and header["num_images"] > teacher["num_images"]:
            raise UserError(
                f"{path} has learned from images that were held out from the teacher: train it with --val-fraction "
                f"{teacher['arguments']['val_fraction']:g}"
            )
        if content in loaded:
            raise UserError(f"{path} is the same network as another --feature-network")
        loaded[content] = network, header["training_flop"]
    loaded = dict(sorted(loaded.items()))
    return [network for network, _ in loaded.values()], {content: flop for content, (_, flop) in loaded.items()}


def flop_beside(teacher: Checkpoint, initial: dict) -> int:
    """FLOP spent on the weights that a student starts from, by their header, without what its teacher's training took.

    0 for the teacher's own weights. Of weights that were themselves initialised from the teacher's, what came after.
    """
    if initial["sha256"] == teacher.sha256:
        return 0
    if "initial" not in initial:
        return initial["training_flop"]
    return initial["training_flop"] - initial["initial_flop"] + flop_beside(teacher, initial["initial"])


def error_on_pairs(
    network: UNet,
    settings: SamplingSettings,
    pairs: PairBatch,
    precision: Precision,
    guide: UNet | None = None,
) -> float:
    """The mean squared error of a network's images against the pairs', from the same noise."""
    batches = [pairs[start : start + BLOCK_SIZE] for start in range(0, len(pairs), BLOCK_SIZE)]
    drawn = [draw(network, batch.noise, batch.labels, settings, precision=precision, guide=guide) for batch in batches]
    return F.mse_loss(torch.cat([batch.images for batch in drawn]), pairs.image).item()
