"""The command line of the stages that teach a student."""

import argparse
from pathlib import Path

from common import command_line
from common.checkpoint import GUIDE_NAME
from common.distances import PIXEL_LOSSES
from common.errors import UserError
from common.presets import NETWORKS, STUDENT_RECIPES
from common.training_arguments import Recipe, add_training_arguments

USUAL_FEATURE_NETWORK = Path("checkpoints/feature_network/feature_network.safetensors")


def distillation_parser(description: str, recipe: Recipe, out: str) -> argparse.ArgumentParser:
    """The parser of a stage that learns from a teacher's pairs, to which the stage adds its own arguments."""
    parser = command_line.ArgumentParser(description)
    group = parser.add_argument_group("distillation")
    group.add_argument(
        "--teacher", type=Path, default=Path("checkpoints/teacher/teacher.safetensors"), help="checkpoint of stage 1"
    )
    group.add_argument("--pairs", type=Path, default=Path("noise_pairs"), help="folder of stage 2, by the same teacher")
    group.add_argument("--num-pairs", type=command_line.COUNT, help="use the first so many of them (default: all)")
    group.add_argument(
        "--loss",
        choices=(*PIXEL_LOSSES, "features"),
        default="pseudo-huber",
        help="distance to the teacher; features: pseudo-huber, and for images the distance of their features",
    )
    group.add_argument(
        "--feature-network",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="checkpoints of feature_network.py, for --loss features and for a critic; of several, the "
        f"losses are the mean (default: {USUAL_FEATURE_NETWORK})",
    )
    group.add_argument(
        "--feature-weight", type=command_line.POSITIVE, help="weight of the features' distance (default: 0.15)"
    )
    group.add_argument("--no-flips", action="store_true", help="no joint mirroring of noise and images")
    group.add_argument(
        "--guide",
        type=Path,
        help="the guide that the pairs were made with, if any: the held-out report then runs the teacher with it "
        f"(default: {GUIDE_NAME} beside the teacher)",
    )
    parser.checks.append(settle_loss_arguments)
    add_training_arguments(parser, recipe, out)
    command_line.add_device_arguments(parser)
    return parser


def settle_loss_arguments(args: argparse.Namespace) -> None:
    """Fills in the defaults that depend on the loss. Raises UserError for an option that would do nothing."""
    if args.loss != "features" and args.feature_weight is not None:
        raise UserError("--feature-weight needs --loss features")
    args.feature_weight = args.feature_weight or (0.15 if args.loss == "features" else None)


def needs_feature_networks(args: argparse.Namespace) -> bool:
    """Whether a part of the loss, or its critic, looks at features."""
    return args.loss == "features" or hasattr(args, "critic")


def student_parser(description: str, out: str) -> argparse.ArgumentParser:
    """The parser of a stage that begins a student."""
    preset = command_line.peek_preset(STUDENT_RECIPES, default="base")
    parser = distillation_parser(description, STUDENT_RECIPES[preset], out)
    group = parser.add_argument_group("student")
    group.add_argument("--preset", choices=STUDENT_RECIPES, default=preset, help="recipe: sets the defaults above")
    group.add_argument(
        "--student-network", choices=NETWORKS, help="that of a preset, from random weights (default: the teacher's)"
    )
    group.add_argument("--init", type=Path, help="start from this checkpoint's weights (default: the teacher's)")
    return parser
