"""A second opinion on generated images, by a network that no loss has seen, and whether they repeat real ones.

    python -m benchmarks.second_opinion checkpoints/pretrained/{teacher,four_step,student}.safetensors \\
        --judge checkpoints/pretrained/classifiers/judge.safetensors

Prints of each model's samples the Fréchet distance to the images that were held out from its training, in the judge's
features, and the share that lies closer to a training image than other training images do. Beside them the distance of
training images, and the share of the held-out ones. The judge has learned from the same training images: their distance
is no lower bound. With --pairs also a student's mean squared error against its teacher's images. Of each model, a
figure shows the first ten samples beside the training images nearest to them.

A student's teacher, which says what images it is of, is judged with it or given as --teacher.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from benchmarks.neighbours import nearest, share_closer_than_real
from common import command_line, sampling_arguments
from common.checkpoint import Checkpoint, code_version, load_checkpoint, load_feature_network
from common.classifier import Classifier
from common.data import ImageData, images_behind
from common.device import Precision, describe_machine
from common.distillation import error_on_pairs
from common.errors import UserError
from common.files import require_writable
from common.frechet import unit_variance_scale
from common.image_sets import ModelSamples
from common.images import enlarged, image_grid, save_picture, to_float
from common.lineage import feature_networks, feature_networks_flop, lineage
from common.metrics import frechet_distance, statistics
from common.noise import BLOCK_SIZE
from common.pairs import PairSet, held_out_of
from common.results import NEEDED_OF_OPINIONS, append_result, read_results, run_of
from common.tables import text_table

SHOWN, NEIGHBOURS = 10, 5


def parse_args() -> argparse.Namespace:
    parser = command_line.ArgumentParser(__doc__)
    parser.add_argument("models", nargs="+", type=Path, metavar="CHECKPOINT")
    parser.add_argument("--judge", type=Path, required=True, help="checkpoint of feature_network.py")
    parser.add_argument("--teacher", type=Path, help="the students' teacher, where it is not judged itself")
    parser.add_argument("--pairs", type=Path, help="folder of noise pairs of the students' teacher")
    parser.add_argument("--num-samples", type=command_line.COUNT, default=10_000, help="samples of each model")
    parser.add_argument("--seed", type=command_line.SEED, default=0, help="random seed of the noise")
    parser.add_argument(
        "--data-dir", type=Path, help="where the judge's images are (default: as it was given to the judge)"
    )
    parser.add_argument("--output", type=Path, metavar="FILE.jsonl", help="append each result as a JSON line")
    parser.add_argument("--figures", type=Path, default=Path("samples"), help="folder for the figures")
    sampling_arguments.add_sampling_arguments(parser)
    command_line.add_device_arguments(parser)
    return parser.parse_args()


class Judge:
    """The features of a frozen network, each scaled to unit variance over the training images."""

    def __init__(self, network: Classifier, training: ImageData, held_out: ImageData, device: torch.device):
        self.network, self.device = network, device
        features = self._raw_features(training.images)
        self.scale = unit_variance_scale(features)
        self.training = features * self.scale
        self.mirrored = self.features(training.images.flip(-1))
        self.held_out = self.features(held_out.images)
        self.held_out_statistics = statistics(self.held_out)

    def features(self, images: Tensor) -> Tensor:
        """(N, D) on the CPU, of uint8 images (N, 3, H, W)."""
        return self._raw_features(images) * self.scale

    @torch.no_grad()
    def _raw_features(self, images: Tensor) -> Tensor:
        batches = tqdm(images.split(BLOCK_SIZE), desc="the judge's features", leave=False)
        return torch.cat([self.network.summary(to_float(batch.to(self.device))).cpu() for batch in batches])

    def of_samples(self, features: Tensor) -> dict[str, float]:
        return {"frechet_distance": self._distance(features), "closer_than_real": self._share_closer(features)}

    def of_real_images(self, count: int, seed: int) -> dict[str, float]:
        """What is to be expected: `count` training images by their distance, the held-out ones by their closeness."""
        some = torch.randperm(len(self.training), generator=torch.Generator().manual_seed(seed))[:count]
        return {
            "count": len(some),
            "frechet_distance": self._distance(self.training[some]),
            "closer_than_real": self._share_closer(self.held_out),
        }

    def _distance(self, features: Tensor) -> float:
        return frechet_distance(statistics(features), self.held_out_statistics)

    def _share_closer(self, features: Tensor) -> float:
        return share_closer_than_real(features, self.training, self.mirrored)


def main() -> None:
    args = parse_args()
    precision = sampling_arguments.sampling_precision(args)
    if args.output:
        require_writable(args.output)
        read_results(args.output, NEEDED_OF_OPINIONS)  # a damaged file is found now, not after hours
    models = [sampling_arguments.load_guided(path, args, precision.device) for path in args.models]
    settings_of = sampling_arguments.sampling_settings(args, models)
    network, header, judge_sha256 = load_feature_network(args.judge, precision.device)
    pairs = PairSet(args.pairs, precision.device) if args.pairs else None
    teachers = [*models, *([teacher_of(models, args.teacher)] if args.teacher else [])]
    for model in models:
        refuse_what_cannot_be_judged(model, teachers, args.judge, header, judge_sha256)
        if pairs and model.is_student:
            pairs.require_student(model)
            if pairs.held_out_count < (count := held_out_of(model.header["num_pairs"])):
                raise UserError(f"{pairs.held_out_count} pairs are held out, and {count} of those of {model.path}")
    training, held_out = images_behind(args.judge, header, args.data_dir)
    size = network.summary_size
    if min(len(held_out), args.num_samples) <= size:
        raise UserError(f"the covariance of {size} features needs more than {size} samples and held-out images")

    judge = Judge(network, training, held_out, precision.device)
    real = judge.of_real_images(args.num_samples, args.seed)
    circumstances = {
        "num_samples": args.num_samples,
        "judge": judge_sha256,
        "real": real,
        "machine": describe_machine(precision.device),
        "versions": {"code": code_version(), "torch": torch.__version__},
    }
    rows = []
    for model, settings in zip(models, settings_of, strict=True):
        source = ModelSamples(model, settings, args.seed, model.class_turns, precision)
        images = first_images(source, args.num_samples)
        features = judge.features(images)
        opinion = judge.of_samples(features) | {"held_out_error": error_to_teacher(model, pairs, precision)}
        networks = {"feature_networks_flop": feature_networks_flop(model.header)}
        result = source.describe() | networks | opinion | circumstances
        rows.append(row_of(f"{model.path}, {run_of(result)}", result))
        if args.output:
            append_result(args.output, result, NEEDED_OF_OPINIONS)
        figure = args.figures / f"nearest_to_{model.path.stem}_{model.sha256[:8]}.png"
        save_picture(beside_neighbours(images[:SHOWN], features[:SHOWN], training.images, judge), figure)
        print(f"{figure}: samples, and right of each the training images nearest to it", file=sys.stderr)

    rows.append((f"{real['count']:,} training images", f"{real['frechet_distance']:.3f}", "", ""))
    rows.append((f"{len(held_out):,} held-out images", "", f"{real['closer_than_real']:.1%}", ""))
    print(f"{args.num_samples:,} samples, seed {args.seed}; {precision.name}, {describe_machine(precision.device)}")
    print(text_table(("images", "distance to held-out", "closer than real", "MSE to teacher"), rows))


def teacher_of(models: Sequence[Checkpoint], path: Path) -> Checkpoint:
    """Raises UserError for a checkpoint that is not the teacher of any of the models."""
    teacher = load_checkpoint(path)
    if all(model.header.get("teacher") != teacher.sha256 for model in models):
        raise UserError(f"{path} is not the teacher of {' or '.join(str(model.path) for model in models)}")
    return teacher


def refuse_what_cannot_be_judged(
    model: Checkpoint, teachers: Sequence[Checkpoint], path: Path, judge: dict, judge_sha256: str
) -> None:
    """Raises UserError for a model of other images than the judge's, or that the judge has helped to train."""
    teacher = next((other for other in teachers if other.sha256 == model.header.get("teacher")), model)
    if "images_sha256" not in teacher.header:
        if teacher is model and model.is_student:
            raise UserError(
                f"{model.path} does not say of which images it is: judge its teacher, or give it as --teacher"
            )
        raise UserError(f"{teacher.path} was trained on noise pairs, and does not say of which images it is")
    same_images = teacher.header["images_sha256"] == judge["images_sha256"]
    if not (same_images and teacher.header["arguments"]["val_fraction"] == judge["arguments"]["val_fraction"]):
        raise UserError(f"{path} has learned from other images than {teacher.path}")
    if any(judge_sha256 in feature_networks(run) for run in lineage(model.header)):
        raise UserError(f"{model.path} was trained to please {path}, which is no judge of it")


