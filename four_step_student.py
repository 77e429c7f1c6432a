"""Stage 4: distil the teacher into a student that makes an image with four network calls.

    x_s = x_t + (s - t) u(x_t, t),    from t to the next s of 0, 1/4, 1/2, 3/4, 1

or between other times, if the pairs hold the teacher's states there.

Reads   the teacher's checkpoint and its noise pairs with trajectories; with --loss features or --critic a feature
        network, and for the latter the teacher's images
Writes  OUT/four_step.safetensors (EMA weights), training_state.pt, metrics.jsonl, loss.png, previews/, tensorboard/

Smoke   python four_step_student.py --teacher smoke/teacher/teacher.safetensors --pairs smoke/noise_pairs --steps 20 \\
            --warmup-steps 5 --decay-steps 5 --out smoke/four_step
Full    python four_step_student.py
"""

import argparse

import torch
from torch import Tensor

from common import command_line
from common.critics import settle_critic_arguments
from common.distillation import Distillation, student_parser
from common.errors import UserError
from common.pairs import PairBatch
from common.training import step_generator

NUM_STEPS = 4


def parse_args() -> argparse.Namespace:
    parser = student_parser(__doc__, out="checkpoints/four_step")
    parser.add_argument(
        "--own-share",
        type=command_line.FRACTION,
        default=0.5,
        help="share of the pairs' part of the batch that starts from states which the student reached itself; 0 is the "
        "teacher's alone",
    )
    parser.add_argument(
        "--own-gradient",
        choices=("step", "path"),
        default="step",
        help="how far the gradient goes back from a state that the student reached itself: to the start of its last "
        "step, or through all steps from the noise",
    )
    parser.add_argument(
        "--step-times",
        type=command_line.FRACTION,
        nargs=NUM_STEPS - 1,
        metavar="T",
        help="where its second to fourth step begin: the nearest of the times that the pairs hold (default: those)",
    )
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    settle_critic_arguments(args)
    # What is rolled out fills four places of the batch, one with each of its steps.
    num_fresh = round(args.critic_share * args.batch_size / NUM_STEPS) if args.critic else 0
    left = args.batch_size // NUM_STEPS - num_fresh
    num_own = min(round(args.own_share * left), left)
    num_teacher = args.batch_size - NUM_STEPS * (num_own + num_fresh)
    if args.critic and (num_fresh == 0 or left == 0):
        raise UserError(f"--batch-size {args.batch_size} is too small for --critic-share {args.critic_share}")
    if (num_own == 0) != (args.own_share == 0):
        raise UserError(f"--batch-size {args.batch_size} is too small for --own-share {args.own_share}")
    run = Distillation(args, "four_step", num_teacher + num_own, num_fresh, NUM_STEPS - 1, args.step_times)
    times = torch.tensor(run.settings.times, device=run.device)

    def advance(network, state: Tensor, index: Tensor, labels: Tensor | None) -> Tensor:
        """The student's steps `index` (n,), from states (n, C, H, W)."""
        length = (times[index + 1] - times[index]).view(-1, 1, 1, 1)
        return state + length * network(state, times[index], labels)

    def loss_on_teacher_states(network, pair: PairBatch) -> Tensor:
        """From one of the teacher's states, the student must reach the next; a quarter of the pairs for each step."""
        rows = torch.arange(len(pair), device=run.device)
        index = rows * NUM_STEPS // len(pair)  # sorted: those that end at an image come last
        first_image = -(-len(pair) * (NUM_STEPS - 1) // NUM_STEPS)
        path = pair.path
        arrived, target = advance(network, path[rows, index], index, pair.labels), path[rows, index + 1]
        distances = run.distance(arrived[:first_image], target[:first_image])
        return torch.cat([distances, run.image_distance(arrived[first_image:], target[first_image:])])

    def roll_out(network, state: Tensor, labels: Tensor | None, num_pairs: int) -> list[Tensor]:
        """The student's own states after each of its steps from noise, of which the first `num_pairs` are of pairs.

        These have a target after each step, and their gradient stays within a step, or goes through the whole path:
        then a step is also asked to lead to where the later ones do well. The others are judged by their image alone,
        so that their gradient always does.
        """
        num_detached = num_pairs if args.own_gradient == "step" else 0
        states = []
        for step in range(NUM_STEPS):
            state = advance(network, state, torch.full((len(state),), step, device=run.device), labels)
            states.append(state)
            state = torch.cat([state[:num_detached].detach(), state[num_detached:]])
        return states

    def loss_on_own_states(states: list[Tensor], pair: PairBatch) -> Tensor:
        """From where its own steps have led it, the student must find back to the teacher's next state.

        This keeps errors from compounding, as in DAgger (Ross et al. 2011), but no teacher is asked anew: the target is
        the state of the pair's own path. It costs nothing extra: every network call is a training example.
        """
        *before, image = states
        distances = [run.distance(state, target) for state, target in zip(before, pair.states.unbind(1), strict=True)]
        return torch.cat([*distances, run.image_distance(image, pair.image)])

    def batch_loss(network, step):
        generator = step_generator(args.seed, step, run.device)
        pair = run.batch(step, generator)
        own, losses = pair[num_teacher:], []
        if num_teacher:
            losses.append(loss_on_teacher_states(network, pair[:num_teacher]))
        if num_own + num_fresh == 0:
            return torch.cat(losses).mean()
        states = roll_out(network, *run.with_fresh_noise(own, generator), num_own)
        if num_own:
            losses.append(loss_on_own_states([state[:num_own] for state in states], own))
        return torch.cat(losses).mean() + run.critic_loss(states[-1][num_own:])

    return run.train(batch_loss, "four_step.safetensors")


if __name__ == "__main__":
    command_line.run(main)
