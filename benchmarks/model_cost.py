"""What models cost: the time and the arithmetic of an image, and the hours that their training takes.

    python -m benchmarks.model_cost checkpoints/pretrained/{teacher,four_step,student}.safetensors \\
        --output docs/cost.jsonl

Images are drawn as `sample.py` draws them, one alone and a batch, after a warm-up. The hours are computed: a model's
training FLOP over the rate at which `teacher_rectified_flow.py` trains the preset's network here, measured in the same
run. Run it on a machine that does nothing else; `make results` shows the last line of each model.
"""

import argparse
from pathlib import Path

import torch

from benchmarks.cost_section import NEEDED_OF_COST, cost_table
from benchmarks.training_rate import training_rate
from common import command_line
from common.checkpoint import Checkpoint, code_version
from common.comparison import draw_column
from common.device import Precision, describe_machine
from common.noise import BLOCK_SIZE
from common.presets import NETWORKS, TEACHER_RECIPES
from common.results import append_result, read_results
from common.sampling import SamplingSettings, draw_blocks
from common.unet import count_forward_flop


def parse_args() -> argparse.Namespace:
    parser = command_line.ArgumentParser(__doc__)
    parser.add_argument("models", nargs="+", type=Path, metavar="CHECKPOINT")
    parser.add_argument("--preset", choices=NETWORKS, default="cpu", help="that the models' network is of")
    parser.add_argument("--steps", type=command_line.COUNT, default=50, help="of training, after 20 to warm up")
    parser.add_argument("--output", type=Path, metavar="FILE.jsonl", help="append each result as a JSON line")
    command_line.add_sampling_arguments(parser)
    command_line.add_device_arguments(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    precision = command_line.sampling_precision(args)
    if args.output:
        read_results(args.output, NEEDED_OF_COST)  # a damaged file is found now
    models = [command_line.load_guided(path, args, precision.device) for path in args.models]
    command_line.refuse_settings_for_students(args, models)
    recipe = TEACHER_RECIPES[args.preset]
    training_flop_per_second, _ = training_rate(args, recipe.batch_size, recipe.optimizer, compiled=False)
    circumstances = {
        "preset": args.preset,
        "training_flop_per_second": training_flop_per_second,
        "machine": describe_machine(precision.device),
        "arithmetic": precision.name,
        "versions": {"code": code_version(), "torch": torch.__version__},
    }
    results = []
    for model in models:
        settings = command_line.sampling_settings(args, model, model.settings)
        results.append(what_is_known_of(model, settings) | cost_of_an_image(model, settings, precision) | circumstances)
        if args.output:
            append_result(args.output, results[-1], NEEDED_OF_COST)
    print(cost_table(results))


def what_is_known_of(model: Checkpoint, settings: SamplingSettings) -> dict:
    return {
        "name": model.path.name,
        "stage": model.stage,
        "checkpoint": model.sha256,
        "guide": model.guide.sha256 if model.guide else None,
        **settings.to_dict(),
        "training_flop": model.header["training_flop"],
    }


def cost_of_an_image(model: Checkpoint, settings: SamplingSettings, precision: Precision) -> dict:
    """Network calls, their FLOP, and milliseconds: of one image alone, and of each in a batch as samplers draw it."""
    classes = command_line.chosen_classes(None, model)
    drawn = next(draw_blocks(model.model, 0, 0, 1, classes, settings, precision=precision, guide=model.guide_model))
    flop = (drawn.network_calls - drawn.guide_calls) * count_forward_flop(model.model)
    if model.guide:
        flop += drawn.guide_calls * count_forward_flop(model.guide.model)
    alone, in_a_batch = (
        1000 * draw_column(model, settings, 0, count, classes, precision).seconds_per_image for count in (1, BLOCK_SIZE)
    )
    return {
        "nfe": drawn.network_calls,
        "flop_per_image": flop,
        "milliseconds_alone": alone,
        "milliseconds_in_a_batch": in_a_batch,
        "batch_size": BLOCK_SIZE,
    }


if __name__ == "__main__":
    command_line.run(main)
