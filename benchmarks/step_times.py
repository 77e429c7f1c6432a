"""Where a student's steps should begin: where the teacher's flow is curved.

    python benchmarks/step_times.py checkpoints/pretrained/teacher.safetensors \\
        --guide checkpoints/pretrained/guide.safetensors

A step from t to s would be exact, and need no student, if the teacher's velocity stayed on the way what it is at t. So
the cost of a step is Euler's error in it, the mean square of x_s - x_t - (s - t) v(x_t, t) along the teacher's own
paths. Among all choices of the solver's times as the beginnings of `--steps` steps, prints those with the least sum of
costs, and for comparison the times nearest to equally spaced ones.
"""

import argparse
import sys
from itertools import combinations, pairwise
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent))

from common.command_line import (
    COUNT,
    COUNT_OR_ZERO,
    add_device_arguments,
    add_sampling_arguments,
    bounded,
    load_teacher,
    run,
    sampling_settings,
)
from common.device import choose_device, choose_precision, describe_machine
from common.noise import sample_noise
from common.sampling import GuidedVelocity, balanced_labels, draw_in_steps
from common.solvers import FIXED_STEP_SOLVERS, in_words, nearest_times
from common.tables import text_table


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher", type=Path)
    parser.add_argument("--steps", type=bounded(int, low=2, high=5), default=4, help="steps of the student")
    parser.add_argument("--num-samples", type=COUNT, default=64)
    parser.add_argument("--rows", type=COUNT, default=5, help="choices to print")
    parser.add_argument("--seed", type=COUNT_OR_ZERO, default=0)
    add_sampling_arguments(parser, FIXED_STEP_SOLVERS)
    add_device_arguments(parser)
    return parser.parse_args()


@torch.no_grad()
def main() -> None:
    args = parse_args()
    device = choose_device(args.device)
    precision = choose_precision(args.precision, device)
    teacher = load_teacher(args.teacher, args, device, otherwise="its steps are chosen already")
    settings = sampling_settings(args, teacher, teacher.settings)

    noise = sample_noise(args.seed, 0, args.num_samples, teacher.model.config.image_shape).to(device)
    labels = balanced_labels(range(len(teacher.class_names)), 0, args.num_samples)
    steps = draw_in_steps(teacher.model, noise, labels, settings, precision, teacher.guide_model)
    states = [noise, *(step.state for step in steps)]
    velocity = GuidedVelocity(
        teacher.model, None if labels is None else labels.to(device), settings, teacher.guide_model
    )
    with precision.autocast():
        velocities = [velocity(state, t) for state, t in zip(states[:-1], settings.times, strict=False)]
    costs = euler_errors(states, velocities, settings.times)

    def cost(begins: tuple[int, ...]) -> list[float]:
        return [costs[step] for step in pairwise((0, *begins, len(states) - 1))]

    inner = range(1, len(states) - 1)
    choices = sorted(combinations(inner, args.steps - 1), key=lambda begins: sum(cost(begins)))[: args.rows]
    equal = nearest_times([index / args.steps for index in range(1, args.steps)], settings.times)
    choices.append(tuple(min(inner, key=lambda index: abs(settings.times[index] - time)) for time in equal))
    print(f"{describe_machine(device)}, {precision.name}, torch {torch.__version__}; seed {args.seed}")
    print(f"{args.num_samples} paths of {settings.describe()}; the last row is of equal steps")
    rows = [
        (in_words([settings.times[index] for index in begins]), f"{sum(cost(begins)):.5f}", in_figures(cost(begins)))
        for begins in choices
    ]
    print(text_table(("steps begin at 0 and t =", "cost", "of each step"), rows))


def euler_errors(states: list[Tensor], velocities: list[Tensor], times: list[float]) -> dict[tuple[int, int], float]:
    """The mean squared error of Euler's step between each two of the states, by their indices."""
    return {
        (first, last): (states[last] - states[first] - (times[last] - times[first]) * velocities[first])
        .square()
        .mean()
        .item()
        for first, last in combinations(range(len(states)), 2)
    }


def in_figures(values: list[float]) -> str:
    return ", ".join(f"{value:.5f}" for value in values)


if __name__ == "__main__":
    run(main)
