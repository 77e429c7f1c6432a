"""Stage 2: let the teacher turn noise into images, and keep both: the pairs that teach the students.

Reads   the teacher's checkpoint
Writes  OUT/pairs_00000.pt, pairs_00001.pt, ...: shards of 1,024 pairs with the teacher's states at some times between

The same command, run again, makes the shards that are missing; with more --num-pairs it adds to the set.

Smoke   python generate_noise_dataset.py --teacher smoke/teacher/teacher.safetensors --num-pairs 64 --num-steps 4 \\
            --out smoke/noise_pairs
Full    python generate_noise_dataset.py --num-pairs 100000
"""

import argparse
import sys
from pathlib import Path

import torch
from tqdm import tqdm

from common import command_line, sampling_arguments
from common.checkpoint import Checkpoint
from common.class_turns import kept_counts
from common.device import choose_device, choose_precision
from common.files import folder_to_oneself, save_tensor_file
from common.noise import BLOCK_SIZE
from common.pair_shards import (
    FORMAT,
    SHARD_SIZE,
    TRAJECTORY_TIMES,
    existing_count,
    read_shard,
    shard_path,
    shard_paths,
    shard_tensors,
)
from common.sampling import draw_blocks, flop_behind
from common.solvers import FIXED_STEP_SOLVERS, grid_index, in_words, nearest_times
from common.training_state import STATE_FILE


def parse_args() -> argparse.Namespace:
    parser = command_line.ArgumentParser(__doc__)
    parser.add_argument(
        "--teacher", type=Path, default=Path("checkpoints/teacher/teacher.safetensors"), help="checkpoint of stage 1"
    )
    parser.add_argument("--out", type=Path, default=Path("noise_pairs"), help="folder of the shards")
    parser.add_argument("--num-pairs", type=command_line.COUNT, default=100_000, help="pairs in the whole set")
    parser.add_argument("--seed", type=command_line.SEED, default=0, help="random seed of the noise")
    parser.add_argument(
        "--batch-size",
        type=command_line.bounded(int, low=1, high=SHARD_SIZE),
        default=BLOCK_SIZE,
        help=f"pairs integrated at a time, {SHARD_SIZE} at most; larger keeps a GPU busy",
    )
    parser.add_argument(
        "--trajectory-times",
        type=command_line.INNER_TIME,
        nargs="*",
        metavar="T",
        default=TRAJECTORY_TIMES,
        help="keep the states at these times between 0 and 1, or at the solver's nearest: a four-step student needs "
        "0.25 0.5 0.75",
    )
    sampling_arguments.add_sampling_arguments(parser, FIXED_STEP_SOLVERS)
    command_line.add_device_arguments(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    device = choose_device(args.device)
    precision = choose_precision(args.precision, device)
    teacher = sampling_arguments.load_teacher(args.teacher, args, device, otherwise="pairs are made by a teacher")
    warn_of_a_paused_teacher(teacher)
    (settings,) = sampling_arguments.sampling_settings(args, [teacher])
    keep_times = nearest_times(sorted(args.trajectory_times), settings.times[1:-1])
    warn_of_missing_states(args.trajectory_times, keep_times)

    # Everything that the pairs are a function of, but for what rounding owes to the device and the batch size.
    recipe = {
        "format": FORMAT,
        "teacher": teacher.sha256,
        "guide": teacher.guide.sha256 if teacher.guide else None,
        "sampling": settings.to_dict(),
        "trajectory_times": keep_times,
        "seed": args.seed,
        "precision": precision.name,
        "class_names": teacher.class_names,
        **kept_counts(teacher.header),
        "image_shape": list(teacher.model.config.image_shape),
    }

    # One shard after the other; what is there already is kept.
    with folder_to_oneself(args.out), tqdm(total=args.num_pairs, unit="pair", desc="noise pairs") as bar:
        for path in shard_paths(args.out):  # also those that nothing is added to
            existing_count(path, recipe)
        for start in range(0, args.num_pairs, SHARD_SIZE):
            count = min(SHARD_SIZE, args.num_pairs - start)
            path = shard_path(args.out, start // SHARD_SIZE)
            existing = min(existing_count(path, recipe), count)
            bar.initial += existing  # the rate is of those that are made now
            bar.update(existing)
            if existing == count:
                continue
            batches = []
            for batch in draw_blocks(
                teacher.model,
                args.seed,
                start + existing,
                count - existing,
                teacher.class_turns,
                settings,
                keep_times=keep_times,
                precision=precision,
                batch_size=args.batch_size,
                stream="pairs",
                guide=teacher.guide_model,
            ):
                batches.append(batch)
                bar.update(len(batch.images))
            tensors, flop = shard_tensors(batches), flop_behind(batches, teacher.model, teacher.guide_model)
            if existing:  # to the bit, which drawing them again in other batches would not keep
                shard = read_shard(path)
                tensors = {name: torch.cat([shard[name], added]) for name, added in tensors.items()}
                flop += shard["header"]["flop"]
            header = {**recipe, "start": start, "count": count, "flop": flop}
            save_tensor_file(path, {"header": header, **tensors})

    held = sum(read_shard(path)["header"]["count"] for path in shard_paths(args.out))
    states = f"states at t = {in_words(keep_times)}" if keep_times else "no states"
    print(f"{args.out} holds {held:,} pairs of {args.teacher}: {settings.describe()}, {states}, {precision.name}")


def warn_of_a_paused_teacher(teacher: Checkpoint) -> None:
    """A snapshot of a run that goes on stays as it is; the weights of one that is only paused do not."""
    step, steps = teacher.header["step"], teacher.header["arguments"].get("steps", 0)
    if step < steps and (teacher.path.parent / STATE_FILE).is_file():
        print(
            f"warning: {teacher.path} is paused after {step:,} of {steps:,} steps; once it goes on, it is not the "
            "teacher of these pairs",
            file=sys.stderr,
        )


def warn_of_missing_states(wanted: list[float], kept: list[float]) -> None:
    """Pairs without any states are for a one-step student, and need no warning."""
    if not kept or all(grid_index(time, kept) is not None for time in TRAJECTORY_TIMES):
        return
    needed = in_words(TRAJECTORY_TIMES)
    remedy = "every solver passes through these where --num-steps is a multiple of 4"
    if not set(TRAJECTORY_TIMES) <= set(wanted):
        remedy = "give these --trajectory-times, too"
    print(
        f"warning: these pairs hold states at t = {in_words(kept)}, and four_step_student.py needs them at "
        f"t = {needed}: {remedy}",
        file=sys.stderr,
    )


if __name__ == "__main__":
    command_line.run(main)
