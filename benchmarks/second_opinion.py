"""A second opinion on generated images, by a network that no loss has seen, and whether they repeat real ones.

    python feature_network.py --seed 1 --network '{"widths": [48, 96, 192, 384], "residual": true}' \\
        --out checkpoints/judge
    python benchmarks/second_opinion.py checkpoints/pretrained/{teacher,four_step,student}.safetensors \\
        --guide checkpoints/pretrained/guide.safetensors --judge checkpoints/judge/feature_network.safetensors

Prints of each model's samples the Fréchet distance to the images that were held out from its training, in the judge's
features, and the share that lies closer to a training image than other training images do; for comparison the distance
of as many training images, and the share of the held-out ones. With --pairs also the mean squared error against the
teacher's images. Of each model, a figure shows the first ten samples beside the training images nearest to them.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent.parent))

from common import command_line
from common.checkpoint import Checkpoint, code_version, load_feature_network
from common.classifier import Classifier
from common.data import ImageData, images_behind
from common.device import choose_device, choose_precision, describe_machine
from common.distillation import error_on_pairs
from common.errors import UserError
from common.files import write_text
from common.image_sets import ModelSamples
from common.images import enlarged, image_grid, save_picture, to_float
from common.metrics import frechet_inception_distance, statistics
from common.neighbours import nearest, share_closer_than_real
from common.noise import BLOCK_SIZE
from common.pairs import PairSet
from common.results import name_of, run_of
from common.tables import text_table

SHOWN, NEIGHBOURS = 10, 5


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path, metavar="CHECKPOINT")
    parser.add_argument("--judge", type=Path, required=True, help="checkpoint of feature_network.py")
    parser.add_argument("--pairs", type=Path, help="folder of noise pairs of the students' teacher")
    parser.add_argument("--num-samples", type=command_line.bounded(int, low=SHOWN), default=10_000)
    parser.add_argument("--seed", type=command_line.COUNT_OR_ZERO, default=0)
    parser.add_argument("--data-dir", type=Path, help="of the judge's images (default: as it was given to the judge)")
    parser.add_argument("--output", type=Path, metavar="FILE.jsonl", help="append each result as a JSON line")
    parser.add_argument("--figures", type=Path, default=Path("samples"), help="folder for the figures")
    command_line.add_sampling_arguments(parser)
    command_line.add_device_arguments(parser)
    return parser.parse_args()


class Judge:
    """The features of a frozen network, each scaled to unit variance over the training images."""

    def __init__(self, network: Classifier, training: ImageData, held_out: ImageData, device: torch.device):
        self.network, self.device = network, device
        self.scale = 1.0
        features = self.features(training.images)
        self.scale = features.std(dim=0).clamp(min=1e-6)
        self.training = features / self.scale
        self.mirrored = self.features(training.images.flip(-1))
        self.held_out = self.features(held_out.images)

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """(N, D) of uint8 images (N, 3, H, W), in fp32."""
        batches = tqdm(images.split(BLOCK_SIZE), desc="the judge's features", leave=False)
        return (
            torch.cat([self.network.summary(to_float(batch.to(self.device))).cpu() for batch in batches]) / self.scale
        )

    def distance_to_held_out(self, features: Tensor) -> float:
        return frechet_inception_distance(statistics(features), statistics(self.held_out))

    def share_closer_than_real(self, features: Tensor) -> float:
        return share_closer_than_real(features, self.training, self.mirrored)


def main() -> None:
    args = parse_args()
    precision = choose_precision(args.precision, choose_device(args.device))
    checkpoints = [command_line.load_guided(path, args, precision.device) for path in args.models]
    command_line.refuse_settings_for_students(args, checkpoints)
    network, header, judge_sha256 = load_feature_network(args.judge, precision.device)
    for checkpoint in checkpoints:
        refuse_what_cannot_be_judged(checkpoint, args.judge, header, judge_sha256)
    training, held_out = images_behind(args.judge, header, args.data_dir)
    pairs = PairSet(args.pairs, precision.device) if args.pairs else None

    judge = Judge(network, training, held_out, precision.device)
    some = torch.randperm(len(training), generator=torch.Generator().manual_seed(args.seed))[: args.num_samples]
    circumstances = {
        "num_samples": args.num_samples,
        "judge": judge_sha256,
        "real_frechet_distance": judge.distance_to_held_out(judge.training[some]),
        "real_closer_than_real": judge.share_closer_than_real(judge.held_out),
        "machine": describe_machine(precision.device),
        "code_version": code_version(),
    }
    results = []
    for checkpoint in checkpoints:
        settings = command_line.sampling_settings(args, checkpoint, checkpoint.settings)
        source = ModelSamples(checkpoint, settings, args.seed, command_line.chosen_classes(None, checkpoint), precision)
        images = first_images(source, args.num_samples)
        features = judge.features(images)
        opinion = {
            "frechet_distance": judge.distance_to_held_out(features),
            "closer_than_real": judge.share_closer_than_real(features),
            "held_out_error": None,
        }
        if pairs and checkpoint.is_student:
            opinion["held_out_error"] = error_on_pairs(checkpoint.model, settings, pairs.held_out(), precision)
        results.append(source.describe() | losses_of(checkpoint) | opinion | circumstances)
        figure = args.figures / f"nearest_to_{checkpoint.path.stem}.png"
        save_picture(beside_neighbours(images[:SHOWN], features[:SHOWN], training.images, judge), figure)
        print(f"{figure}: samples, and right of each the training images nearest to it", file=sys.stderr)

    if args.output:
        before = args.output.read_text(encoding="utf-8") if args.output.exists() else ""
        write_text(args.output, before + "".join(json.dumps(result) + "\n" for result in results))
    print(f"{args.num_samples:,} samples, seed {args.seed}; {precision.name}, {describe_machine(precision.device)}")
    print(text_table(("images", "distance to held-out", "closer than real", "MSE to teacher"), table_rows(results)))


def refuse_what_cannot_be_judged(checkpoint: Checkpoint, judge: Path, header: dict, judge_sha256: str) -> None:
    ours = {"images_sha256": checkpoint.header.get("images_sha256"), **checkpoint.header["arguments"]}
    theirs = {"images_sha256": header["images_sha256"], **header["arguments"]}
    names = ("images_sha256", "val_fraction")  # the latter decides which of the images were held out
    if not checkpoint.is_student and any(ours.get(name) != theirs[name] for name in names):
        raise UserError(f"{judge} has learned from other images than {checkpoint.path}")
    if checkpoint.header.get("feature_network") == judge_sha256:
        raise UserError(f"{checkpoint.path} was trained to please {judge}, which is no judge of it")


def first_images(source: ModelSamples, count: int) -> Tensor:
    """uint8 (count, 3, H, W)."""
    batches = []
    with tqdm(total=count, desc=source.verb, unit="image", leave=False) as bar:
        for batch, _ in source.batches(0, count):
            batches.append(batch)
            bar.update(len(batch))
    return torch.cat(batches)


def losses_of(checkpoint: Checkpoint) -> dict:
    """By what a student was trained, and what the network in its loss cost before; a teacher has neither."""
    arguments = checkpoint.header["arguments"]
    names = ("loss", "feature_weight", "critic", "critic_images", "critic_weight")
    losses = {name: arguments.get(name) for name in names}
    return losses | {"feature_network_flop": checkpoint.header.get("feature_network_flop")}


def beside_neighbours(images: Tensor, features: Tensor, training: Tensor, judge: Judge) -> Image.Image:
    """A row for each of the images, uint8 (n, 3, H, W): the image, and the training images nearest to it."""
    references = torch.cat([judge.training, judge.mirrored])
    _, indices = nearest(features, references, NEIGHBOURS)
    flips = indices >= len(training)
    found = training[indices % len(training)]
    found = torch.where(flips[..., None, None, None], found.flip(-1), found)
    rows = torch.cat([images[:, None], found], dim=1)
    return enlarged(image_grid(to_float(rows.flatten(0, 1)), columns=1 + NEIGHBOURS), 3)


def table_rows(results: Sequence[dict]) -> list[tuple[str, ...]]:
    rows = []
    for result in results:
        error = result["held_out_error"]
        cells = (f"{result['frechet_distance']:.3f}", f"{result['closer_than_real']:.1%}")
        rows.append((f"{name_of(result)}, {run_of(result)}", *cells, "" if error is None else f"{error:.4f}"))
    first = results[0]
    rows.append(("training images", f"{first['real_frechet_distance']:.3f}", "", ""))
    rows.append(("held-out images", "", f"{first['real_closer_than_real']:.1%}", ""))
    return rows


if __name__ == "__main__":
    command_line.run(main)
