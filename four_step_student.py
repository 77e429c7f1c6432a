"""Stage 4: distil the teacher into a student that makes an image with four network calls.

    x_s = x_t + (s - t) u(x_t, t),    from t to the next s of 0, 1/4, 1/2, 3/4, 1

or between other times, if the pairs hold the teacher's states there.

Reads   the teacher's checkpoint and its noise pairs with trajectories; with --loss features a feature network
Writes  OUT/four_step.safetensors (EMA weights), training_state.pt, metrics.jsonl, loss.png, previews/, tensorboard/

Smoke   python four_step_student.py --teacher smoke/teacher/teacher.safetensors --pairs smoke/noise_pairs --steps 20 \\
            --warmup-steps 5 --decay-steps 5 --out smoke/four_step
Full    python four_step_student.py
"""

import argparse

import torch
from torch import Tensor

from common import command_line
from common.checkpoint import STUDENT_STEPS, student_settings
from common.distillation import Distillation, student_parser
from common.errors import UserError
from common.pairs import PairBatch
from common.training import step_generator

NUM_STEPS = STUDENT_STEPS["four_step"]


def parse_args() -> argparse.Namespace:
    parser = student_parser(__doc__, out="checkpoints/four_step")
    parser.add_argument(
        "--own-share",
        type=command_line.FRACTION,
        default=0.0,
        help="share of the batch that starts from states which the student reached itself, instead of the teacher's",
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
    # A pair on the student's own way fills four places of the batch, one with each of its steps.
    num_own = round(args.own_share * (args.batch_size // NUM_STEPS))
    num_teacher = args.batch_size - NUM_STEPS * num_own
    if args.own_gradient == "path" and not args.own_share:
        raise UserError("--own-gradient path is of states that the student reached itself: give an --own-share")
    if 0 < num_teacher < NUM_STEPS:
        raise UserError(
            f"--batch-size {args.batch_size} leaves {num_teacher} places to the teacher's states, and each of the "
            f"{NUM_STEPS} steps needs one"
        )
    if (num_own == 0) != (args.own_share == 0):
        raise UserError(f"--batch-size {args.batch_size} is too small for --own-share {args.own_share}")
    run = Distillation(args, num_teacher + num_own, NUM_STEPS - 1, args.step_times)
    settings = student_settings("four_step", run.step_times)
    times = torch.tensor(settings.times, device=run.device)

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

    def loss_on_own_states(network, pair: PairBatch) -> Tensor:
        """From where its own steps have led it, the student must find back to the teacher's next state.

        This keeps errors from compounding, as in DAgger (Ross et al. 2011), but no teacher is asked anew: the target is
        the state of the pair's own path. It costs nothing extra: every network call is a training example. The gradient
        stays within a step, or goes through the whole path: then a step must also lead to where the later ones do well.
        """
        state, distances = pair.noise, []
        targets = pair.path[:, 1:].unbind(1)
        for step, target in enumerate(targets):
            state = advance(network, state, torch.full((len(pair),), step, device=run.device), pair.labels)
            distance = run.image_distance if step == NUM_STEPS - 1 else run.distance
            distances.append(distance(state, target))
            if args.own_gradient == "step":
                state = state.detach()
        return torch.cat(distances)

    def batch_loss(network, step):
        pair = run.batch(step, step_generator(args.seed, step, run.device))
        losses = []
        if num_teacher:
            losses.append(loss_on_teacher_states(network, pair[:num_teacher]))
        if num_own:
            losses.append(loss_on_own_states(network, pair[num_teacher:]))
        return torch.cat(losses).mean()

    return run.train(run.new_student(), "four_step", settings, batch_loss)


if __name__ == "__main__":
    command_line.run(main)
