"""What models cost: the time and the arithmetic of an image, and the hours that their training would take here.

    python -m benchmarks.model_cost checkpoints/pretrained/{teacher,four_step,student}.safetensors \\
        --output docs/cost.jsonl

Images are drawn as `sample.py` draws them, one alone and a batch. The hours are computed: a model's training FLOP over
the rate at which `teacher_rectified_flow.py` trains the models' network, measured in the same run. Run it on a machine
that does nothing else; `make results` shows the last line that is of all the shipped models.
"""

import argparse
import statistics
import time
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.cost_section import NEEDED_OF_COST, cost_table
from benchmarks.training_rate import training_rate
from common import command_line, sampling_arguments
from common.checkpoint import Checkpoint, code_version
from common.device import Precision, describe_machine
from common.errors import UserError
from common.files import require_writable
from common.noise import BLOCK_SIZE
from common.presets import NETWORKS, TEACHER_RECIPES
from common.results import append_result, read_results
from common.sampling import Generated, SamplingSettings, draw_blocks, flop_behind
from common.solvers import FIXED_STEP_SOLVERS


def parse_args() -> argparse.Namespace:
    parser = command_line.ArgumentParser(__doc__)
    parser.add_argument("models", nargs="+", type=Path, metavar="CHECKPOINT")
    parser.add_argument("--preset", choices=NETWORKS, default="cpu", help="whose network the models have")
    parser.add_argument(
        "--steps",
        type=command_line.bounded(int, low=10),
        default=50,
        help="training steps to time, after 20 to warm up",
    )
    parser.add_argument("--repeats", type=command_line.COUNT, default=15, help="times that images are drawn")
    parser.add_argument("--output", type=Path, metavar="FILE.jsonl", help="append the result as a JSON line")
    sampling_arguments.add_sampling_arguments(parser, FIXED_STEP_SOLVERS)
    command_line.add_device_arguments(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    precision = sampling_arguments.sampling_precision(args)
    if args.output:
        require_writable(args.output)
        read_results(args.output, NEEDED_OF_COST)  # a damaged file is found now
    checkpoints = [sampling_arguments.load_guided(path, args, precision.device) for path in args.models]
    settings_of = sampling_arguments.sampling_settings(args, checkpoints)
    for checkpoint in checkpoints:
        config = checkpoint.model.config
        if config != replace(NETWORKS[args.preset], num_classes=config.num_classes):
            raise UserError(f"{checkpoint.path} has not the network of preset {args.preset}: give another --preset")

    recipe = TEACHER_RECIPES[args.preset]
    training_flop_per_second, _ = training_rate(args, recipe.batch_size, recipe.optimizer, compiled=False)
    models = []
    for checkpoint, settings in zip(checkpoints, settings_of, strict=True):
        image = cost_of_an_image(checkpoint, settings, precision, args.repeats)
        models.append(what_is_known_of(checkpoint, settings) | image)
    result = {
        "models": models,
        "preset": args.preset,
        "training_flop_per_second": training_flop_per_second,
        "batch_size": BLOCK_SIZE,
        "repeats": args.repeats,
        "machine": describe_machine(precision.device),
        "arithmetic": precision.name,
        "versions": {"code": code_version(), "torch": torch.__version__},
    }
    if args.output:
        append_result(args.output, result, NEEDED_OF_COST)
    print(cost_table(result))


def what_is_known_of(checkpoint: Checkpoint, settings: SamplingSettings) -> dict:
    return {
        "name": checkpoint.path.name,
        "stage": checkpoint.stage,
        "checkpoint": checkpoint.sha256,
        "guide": checkpoint.guide.sha256 if checkpoint.guide else None,
        **settings.to_dict(),
        "training_flop": checkpoint.header["training_flop"],
    }


def cost_of_an_image(
    checkpoint: Checkpoint, settings: SamplingSettings, precision: Precision, repeats: int
) -> dict[str, float]:
    """Network calls, their FLOP, and milliseconds: of an image alone, and of each in a batch as samplers draw it."""
    classes = sampling_arguments.chosen_classes(None, checkpoint)

    def drawn(count: int) -> Generated:
        blocks = draw_blocks(
            checkpoint.model, 0, 0, count, classes, settings, precision=precision, guide=checkpoint.guide_model
        )
        return next(blocks)

    def milliseconds(count: int) -> float:
        times = []
        for _ in range(repeats + 1):  # the first warms up
            start = time.perf_counter()
            drawn(count).images.cpu()  # waits for a GPU to finish
            times.append(1000 * (time.perf_counter() - start) / count)
        return statistics.median(times[1:])

    image = drawn(1)
    return {
        "nfe": image.network_calls,
        "flop_per_image": flop_behind([image], checkpoint.model, checkpoint.guide_model),
        "milliseconds_alone": milliseconds(1),
        "milliseconds_in_a_batch": milliseconds(BLOCK_SIZE),
    }


if __name__ == "__main__":
    command_line.run(main)
