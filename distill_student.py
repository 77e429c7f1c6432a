"""Stage 3: distil the teacher into a student that makes an image with one network call.

    x1 = x0 + u(x0, 0)

Reads   the teacher's checkpoint and its noise pairs; with --loss features or --critic a feature network, and for the
        latter the teacher's images
Writes  OUT/student.safetensors (EMA weights), training_state.pt, metrics.jsonl, loss.png, previews/, tensorboard/

Smoke   python distill_student.py --teacher smoke/teacher/teacher.safetensors --pairs smoke/noise_pairs --steps 20 \\
            --warmup-steps 5 --decay-steps 5 --out smoke/one_step
Full    python distill_student.py
"""

import argparse

import torch
from torch import Tensor

from common import command_line
from common.critics import settle_critic_arguments
from common.distillation import Distillation, student_parser
from common.errors import UserError
from common.training import step_generator


def parse_args() -> argparse.Namespace:
    return student_parser(__doc__, out="checkpoints/one_step").parse_args()


def main() -> int:
    args = parse_args()
    settle_critic_arguments(args)
    num_fresh = round(args.critic_share * args.batch_size) if args.critic else 0
    num_pairs = args.batch_size - num_fresh
    if num_pairs == 0 or (args.critic and num_fresh == 0):
        raise UserError(f"--batch-size {args.batch_size} is too small for --critic-share {args.critic_share}")
    run = Distillation(args, "one_step", num_pairs, num_fresh)

    def jump(network, noise: Tensor, labels: Tensor | None) -> Tensor:
        """One Euler step across the whole flow."""
        return noise + network(noise, torch.zeros(len(noise), device=run.device), labels)

    def batch_loss(network, step):
        """The jump must land on the teacher's image (Liu et al. 2022, section 2.2). A critic judges fresh noise's."""
        generator = step_generator(args.seed, step, run.device)
        pair = run.batch(step, generator)
        images = jump(network, *run.with_fresh_noise(pair, generator))
        return run.image_distance(images[:num_pairs], pair.image).mean() + run.critic_loss(images[num_pairs:])

    return run.train(batch_loss, "student.safetensors")


if __name__ == "__main__":
    command_line.run(main)
