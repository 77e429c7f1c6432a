"""The command line of a training run, the same for every stage, and the recipes that fill it."""

import argparse
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from common.command_line import COUNT, COUNT_OR_ZERO, FRACTION, POSITIVE, SEED, ArgumentParser, bounded
from common.data import DATA_SETS
from common.errors import UserError
from common.optimisation import MUON_MOMENTUM, OPTIMIZERS

NOT_RECORDED = {
    "out",
    "branch_from",
    "max_minutes",
    "save_minutes",
    "log_every",
    "evaluate_every",
    "device",
    "compile",
    "snapshot_steps",
    "compact_state",
    "preset",
}
"""Arguments that do not affect the result, but for another device's rounding and random numbers, or whose effect is
recorded elsewhere: a preset is recorded as the values that it sets."""

MAY_CHANGE_ON_RESUME = {
    *NOT_RECORDED,
    *("steps", "decay_steps", "ema_decay", "more_ema_decays"),
    *(
        "network",
        "precision",
        "data_dir",
        "teacher",
        "pairs",
        "num_pairs",
        "init",
        "student",
        "feature_network",
        "guide",
    ),
}
"""Arguments that may differ when a run is resumed: schedule, averages, network and number of pairs are checked
separately, and files by their content."""

DATA_DEFAULTS = {"data": "cifar10", "data_dir": Path("data"), "crop": False, "val_fraction": 0.1}


def recorded(args: argparse.Namespace) -> dict:
    """The arguments as JSON values, for the header of what the run makes."""
    return {name: as_json(value) for name, value in vars(args).items() if name not in NOT_RECORDED}


def as_json(value: object) -> object:
    """A path as a string, also within a list; anything else as it is."""
    if isinstance(value, list):
        return [as_json(element) for element in value]
    return str(value) if isinstance(value, Path) else value


def identifying(args: argparse.Namespace) -> dict:
    """The arguments that say which run this is."""
    return {name: value for name, value in recorded(args).items() if name not in MAY_CHANGE_ON_RESUME}


@dataclass(frozen=True)
class Recipe:
    """Defaults of the optimisation; a stage has one for each preset."""

    batch_size: int
    learning_rate: float
    warmup_steps: int
    steps: int
    decay_steps: int
    ema_decay: float
    optimizer: str = "adamw"
    weight_decay: float = 0.01
    muon_momentum: float = MUON_MOMENTUM


def add_data_arguments(parser: ArgumentParser) -> argparse._ArgumentGroup:
    """Which images to train on, and which of them not. Returns the group, to which a stage can add."""
    group = parser.add_argument_group("data")
    group.add_argument(
        "--data", choices=DATA_SETS, help="data set; cifar10-jpeg: each image of CIFAR-10 through JPEG of quality 75"
    )
    group.add_argument(
        "--data-dir", type=Path, help="where CIFAR-10 is, or is downloaded to; or the image folder itself"
    )
    group.add_argument("--crop", action="store_true", help="crop an image folder's centres instead of resizing")
    group.add_argument("--val-fraction", type=FRACTION, help="share of each class that is held out, never trained on")
    group.add_argument("--no-flips", action="store_true", help="no horizontal mirroring")
    parser.set_defaults(**DATA_DEFAULTS)
    return group


def refuse_data_arguments(args: argparse.Namespace) -> None:
    """Of a run on noise pairs, which then records no images. Raises UserError where images were asked for, too."""
    for name, default in DATA_DEFAULTS.items():
        if getattr(args, name) != default:
            raise UserError(f"--{name.replace('_', '-')} is for training on images, not on --pairs: leave one out")
        setattr(args, name, None)


def add_training_arguments(parser: ArgumentParser, recipe: Recipe, out: str) -> None:
    """Optimisation and run, with a recipe's defaults and the check that they go together."""
    parser.checks.append(lambda args: check_training_arguments(args, recipe))
    group = parser.add_argument_group("optimisation")
    group.add_argument(
        "--batch-size", type=COUNT, default=recipe.batch_size, help="examples in a step; of students, network calls"
    )
    group.add_argument(
        "--optimizer", choices=OPTIMIZERS, default=recipe.optimizer, help="muon is for the hidden convolutions"
    )
    group.add_argument("--learning-rate", type=POSITIVE, default=recipe.learning_rate, help="after the warm-up")
    group.add_argument(
        "--muon-momentum",
        type=bounded(float, low=0, high=0.999),
        default=recipe.muon_momentum,
        help="momentum of muon's gradients; adamw has its own",
    )
    group.add_argument(
        "--weight-decay", type=bounded(float, low=0), default=recipe.weight_decay, help="decoupled from the gradient"
    )
    group.add_argument("--warmup-steps", type=COUNT_OR_ZERO, default=recipe.warmup_steps, help="linear warm-up from 0")
    group.add_argument("--steps", type=COUNT, default=recipe.steps, help="steps in all, the decay included")
    group.add_argument(
        "--decay-steps", type=COUNT_OR_ZERO, default=recipe.decay_steps, help="the last steps, with linear decay to 0"
    )
    group.add_argument("--gradient-clip", type=POSITIVE, default=1.0, help="largest norm of the gradient")
    group.add_argument(
        "--ema-decay",
        type=FRACTION,
        default=recipe.ema_decay,
        help="EMA of the weights, per step; a young one averages over a tenth of its steps",
    )
    group.add_argument(
        "--more-ema-decays",
        type=FRACTION,
        nargs="*",
        default=[],
        metavar="DECAY",
        help="further averages, kept in files of their own",
    )
    group.add_argument("--seed", type=SEED, default=0, help="random seed of initialisation, order and noise")

    group = parser.add_argument_group("run")
    group.add_argument("--out", type=Path, default=Path(out), help="folder of the run; the same command resumes it")
    group.add_argument("--branch-from", type=Path, help="start from the training state of the run in this folder")
    group.add_argument(
        "--compact-state",
        action="store_true",
        help="when the run stops, also write OUT/compact_state.pt: the weights alone, in fp16. Where the whole state "
        "is lost, --branch-from goes on from it, through the warm-up again",
    )
    group.add_argument("--max-minutes", type=POSITIVE, help="pause after so many minutes; run again to go on")
    group.add_argument("--save-minutes", type=POSITIVE, default=5.0, help="minutes between saves")
    group.add_argument("--log-every", type=COUNT, default=50, help="steps between metrics")
    group.add_argument("--evaluate-every", type=COUNT, default=1000, help="steps between held-out loss and preview")
    group.add_argument("--compile", action="store_true", help="torch.compile the network (needs a C++ compiler)")


def check_training_arguments(args: argparse.Namespace, recipe: Recipe) -> None:
    """Raises UserError where they do not go together, or one would do nothing."""
    decays = [args.ema_decay, *args.more_ema_decays]
    if len(set(decays)) < len(decays):
        raise UserError(f"--more-ema-decays must be others than --ema-decay {args.ema_decay}, and each only once")
    if args.optimizer != "muon" and args.muon_momentum != recipe.muon_momentum:
        raise UserError("--muon-momentum needs --optimizer muon")
    if args.warmup_steps + args.decay_steps > args.steps:
        raise UserError(
            f"{args.warmup_steps} steps of warm-up and {args.decay_steps} of decay do not fit into {args.steps} steps"
        )
    if args.compile and not torch.cuda.is_available() and shutil.which(os.environ.get("CXX", "g++")) is None:
        raise UserError("--compile needs a C++ compiler (g++, or another in the environment variable CXX)")
