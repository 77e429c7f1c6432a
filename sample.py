"""Draw images from any checkpoint, or several checkpoints side by side from the same noise.

Reads   one checkpoint, or with --compare several
Writes  --out: a PNG grid, or an .npz with `arr_0` (uint8, N x H x W x 3), `labels` (-1 without) and `settings` (JSON)

Grid       python sample.py checkpoints/pretrained/teacher.safetensors --num-images 100 --seed 0
One class  python sample.py checkpoints/pretrained/student.safetensors --classes frog --out frogs.png
Compare    python sample.py --compare checkpoints/pretrained/{teacher,four_step,student}.safetensors \\
               --guide checkpoints/pretrained/guide.safetensors
"""

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from tqdm import tqdm

from common import command_line, sampling_arguments
from common.checkpoint import Checkpoint
from common.comparison import comparison_table, describe_samples, draw_column, draw_comparison, require_comparable
from common.device import Precision
from common.errors import UserError
from common.files import require_writable, write_bytes
from common.images import enlarged, image_grid, npz_bytes, save_picture, to_uint8
from common.noise import BLOCK_SIZE
from common.pair_shards import how_guided, recipe_of
from common.sampling import SamplingSettings, draw_blocks, labels_in_turn


def parse_args() -> argparse.Namespace:
    parser = command_line.ArgumentParser(__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("checkpoint", nargs="?", type=Path, help="the model to draw from")
    what.add_argument("--compare", nargs="+", type=Path, metavar="CHECKPOINT", help="models to draw side by side")
    parser.add_argument("--out", type=Path, default=Path("samples/samples.png"), help="file to write: .png or .npz")
    parser.add_argument("--num-images", type=command_line.COUNT, default=40, help="images of each model")
    parser.add_argument("--columns", type=command_line.COUNT, default=10, help="images in a row of the grid")
    parser.add_argument(
        "--enlarge",
        type=command_line.bounded(int, low=1, high=32),
        help="pixels for a pixel of the PNG grid (default: 1)",
    )
    parser.add_argument("--seed", type=command_line.SEED, default=0, help="random seed of the noise")
    sampling_arguments.add_classes_argument(parser)
    sampling_arguments.add_sampling_arguments(parser)
    command_line.add_device_arguments(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    precision = sampling_arguments.sampling_precision(args)
    if args.out.suffix not in (".png", ".npz"):
        raise UserError(f"--out must end in .png or .npz, not {args.out.name!r}")
    require_writable(args.out)
    if args.enlarge and (args.compare or args.out.suffix == ".npz"):
        raise UserError("--enlarge works on a PNG grid only: not with --compare, nor for .npz")
    if args.compare:
        compare(args, precision)
        return

    checkpoint = sampling_arguments.load_guided(args.checkpoint, args, precision.device)
    (settings,) = sampling_arguments.sampling_settings(args, [checkpoint])
    classes = sampling_arguments.chosen_classes(args.classes, checkpoint)
    batches = draw_blocks(
        checkpoint.model,
        args.seed,
        0,
        args.num_images,
        classes,
        settings,
        precision=precision,
        guide=checkpoint.guide_model,
    )
    blocks = -(-args.num_images // BLOCK_SIZE)
    pieces, calls = [], 0
    for batch in tqdm(batches, total=blocks, desc="sampling", unit="batch", disable=blocks == 1):
        pieces.append(to_uint8(batch.images).cpu())
        calls += batch.network_calls * len(batch.images)
    images = torch.cat(pieces)
    if args.out.suffix == ".npz":
        description = describe_samples(checkpoint, settings, args.seed)
        write_bytes(args.out, npz_bytes(images, labels_in_turn(classes, 0, len(images)), description))
    else:
        save_picture(enlarged(image_grid(images, args.columns), args.enlarge or 1), args.out)
    print(f"{args.out}: {len(images)} images, seed {args.seed}, {settings.describe()}, NFE {calls / len(images):g}")


def compare(args: argparse.Namespace, precision: Precision) -> None:
    """The teacher runs as it did for the students' pairs, unless the command line says otherwise."""
    if args.out.suffix != ".png":
        raise UserError("--compare draws a figure: --out must end in .png")
    checkpoints = [sampling_arguments.load_guided(path, args, precision.device) for path in args.compare]
    require_comparable(checkpoints)
    recipes = recipes_of_teachers(checkpoints)
    checkpoints = [as_for_pairs(checkpoint, recipes.get(checkpoint.sha256), args) for checkpoint in checkpoints]
    classes = sampling_arguments.chosen_classes(args.classes, checkpoints[0])
    bases = [
        SamplingSettings(**recipe["sampling"]) if (recipe := recipes.get(checkpoint.sha256)) else checkpoint.settings
        for checkpoint in checkpoints
    ]
    settings = sampling_arguments.sampling_settings(args, checkpoints, bases)
    columns = [
        draw_column(checkpoint, how, args.seed, args.num_images, classes, precision)
        for checkpoint, how in zip(tqdm(checkpoints, desc="sampling", unit="model"), settings, strict=True)
    ]
    print(comparison_table(columns))
    draw_comparison(columns, args.out, images_per_row=args.columns)
    print(f"{args.out}: {args.num_images} images of each model, seed {args.seed}, {precision.device}, {precision.name}")


def recipes_of_teachers(checkpoints: list[Checkpoint]) -> dict[str, dict]:
    """By the hashes of the teachers among them, how the pairs of their students were made.

    Raises UserError where two students of a teacher learned from pairs that it made in different ways.
    """
    teachers = {checkpoint.sha256 for checkpoint in checkpoints if not checkpoint.is_student}
    recipes: dict[str, dict] = {}
    for student in (checkpoint for checkpoint in checkpoints if checkpoint.header.get("teacher") in teachers):
        pairs = recipe_of(student.header["pairs"])
        recipe = recipes.setdefault(student.header["teacher"], pairs)
        if any(recipe.get(part) != pairs.get(part) for part in ("sampling", "guide")):
            raise UserError(
                f"{student.path} learned from pairs that its teacher made in another way than those of another student "
                "here: compare the two apart, or without their teacher"
            )
    return recipes


def as_for_pairs(checkpoint: Checkpoint, recipe: dict | None, args: argparse.Namespace) -> Checkpoint:
    """A teacher whose students' pairs had no guide, without the one that lies beside it and that nobody asked for.

    Raises UserError where the pairs' guide is not the one that is given, and nothing is said of guidance.
    """
    if not recipe or sampling_arguments.guidance_was_asked_for(args):
        return checkpoint
    if not recipe.get("guide") and not args.guide:
        return replace(checkpoint, guide=None)
    if recipe.get("guide") != (checkpoint.guide.sha256 if checkpoint.guide else None):
        remedy = "with --guide" if recipe.get("guide") else "without --guide"
        raise UserError(
            f"the students' pairs were made {how_guided(recipe)}: run {checkpoint.path} so, {remedy}, or say how to "
            "guide it (--guidance-scale)"
        )
    return checkpoint


if __name__ == "__main__":
    command_line.run(main)