def error_to_teacher(model: Checkpoint, pairs: PairSet | None, precision: Precision) -> float | None:
    """A student's mean squared error on the held-out pairs; None for a teacher, or without pairs."""
    if pairs is None or not model.is_student:
        return None
    count = held_out_of(model.header["num_pairs"])  # the set may have grown since
    return error_on_pairs(model.model, model.settings, pairs.held_out()[:count], precision)


def first_images(source: ModelSamples, count: int) -> Tensor:
    """uint8 (count, 3, H, W) on the CPU."""
    batches = []
    with tqdm(total=count, desc=source.verb, unit="image", leave=False) as bar:
        for batch, _ in source.batches(0, count):
            batches.append(batch.cpu())
            bar.update(len(batch))
    return torch.cat(batches)


def beside_neighbours(images: Tensor, features: Tensor, training: Tensor, judge: Judge) -> Image.Image:
    """A row for each of the images, uint8 (n, 3, H, W): the image, and the training images nearest to it."""
    references = torch.cat([judge.training, judge.mirrored])
    _, indices = nearest(features, references, NEIGHBOURS)
    flips = indices >= len(training)
    found = training[indices % len(training)]
    found = torch.where(flips[..., None, None, None], found.flip(-1), found)
    rows = torch.cat([images[:, None], found], dim=1)
    return enlarged(image_grid(rows.flatten(0, 1), columns=1 + NEIGHBOURS), 3)


def row_of(name: str, result: dict) -> tuple[str, ...]:
    error = result["held_out_error"]
    cells = (f"{result['frechet_distance']:.3f}", f"{result['closer_than_real']:.1%}")
    return (name, *cells, "" if error is None else f"{error:.4f}")


if __name__ == "__main__":
    command_line.run(main)
