"""Stage 1: train the teacher, a many-step rectified flow, on images (or on noise pairs: reflow).

Reads   an image data set, or with --pairs a folder of noise pairs
Writes  OUT/teacher.safetensors (EMA weights), training_state.pt, metrics.jsonl, loss.png, previews/, tensorboard/

Smoke   python teacher_rectified_flow.py --preset tiny --data shapes --steps 20 --warmup-steps 5 --decay-steps 5 \\
            --out smoke/teacher
Full    python teacher_rectified_flow.py
"""

import argparse
from dataclasses import replace
from pathlib import Path

import torch

from common import command_line, flow
from common.checkpoint import load_initial_weights, prepare
from common.data import load_images
from common.device import choose_device, choose_precision
from common.epoch_order import EpochOrder
from common.errors import UserError
from common.noise import derive_seed
from common.pairs import PairSet
from common.presets import NETWORKS, SNAPSHOT_STEPS, TEACHER_RECIPES, changes_to, network_of
from common.previews import preview_grid
from common.sampling import SamplingSettings
from common.sources import ImageSource, PairSource
from common.stages import STAGES
from common.training import Trainer, step_generator
from common.training_arguments import add_data_arguments, add_training_arguments, refuse_data_arguments
from common.training_run import TrainingRun
from common.training_state import has_begun
from common.unet import UNet, UNetConfig

LABEL_DROPOUT = 0.15
PREVIEW_SETTINGS = SamplingSettings(solver="euler", num_steps=20)


def parse_args() -> argparse.Namespace:
    preset = command_line.peek_preset(NETWORKS, default="base")
    parser = command_line.ArgumentParser(__doc__)
    parser.add_argument(
        "--preset", choices=NETWORKS, default=preset, help="network and recipe: sets the defaults below"
    )

    parser.add_argument(
        "--network",
        type=changes_to(UNetConfig),
        default={},
        metavar="JSON",
        help='changes to the preset\'s network: \'{"skips": "added"}\'',
    )

    group = add_data_arguments(parser)
    group.add_argument("--pairs", type=Path, help="reflow: train on the noise pairs in this folder instead of images")
    group.add_argument("--num-pairs", type=command_line.COUNT, help="use the first so many of them (default: all)")

    group = parser.add_argument_group("flow")
    group.add_argument("--unconditional", action="store_true", help="no labels")
    group.add_argument(
        "--label-dropout", type=command_line.FRACTION, default=LABEL_DROPOUT, help="share trained without label"
    )
    group.add_argument(
        "--time-distribution",
        choices=flow.TIME_DISTRIBUTIONS,
        default="logit-normal",
        help="how the times t of the training loss are drawn",
    )
    group.add_argument("--init", type=Path, help="start from the weights of this checkpoint")

    group.add_argument(
        "--snapshot-steps",
        type=command_line.COUNT,
        nargs="*",
        metavar="STEP",
        default=SNAPSHOT_STEPS,
        help="keep the EMA weights after these steps in OUT/snapshots: an early one can guide the teacher (--guide)",
    )

    add_training_arguments(parser, TEACHER_RECIPES[preset], out="checkpoints/teacher")
    command_line.add_device_arguments(parser)
    parser.checks.append(check_labels)
    return parser.parse_args()


def check_labels(args: argparse.Namespace) -> None:
    if args.unconditional and args.label_dropout != LABEL_DROPOUT:
        raise UserError("--label-dropout needs labels: leave out --unconditional, or it")


def main() -> int:
    args = parse_args()
    device = choose_device(args.device)
    precision = choose_precision(args.precision, device)
    config = network_of(args.preset, args.network)

    # Data
    if args.pairs:
        refuse_data_arguments(args)
        pairs = PairSet(args.pairs, device, count=args.num_pairs)
        pairs.require_shape(config.image_shape)
        source = PairSource(pairs)
    elif args.num_pairs:
        raise UserError("--num-pairs needs --pairs")
    else:
        source = ImageSource(
            load_images(args.data, args.data_dir, config.image_size, args.crop), args.val_fraction, device
        )
    order = EpochOrder(source.training_count, args.batch_size, args.seed)
    class_names = [] if args.unconditional else source.class_names

    # Model
    torch.manual_seed(derive_seed("weights", args.seed))
    model = prepare(UNet(replace(config, num_classes=len(class_names))), device)
    beginning = {}
    if args.init:
        beginning = load_initial_weights(model, args.init)
        if not has_begun(args.out):
            source.require_held_out_unseen(beginning["initial"], args.init)

    # Loss
    def flow_loss(network, noise, image, labels, time_distribution, label_dropout, generator):
        """The mean squared error of the velocity at a random time; for a share of the images, without their label."""
        t = flow.sample_times(time_distribution, len(image), generator, device)
        if class_names:
            dropped = torch.rand(len(image), generator=generator, device=device) < label_dropout
            labels = labels.masked_fill(dropped, len(class_names))
        return flow.matching_loss(network, noise, image, t, labels if class_names else None)

    def losses(network, step):
        generator = step_generator(args.seed, step, device)
        batch = source.batch(order, step, not args.no_flips, generator)
        yield flow_loss(network, *batch, args.time_distribution, args.label_dropout, generator)

    def evaluate(network):
        """The same loss on held-out images, for one --seed and kind of device always at the same noise and times.

        The times are uniform whatever the training's are, since sampling needs the velocity at all of them. So it only
        compares runs of one --time-distribution: a run at uniform times trains on exactly this loss.
        """
        generator = step_generator(args.seed, 0, device)
        measured = [
            (len(batch[0]), flow_loss(network, *batch, "uniform", 0.0, generator).item())
            for batch in source.held_out_batches(generator)
        ]
        count = sum(size for size, _ in measured)
        return {"held_out_loss": sum(size * loss for size, loss in measured) / count} if count else {}

    # Training
    header = {"stage": "teacher", "class_names": class_names, **source.description, **beginning}
    trainer = Trainer(
        TrainingRun(args, model, precision, STAGES["teacher"].weights_file, header),
        losses,
        evaluate,
        preview=lambda network: preview_grid(network, PREVIEW_SETTINGS, precision),
        snapshot_steps=args.snapshot_steps,
    )
    return trainer.train()


if __name__ == "__main__":
    command_line.run(main)
