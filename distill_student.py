"""Stage 3: distil the teacher into a student that makes an image with one network call.

    x1 = x0 + u(x0, 0)

Reads   the teacher's checkpoint and its noise pairs; with --loss features a feature network
Writes  OUT/student.safetensors (EMA weights), training_state.pt, metrics.jsonl, loss.png, previews/, tensorboard/

Smoke   python distill_student.py --teacher smoke/teacher/teacher.safetensors --pairs smoke/noise_pairs --steps 20 \\
            --warmup-steps 5 --decay-steps 5 --out smoke/one_step
Full    python distill_student.py
"""

import argparse

import torch

from common import command_line
from common.checkpoint import student_settings
from common.distillation import Distillation
from common.distillation_arguments import student_parser
from common.training import step_generator


def parse_args() -> argparse.Namespace:
    return student_parser(__doc__, out="checkpoints/one_step").parse_args()


def main() -> int:
    args = parse_args()
    run = Distillation(args, args.batch_size)

    def losses(network, step):
        """One Euler step across the whole flow must land on the teacher's image (Liu et al. 2022, section 2.2)."""
        pair = run.batch(step, step_generator(args.seed, step, run.device))
        start = torch.zeros(len(pair), device=run.device)
        landed = pair.noise + network(pair.noise, start, pair.labels)
        yield run.image_distance(landed, pair.image).mean()

    student, beginning = run.new_student()
    return run.train(student, "one_step", student_settings("one_step"), losses, beginning)


if __name__ == "__main__":
    command_line.run(main)
