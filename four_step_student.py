"""Stage 4: distil the teacher into a student that makes an image with four network calls.

    x_s = x_t + (s - t) u(x_t, t),    s = t + 1/4,    for t = 0, 1/4, 1/2, 3/4

Each step starts from the teacher's state at t, and is trained to land on the teacher's state at s.

Reads   the teacher's checkpoint and its noise pairs with trajectories; with --loss features a feature network
Writes  OUT/four_step.safetensors (EMA weights), training_state.pt, metrics.jsonl, loss.png, previews/, tensorboard/

Smoke   python four_step_student.py --teacher smoke/teacher/teacher.safetensors --pairs smoke/noise_pairs --steps 20 \\
            --warmup-steps 5 --decay-steps 5 --out smoke/four_step
Full    python four_step_student.py
"""

import argparse

import torch

from common import command_line
from common.checkpoint import student_settings
from common.distillation import Distillation
from common.distillation_arguments import student_parser
from common.errors import UserError
from common.stages import STAGES
from common.training import step_generator

NUM_STEPS = STAGES["four_step"].num_steps


def parse_args() -> argparse.Namespace:
    return student_parser(__doc__, out="checkpoints/four_step").parse_args()


def main() -> int:
    args = parse_args()
    if args.batch_size < NUM_STEPS:
        raise UserError(f"--batch-size {args.batch_size} is too small: each of the {NUM_STEPS} steps needs an example")
    settings = student_settings("four_step")
    run = Distillation(args, args.batch_size, state_times=settings.times[1:-1])

    def losses(network, step):
        """From each of the teacher's states, one step of 1/4 must land on the teacher's next state."""
        pair = run.batch(step, step_generator(args.seed, step, run.device))
        rows = torch.arange(len(pair), device=run.device)
        index = rows * NUM_STEPS // len(pair)  # which step a pair trains: a quarter of the pairs for each, in order
        states = pair.trajectory
        start, target = states[rows, index], states[rows, index + 1]
        landed = start + network(start, index / NUM_STEPS, pair.labels) / NUM_STEPS
        # Only the last step lands on images, and only these have features.
        num_images = len(pair) // NUM_STEPS
        to_states = run.distance(landed[:-num_images], target[:-num_images])
        to_images = run.image_distance(landed[-num_images:], target[-num_images:])
        yield torch.cat([to_states, to_images]).mean()

    student, beginning = run.new_student()
    return run.train(student, "four_step", settings, losses, beginning)


if __name__ == "__main__":
    command_line.run(main)
