"""Measure generated images: FID, KID, precision and recall, and the Inception Score, of checkpoints or of image files.

Reads   checkpoints, or image folders, or .npz files with `arr_0` (uint8, N x H x W x 3) from any other model
        --reference: `cifar10`, `cifar10-jpeg`, an image folder, or an .npz of statistics (`mu`, `sigma`)
Writes  a table; --output: one JSON line a result, appended; with --sweep also --figure
        --features: the Inception features, so that an interrupted run goes on; may be deleted at any time
        with --fit .cache/ beside the reference's folder: the fitted pictures; the same

The published protocol   python compute_fid.py checkpoints/pretrained/student.safetensors
Another model's images   python compute_fid.py samples/theirs.npz
FID against steps        python compute_fid.py checkpoints/pretrained/{teacher,four_step,student}.safetensors \\
                             --solver euler --sweep 1,2,4,8,16,32
Smoke                    python compute_fid.py checkpoints/pretrained/student.safetensors --num-samples 64 --kid-only
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import torch
import torch_fidelity

from common import command_line, metrics, sampling_arguments
from common.curves import fid_curve
from common.device import Precision
from common.errors import UserError
from common.feature_store import PART_SIZE, Features, FeatureStore
from common.files import require_writable, write_bytes
from common.image_sets import ModelSamples, StoredImages, load_image_set
from common.inception import FEATURE_COUNT, Inception
from common.noise import BLOCK_SIZE
from common.reference import FITS, Reference, open_reference, reference_features
from common.results import (
    append_result,
    comparable_groups,
    group_title,
    read_results,
    short_id,
    table_of,
)
from common.tables import text_table

ENOUGH_SAMPLES = 10_000
FIGURE = Path("samples/fid_sweep.png")


def parse_args() -> argparse.Namespace:
    parser = command_line.ArgumentParser(__doc__)
    parser.add_argument("inputs", nargs="+", type=Path, metavar="INPUT", help="checkpoint, image folder or .npz")
    parser.add_argument(
        "--num-samples",
        type=command_line.bounded(int, low=2),
        help="samples of each model (default: 50000), or a random subset of stored images (default: all of them)",
    )
    parser.add_argument("--seed", type=command_line.SEED, default=0, help="random seed of the noise, or of the subset")
    sampling_arguments.add_classes_argument(parser, otherwise="all, as often as among the training images")
    parser.add_argument(
        "--batch-size",
        type=command_line.bounded(int, low=1, high=PART_SIZE),
        default=BLOCK_SIZE,
        help=f"samples drawn at a time, {PART_SIZE} at most",
    )
    parser.add_argument(
        "--sweep", type=parse_step_counts, metavar="1,2,4,...", help="run the teachers with each --num-steps"
    )
    parser.add_argument("--kid-only", action="store_true", help="KID alone, which few samples suffice for")
    group = parser.add_argument_group("reference")
    group.add_argument("--reference", default="cifar10", help="cifar10, cifar10-jpeg, an image folder, or an .npz")
    group.add_argument(
        "--fit",
        choices=FITS,
        help="how to bring the pictures of a reference folder, which has a sub-folder for each class, to the models' "
        "size: as for training, resize, or as with its --crop (default: they must have that size)",
    )
    group.add_argument("--reference-name", metavar="NAME", help="what to call it in the results (default: its name)")
    group.add_argument("--data-dir", type=Path, default=Path("data"), help="where CIFAR-10 is, or is downloaded to")
    group.add_argument(
        "--inception-weights", type=Path, metavar="FILE", help="in torch-fidelity's format (default: downloaded once)"
    )
    group = parser.add_argument_group("files")
    group.add_argument("--output", type=Path, metavar="FILE.jsonl", help="append each result as a JSON line")
    group.add_argument("--figure", type=Path, help=f"the figure of --sweep (default: {FIGURE})")
    group.add_argument("--features", type=Path, default=Path("data/features"), help="folder of extracted features")
    sampling_arguments.add_sampling_arguments(parser)
    command_line.add_device_arguments(parser)
    parser.checks.append(check_sweep)
    return parser.parse_args()


def check_sweep(args: argparse.Namespace) -> None:
    """Raises UserError for options that do not go together with --sweep, or need it."""
    if args.figure and not args.sweep:
        raise UserError("--figure needs --sweep")
    if args.sweep and args.solver == "dopri5":
        raise UserError("dopri5 chooses its own steps: --sweep needs another --solver")
    if args.sweep and args.num_steps is not None:
        raise UserError("--sweep says how many steps: leave out --num-steps")
    if args.sweep and args.kid_only:
        raise UserError("--sweep draws FID: leave out --kid-only")


def parse_step_counts(text: str) -> list[int]:
    """An argparse type: "1,2,4" to [1, 2, 4]."""
    return [command_line.COUNT(part) for part in text.split(",")]


def main() -> None:
    args = parse_args()
    precision = sampling_arguments.sampling_precision(args)
    figure = (args.figure or FIGURE) if args.sweep else None
    for path in filter(None, (args.output, figure)):
        require_writable(path)
    if args.output:
        read_results(args.output)  # a damaged file is found now, not after hours

    subjects = open_subjects(args, precision)
    for images, count in subjects:
        refuse_too_few(images.name, count, args.kid_only)
    image_size = min(subjects[0][0].image_size)
    reference = open_reference(args.reference, args.reference_name, args.data_dir, args.fit, image_size)
    can_be_fitted = not args.fit and Path(args.reference).is_dir()
    refuse_what_cannot_be_measured(subjects, reference, args.kid_only, can_be_fitted)
    inception = Inception(args.inception_weights, precision.device)
    say_what_is_left_out(subjects, reference, inception, args.kid_only)

    store = FeatureStore(args.features, inception)
    features_of_reference, statistics_of_reference = None, reference.statistics
    if reference.images:
        features_of_reference, statistics_of_reference = reference_features(reference.images, store)

    results = []
    try:
        for images, count in subjects:
            features = store.features(images, count)
            outcome = measure(features.values, features_of_reference, statistics_of_reference, inception, args.kid_only)
            result = images.describe() | outcome | circumstances(count, features, reference, inception)
            results.append(result)
            if args.output and not append_result(args.output, result):
                print(f"{args.output} has this result of {images.name} already", file=sys.stderr)
    finally:  # also what was measured before something went wrong
        ids = ids_of_one_stage(subjects[: len(results)])
        for group in comparable_groups(results):
            print(f"\n{group_title(group)}\n{text_table(*table_of(group, with_times=True, with_ids=bool(ids)))}")
        for name, path in ids.items():
            print(f"{name}  {path}")
    if figure:
        write_bytes(figure, fid_curve(comparable_groups(results)[0]))
        print(f"\n{figure}: FID against network calls")


def open_subjects(args: argparse.Namespace, precision: Precision) -> list[tuple[ModelSamples | StoredImages, int]]:
    """What is to be measured, with the number of its images; a teacher once for each of the --sweep."""
    is_model = [path.suffix == ".safetensors" for path in args.inputs]
    if not any(is_model) and (args.classes or sampling_arguments.sampling_was_asked_for(args)):
        raise UserError("classes and settings of the sampler are for checkpoints, and there is none among the inputs")
    if args.sweep and not all(is_model):
        raise UserError("--sweep needs checkpoints, and there are images among the inputs")
    checkpoints = [
        sampling_arguments.load_guided(path, args, precision.device)
        for path, model in zip(args.inputs, is_model, strict=True)
        if model
    ]
    if args.sweep and all(checkpoint.is_student for checkpoint in checkpoints):
        raise UserError("students have steps of their own: --sweep needs a teacher")
    settings_of = sampling_arguments.sampling_settings(args, checkpoints)
    subjects = []
    for checkpoint, settings in zip(checkpoints, settings_of, strict=True):
        classes = checkpoint.class_turns
        if args.classes:
            classes = sampling_arguments.chosen_classes(args.classes, checkpoint)
        step_counts = args.sweep if args.sweep and not checkpoint.is_student else [settings.num_steps]
        for num_steps in step_counts:
            how = replace(settings, num_steps=num_steps)
            images = ModelSamples(checkpoint, how, args.seed, classes, precision, args.batch_size)
            subjects.append((images, args.num_samples or 50_000))
    for path, model in zip(args.inputs, is_model, strict=True):
        if not model:
            images = load_image_set(path, args.num_samples, args.seed)
            subjects.append((images, images.count))
    return subjects


def ids_of_one_stage(subjects: list[tuple[ModelSamples | StoredImages, int]]) -> dict[str, Path]:
    """The ids of the models, with their files, where two of them would have one name in a table; else none."""
    models = {images.checkpoint.sha256: images.checkpoint for images, _ in subjects if isinstance(images, ModelSamples)}
    stages = {model.stage for model in models.values()}
    return {short_id(name): model.path for name, model in models.items()} if len(stages) < len(models) else {}


def refuse_what_cannot_be_measured(
    subjects: list[tuple], reference: Reference, kid_only: bool, can_be_fitted: bool
) -> None:
    if kid_only and not reference.images:
        raise UserError(f"KID needs images to compare with, and {reference.name} has statistics only")
    if reference.statistics and len(reference.statistics.mean) != FEATURE_COUNT:
        raise UserError(
            f"{reference.name} has statistics of {len(reference.statistics.mean)} features, not {FEATURE_COUNT}"
        )
    if reference.images:
        refuse_too_few(reference.name, reference.count, kid_only)
    hint = " (--fit brings those of a folder to another size)" if can_be_fitted else ""
    for images, _ in subjects:
        if reference.images and images.image_size != reference.images.image_size:
            ours, theirs = (f"{width} x {height}" for height, width in (images.image_size, reference.images.image_size))
            raise UserError(f"the images of {images.name} are {ours}, those of {reference.name} {theirs}{hint}")


def refuse_too_few(name: str, count: int, kid_only: bool) -> None:
    if count < 2:
        raise UserError(f"{name} has {count} image: KID needs two or more")
    if count <= FEATURE_COUNT and not kid_only:
        raise UserError(
            f"{name}: {count:,} images leave the covariance of {FEATURE_COUNT:,} features singular; FID needs more "
            f"than {FEATURE_COUNT:,} (--kid-only needs fewer)"
        )


def say_what_is_left_out(subjects: list[tuple], reference: Reference, inception: Inception, kid_only: bool) -> None:
    fewest = min(count for _, count in subjects)
    if fewest < ENOUGH_SAMPLES and not kid_only:
        print(
            f"warning: FID is biased upwards by about c / n; {fewest:,} samples are few, and their FID compares only "
            "with FIDs of as many samples",
            file=sys.stderr,
        )
    if not reference.images:
        print(f"{reference.name} holds statistics only: no KID, precision or recall", file=sys.stderr)
    of_models = [images for images, _ in subjects if isinstance(images, ModelSamples)]
    of_some = [images for images in of_models if set(images.classes) < set(images.checkpoint.class_turns)]
    if of_some:
        chosen = ", ".join(of_some[0].describe()["classes"])
        print(
            f"warning: the samples are of {chosen} alone; {reference.name} should be, too: a folder of such images can "
            "be the --reference",
            file=sys.stderr,
        )
    if inception.classifier is None and not kid_only:
        print("these Inception weights have no classifier (fc is zero): no Inception Score", file=sys.stderr)


def measure(
    features: torch.Tensor,
    reference: torch.Tensor | None,
    statistics_of_reference: metrics.Statistics,
    inception: Inception,
    kid_only: bool,
) -> dict:
    """Every metric by name; None for what cannot be had."""
    names = ("fid", "kid", "kid_std", "precision", "recall", "precision_recall_samples", "inception_score")
    values = dict.fromkeys(names)
    if reference is not None:
        values["kid"], values["kid_std"] = metrics.kernel_inception_distance(features, reference)
    if kid_only:
        return values
    values["fid"] = metrics.frechet_distance(metrics.statistics(features), statistics_of_reference)
    if reference is not None:
        side = metrics.precision_and_recall(features, reference)
        values["precision"], values["recall"], values["precision_recall_samples"] = side
    if inception.classifier is not None:
        values["inception_score"] = metrics.inception_score(features, inception.classifier)
    return values


def circumstances(count: int, features: Features, reference: Reference, inception: Inception) -> dict:
    """What it takes to repeat a result, beside what was measured."""
    return {
        "nfe": features.network_calls,
        "num_samples": count,
        "reference": reference.name,
        "reference_sha256": reference.sha256,
        "reference_count": reference.count,
        "inception_sha256": inception.sha256,
        "seconds": round(features.seconds, 1),
        "drawing_seconds": round(features.drawing_seconds, 3),
        "machine": " and ".join(sorted(features.machines)),
        "versions": {
            "code": " and ".join(sorted(features.code_versions)),
            "torch": torch.__version__,
            "torch_fidelity": torch_fidelity.__version__,
        },
    }


if __name__ == "__main__":
    command_line.run(main)
