"""Stage 5, optional: train a distilled student on, so that its images are distributed as they should be.

    distance(its images of the pairs' noise, the teacher's)  +  weight * critic(its images of fresh noise)

A student that was distilled on pairs averages over what it cannot resolve, and blurs. The critic compares the
distribution of its images with that of real ones, or of the teacher's, in classifier features. The pairs keep the
student close to its teacher: the same noise, the same picture.

Reads   the checkpoints of the student, its teacher and a feature network, and the noise pairs; the images that trained
        the teacher, unless the teacher's own are the goal (--critic-images teacher)
Writes  OUT/student.safetensors or OUT/four_step.safetensors, as the student is (EMA weights), training_state.pt,
        metrics.jsonl, loss.png, previews/, tensorboard/

Smoke   python finish_student.py --teacher smoke/teacher/teacher.safetensors --pairs smoke/noise_pairs \\
            --feature-network smoke/feature_network/feature_network.safetensors \\
            --student smoke/one_step/student.safetensors --steps 20 --warmup-steps 5 --decay-steps 5 \\
            --batch-size 128 --critic-window 1024 --out smoke/finished
Full    python finish_student.py --student checkpoints/one_step/student.safetensors
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn

from common import command_line
from common.checkpoint import initial_header, load_checkpoint, prepare
from common.critics import add_critic_arguments, make_critic, split_batch
from common.distillation import Distillation
from common.distillation_arguments import distillation_parser
from common.errors import UserError
from common.noise import derive_seed
from common.presets import FINISHING_RECIPE
from common.sampling import GuidedVelocity, SamplingSettings
from common.solvers import integrate
from common.target_images import TargetImages, draw_labels
from common.training import step_generator


def parse_args() -> argparse.Namespace:
    parser = distillation_parser(__doc__, FINISHING_RECIPE, out="checkpoints/finished")
    parser.add_argument("--student", type=Path, required=True, help="checkpoint of stage 3 or 4")
    add_critic_arguments(parser)
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    student = load_checkpoint(args.student)
    if not student.is_student:
        raise UserError(f"{args.student} is a teacher: give a student")
    num_pairs, num_fresh = split_batch(args, student.settings.num_steps)
    run = Distillation(args, num_pairs)
    run.require_own_student(student)
    beginning = {"student": student.sha256, **initial_header(student)}
    target = TargetImages(args, run.teacher, run.pairs)
    critic = make_critic(args, run, target, per_step=num_fresh)
    seed = derive_seed("finishing", args.seed, student.sha256)  # what is finished again sees other noise than before
    image_shape = student.model.config.image_shape

    def losses(network, step):
        generator = step_generator(seed, step, run.device)
        pair = run.batch(step, generator)
        images = make_images(network, pair.noise, pair.labels, student.settings)
        yield run.image_distance(images, pair.image).mean()

        noise = torch.randn(num_fresh, *image_shape, generator=generator, device=run.device)
        labels = draw_labels(target.labels, num_fresh, generator)
        images = make_images(network, noise, labels, student.settings)
        yield args.critic_weight * critic(images, labels, generator)

    network = prepare(student.model, run.device)
    return run.train(network, student.stage, student.settings, losses, beginning, critic, num_fresh)


def make_images(network: nn.Module, noise: Tensor, labels: Tensor | None, settings: SamplingSettings) -> Tensor:
    """The student's images of noise (n, C, H, W), with a gradient that goes through all of its steps."""
    return integrate(GuidedVelocity(network, labels, settings), noise, settings.solver, settings.times)[0]


if __name__ == "__main__":
    command_line.run(main)
