"""With how few network calls a solver ends at the images of many small steps.

    python -m benchmarks.solver_error checkpoints/pretrained/teacher.safetensors \\
        --guide checkpoints/pretrained/guide.safetensors

Draws the same samples by `--reference` and by each of `--settings`; prints the network calls, and the mean squared
error between the two as a share of the variance of all the pixels.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from common.command_line import COUNT, SEED, ArgumentParser, add_device_arguments, run
from common.device import choose_device, choose_precision, describe_machine
from common.sampling import SamplingSettings, draw_blocks
from common.sampling_arguments import (
    add_guidance_arguments,
    load_teacher,
    sampling_settings,
)
from common.solvers import FIXED_STEP_SOLVERS
from common.tables import text_table

SETTINGS = [(solver, steps) for steps in (12, 16, 20, 24, 40) for solver in ("adams", "edm-heun")]


def parse_args() -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument("teacher", type=Path, help="checkpoint of stage 1")
    how = {"type": solver_and_steps, "metavar": "SOLVER:STEPS"}
    parser.add_argument("--settings", nargs="+", help="(default: adams and edm-heun, each of 12 to 40 steps)", **how)
    parser.add_argument("--reference", default="edm-heun:100", help="what they are measured against", **how)
    parser.add_argument("--num-samples", type=COUNT, default=64, help="images by each solver")
    parser.add_argument("--seed", type=SEED, default=0, help="random seed of the noise")
    add_guidance_arguments(parser)
    add_device_arguments(parser)
    args = parser.parse_args()
    args.solver, args.num_steps = args.reference
    return args


def solver_and_steps(text: str) -> tuple[str, int]:
    """An argparse type: "adams:20"."""
    solver, _, steps = text.partition(":")
    if solver not in FIXED_STEP_SOLVERS:
        raise argparse.ArgumentTypeError(f"there is no solver {solver!r}: choose from {', '.join(FIXED_STEP_SOLVERS)}")
    return solver, COUNT(steps)


@torch.no_grad()
def main() -> None:
    args = parse_args()
    device = choose_device(args.device)
    precision = choose_precision(args.precision, device)
    teacher = load_teacher(args.teacher, args, device, otherwise="it has no solver to choose")
    (reference_settings,) = sampling_settings(args, [teacher])

    def images(settings: SamplingSettings) -> tuple[Tensor, int]:
        classes = range(len(teacher.class_names))
        sampling = (teacher.model, args.seed, 0, args.num_samples, classes, settings)
        batches = list(draw_blocks(*sampling, precision=precision, guide=teacher.guide_model))
        return torch.cat([batch.images for batch in batches]), batches[0].network_calls

    reference, calls = images(reference_settings)
    print(f"{describe_machine(device)}, {precision.name}, torch {torch.__version__}; seed {args.seed}")
    print(f"{args.num_samples} images against those of {reference_settings.describe()} ({calls} network calls)")
    rows = []
    for solver, num_steps in args.settings or SETTINGS:
        drawn, calls = images(replace(reference_settings, solver=solver, num_steps=num_steps))
        share = ((drawn - reference) ** 2).mean() / reference.var()
        rows.append((f"{solver} {num_steps}", str(calls), f"{share:.2e}"))
    print(text_table(("solver", "network calls", "share of variance"), rows))


if __name__ == "__main__":
    run(main)
