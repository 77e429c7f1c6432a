"""Optional stage: train a small classifier on the images; its features tell the students how pictures differ.

Reads   an image data set
Writes  OUT/feature_network.safetensors (EMA weights), training_state.pt, metrics.jsonl, loss.png, tensorboard/

Smoke   python feature_network.py --data shapes --steps 20 --decay-steps 20 --batch-size 500 \\
            --out smoke/feature_network
Full    python feature_network.py
"""

import argparse

import torch
import torch.nn.functional as F
from torch import Tensor

from common import command_line
from common.augmentation import cutout, random_crops, random_flips
from common.checkpoint import prepare
from common.classifier import Classifier, ClassifierConfig
from common.data import ImageData, load_images, split_held_out
from common.device import choose_device, choose_precision
from common.epoch_order import EpochOrder
from common.errors import UserError
from common.noise import derive_seed
from common.presets import FEATURE_RECIPE, changes_to, classifier_of
from common.training import Trainer, step_generator
from common.training_arguments import add_data_arguments, add_training_arguments
from common.training_run import TrainingRun

TASKS = ("classes", "rotation")
QUARTER_TURNS = 4
CHUNK = 250
LABEL_SMOOTHING = 0.2


def parse_args() -> argparse.Namespace:
    parser = command_line.ArgumentParser(__doc__)
    parser.add_argument(
        "--network",
        type=changes_to(ClassifierConfig),
        default={},
        metavar="JSON",
        help="changes to the network: '{\"widths\": [24, 96, 192]}'",
    )
    parser.add_argument(
        "--task",
        choices=TASKS,
        default="classes",
        help="what it learns to tell: the images' classes or, for images of one class, by which quarter turn they are "
        "rotated",
    )
    add_data_arguments(parser)
    parser.add_argument("--crop-padding", type=command_line.COUNT_OR_ZERO, default=2, help="pixels to shift images by")
    parser.add_argument(
        "--cutout", type=command_line.COUNT_OR_ZERO, default=0, help="width in pixels of the square that hides a part"
    )
    add_training_arguments(parser, FEATURE_RECIPE, out="checkpoints/feature_network")
    command_line.add_device_arguments(parser)
    parser.checks.append(check_batch_size)
    return parser.parse_args()


def check_batch_size(args: argparse.Namespace) -> None:
    if args.batch_size < 2:
        raise UserError("batch normalisation needs several images at a time: give a --batch-size of 2 or more")


def main() -> int:
    args = parse_args()
    device = choose_device(args.device)
    precision = choose_precision(args.precision, device)
    by_rotation = args.task == "rotation"

    # Data
    image_size = classifier_of(2, args.network).image_size
    data = load_data(args, image_size)
    training, held_out = (part.to(device) for part in split_held_out(data, args.val_fraction))
    if not len(training):
        raise UserError("there are no images to train on: lower --val-fraction or add images")
    order = EpochOrder(len(training), args.batch_size, args.seed)

    # Model
    torch.manual_seed(derive_seed("weights", args.seed))
    num_classes = QUARTER_TURNS if by_rotation else len(data.class_names)
    model = prepare(Classifier(classifier_of(num_classes, args.network)), device)
    if model.config.speed_run:
        model.whiten(training.batch(order.indices(0).to(device))[0])

    # Loss
    def losses(network, step):
        generator = step_generator(args.seed, step, device)
        indices = order.indices(step).to(device)
        images, targets = training.batch(indices, random_flips(len(indices), not args.no_flips, generator))
        images = cutout(random_crops(images, args.crop_padding, generator), args.cutout, generator)
        if by_rotation:
            targets = torch.randint(QUARTER_TURNS, (len(images),), generator=generator, device=device)
            images = rotated(images, targets)
        yield F.cross_entropy(network(images), targets, label_smoothing=LABEL_SMOOTHING)

    # Training
    with_mirrored = not by_rotation and not args.no_flips  # a mirrored picture is turned the other way
    header = {
        "stage": "feature_network",
        "class_names": data.class_names,
        "images_sha256": data.sha256(),
        "num_images": len(training),
    }
    run = TrainingRun(args, model, precision, "feature_network.safetensors", header)
    trainer = Trainer(run, losses, evaluate=lambda network: measure(network, held_out, by_rotation, with_mirrored))
    status = trainer.train()
    if status == 0 and len(held_out):
        with precision.autocast():
            measured = measure(run.ema_model.eval(), held_out, by_rotation, with_mirrored)
        print(f"{measured['held_out_accuracy']:.2%} of {len(held_out):,} held-out images are told right")
        if with_mirrored:
            print(f"{measured['held_out_accuracy_with_mirrored']:.2%} with the help of their mirror images")
    return status


def load_data(args: argparse.Namespace, image_size: int) -> ImageData:
    """Raises UserError for images that cannot teach the task, or that --crop-padding would shift out of sight."""
    if args.crop_padding >= image_size:
        raise UserError(f"--crop-padding {args.crop_padding} shifts images of {image_size} pixels out of sight")
    data = load_images(args.data, args.data_dir, image_size, args.crop)
    if args.task == "classes" and len(data.class_names) < 2:
        raise UserError(f"the images in {args.data_dir} are all of one class: --task rotation needs no labels")
    return data


@torch.no_grad()
def measure(network: Classifier, data: ImageData, by_rotation: bool, with_mirrored: bool) -> dict[str, float]:
    """Cross-entropy and accuracy on images, by name; nothing where there are none.

    By rotation: of image i turned i times. `with_mirrored`: also the accuracy of the logits of an image and its mirror
    image added up.
    """
    if not len(data):
        return {}
    loss, correct, correct_with_mirrored = 0.0, 0, 0
    for indices in torch.arange(len(data), device=data.labels.device).split(CHUNK):
        images, targets = data.batch(indices)
        if by_rotation:
            targets = indices % QUARTER_TURNS
            images = rotated(images, targets)
        logits = network(images)
        loss += F.cross_entropy(logits, targets, reduction="sum").item()
        correct += (logits.argmax(dim=1) == targets).sum().item()
        if with_mirrored:
            logits = logits + network(images.flip(3))
            correct_with_mirrored += (logits.argmax(dim=1) == targets).sum().item()
    measured = {"held_out_loss": loss / len(data), "held_out_accuracy": correct / len(data)}
    if with_mirrored:
        measured["held_out_accuracy_with_mirrored"] = correct_with_mirrored / len(data)
    return measured


def rotated(images: Tensor, turns: Tensor) -> Tensor:
    """Each image (N, C, size, size), turned by its number of quarter turns (N,) (Gidaris et al. 2018)."""
    every = torch.stack([torch.rot90(images, turn, (2, 3)) for turn in range(QUARTER_TURNS)])
    return every[turns, torch.arange(len(images), device=images.device)]


if __name__ == "__main__":
    command_line.run(main)
