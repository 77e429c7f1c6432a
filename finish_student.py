"""Stage 5, optional: teach a distilled student that its images, as a whole, be distributed as they should.

    distance(its images of the pairs' noise, the teacher's)  +  weight * critic(its images of fresh noise)

A student that was distilled on pairs averages over what it cannot resolve, and blurs. A critic sees that: beside the
real images, in the features of a network of these, or beside the teacher's, by the teacher itself (--critic score). The
pairs keep the student its teacher's: the same noise, the same picture.

Reads   the student's checkpoint, its teacher's and the noise pairs; for the critics by features a feature network's,
        and the teacher's images, unless the teacher's own are the goal (--critic-images teacher); for --critic score
        the guide of the pairs, if they had one
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
from torch import Tensor

from common import command_line
from common.checkpoint import Checkpoint, initial_header, load_checkpoint, prepare
from common.critics import CRITICS, RealImages, make_critic
from common.distillation import Distillation, distillation_parser
from common.errors import UserError
from common.presets import FINISHING_RECIPE
from common.sampling import GuidedVelocity
from common.score_critic import ScoreCritic
from common.solvers import integrate
from common.training import step_generator

CRITIC_WEIGHTS = {"frechet": 0.003, "adversarial": 0.01, "score": 0.5}
"""Of the critics' losses, where none is given."""


def parse_args() -> argparse.Namespace:
    parser = distillation_parser(__doc__, FINISHING_RECIPE, out="checkpoints/finished")
    group = parser.add_argument_group("finish")
    group.add_argument("--student", type=Path, required=True, help="checkpoint of stage 3 or 4")
    group.add_argument("--critic", choices=CRITICS, default="frechet", help="what compares the distributions")
    weights = ", ".join(f"{weight:g} for {name}" for name, weight in CRITIC_WEIGHTS.items())
    group.add_argument("--critic-weight", type=command_line.POSITIVE, help=f"of its loss (default: {weights})")
    group.add_argument(
        "--critic-share",
        type=command_line.FRACTION,
        default=0.5,
        help="share of the batch that starts from fresh noise, of which the teacher's images are not known",
    )
    group.add_argument(
        "--critic-images",
        choices=("real", "teacher"),
        help="what the student's are compared with (default: real; the teacher's for score, which knows no others)",
    )
    group.add_argument(
        "--critic-window", type=command_line.COUNT, help="samples that frechet's moments run over (default: 4096)"
    )
    group.add_argument("--data-dir", type=Path, help="of the real images (default: as it was given to the teacher)")
    return parser.parse_args()


def settle_critic_arguments(args: argparse.Namespace) -> None:
    """Fills in what was left to the critic. Raises UserError for an option that would do nothing."""
    if args.critic == "score" and (args.critic_images == "real" or args.data_dir):
        raise UserError("--critic score knows the teacher's images alone: without --critic-images real or --data-dir")
    if args.critic == "score" and args.steps <= ScoreCritic.HEAD_START:
        raise UserError(f"--critic score is heard after {ScoreCritic.HEAD_START} steps: give more --steps")
    args.critic_images = args.critic_images or ("teacher" if args.critic == "score" else "real")
    if args.critic_images == "teacher" and args.data_dir:
        raise UserError("--data-dir is of the real images: it goes with --critic-images real")
    if args.critic != "frechet" and args.critic_window:
        raise UserError("--critic-window needs --critic frechet")
    if args.critic == "frechet":
        args.critic_window = args.critic_window or 4096
    args.critic_weight = args.critic_weight or CRITIC_WEIGHTS[args.critic]


def require_same_teaching(student: Checkpoint, run: Distillation) -> None:
    """Raises UserError for a student of another teacher or other pairs, or that has seen what is held out now."""
    if student.header.get("teacher") != run.teacher.sha256:
        raise UserError(f"{student.path} is no student of {run.args.teacher}")
    run.pairs.require_student(student)
    run.pairs.require_held_out_unseen(student.header, student.path)


def main() -> int:
    args = parse_args()
    settle_critic_arguments(args)
    student = load_checkpoint(args.student)
    if not student.is_student:
        raise UserError(f"{args.student} is a teacher: give a student")
    # An image takes as many places of the batch as it takes network calls.
    num_images = args.batch_size // student.settings.num_steps
    num_fresh = round(args.critic_share * num_images)
    if not 0 < num_fresh < num_images:
        raise UserError(
            f"--critic-share {args.critic_share} of --batch-size {args.batch_size} must leave something to the critic "
            "and to the pairs"
        )
    run = Distillation(args, num_images - num_fresh)
    require_same_teaching(student, run)
    run.header |= {"student": student.sha256, **initial_header(student)}
    real = RealImages(args, run.teacher, run.pairs)
    if args.critic == "frechet" and num_fresh * args.steps <= args.critic_window:
        raise UserError(
            f"--critic frechet is heard after {args.critic_window:,} images of fresh noise, and {args.steps:,} steps "
            f"make {num_fresh * args.steps:,}: give more --steps or a smaller --critic-window"
        )
    critic = make_critic(args, run, real, num_fresh)

    def fresh_noise(generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """Noise (num_fresh, C, H, W) that belongs to no pair, and labels (num_fresh,) where the student has classes."""
        shape = student.model.config.image_shape
        noise = torch.randn(num_fresh, *shape, generator=generator, device=run.device)
        return noise, real.draw_labels(num_fresh, len(student.class_names), generator)

    def make_images(network, noise: Tensor, labels: Tensor | None) -> Tensor:
        """All of the student's steps from noise (n, C, H, W), and a gradient that goes through all of them."""
        velocity = GuidedVelocity(network, labels, student.settings)
        return integrate(velocity, noise, student.settings.solver, student.settings.times)[0]

    def batch_loss(network, step):
        generator = step_generator(args.seed, step, run.device)
        pair = run.batch(step, generator)
        noise, labels = fresh_noise(generator)
        all_labels = None if labels is None else torch.cat([pair.labels, labels])
        images = make_images(network, torch.cat([pair.noise, noise]), all_labels)
        to_teacher = run.image_distance(images[: len(pair)], pair.image).mean()
        return to_teacher + args.critic_weight * critic(images[len(pair) :], labels, generator)

    return run.train(prepare(student.model, run.device), student.stage, student.settings, batch_loss, critic)


if __name__ == "__main__":
    command_line.run(main)
