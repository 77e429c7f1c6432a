"""How fast Inception features are extracted, against the network alone and against torch-fidelity's own extractor.

    python -m benchmarks.feature_extraction --images data/train --inception-weights inception.pth --reference stats.npz

Takes turns between four ways over pieces of the same images, so that a machine that changes its speed changes it for
all: the extraction that `compute_fid.py` does, disk included; the bare forward passes of the same network in the same
batches; torch-fidelity's extractor as it comes, in its default batches; and ours under bf16 autocast. Prints images a
second, the ratios, and what each way does to the FID of these images.
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch

from common.command_line import COUNT, ArgumentParser, run
from common.device import choose_device, describe_machine
from common.feature_store import PART_SIZE, FeatureStore
from common.image_sets import StoredImages, load_image_set
from common.inception import BATCH_SIZES, Inception, read_network
from common.metrics import frechet_distance, load_statistics, statistics

THEIR_BATCH_SIZE = 64
"""torch-fidelity's default."""


def parse_args() -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--images", type=Path, required=True, help="image folder")
    parser.add_argument("--inception-weights", type=Path, required=True, help="torch-fidelity's .pth file")
    parser.add_argument("--reference", type=Path, required=True, help=".npz of statistics")
    parser.add_argument("--num-images", type=COUNT, default=5000, help="a random subset of the folder")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    return parser.parse_args()


@torch.no_grad()
def main() -> None:
    args = parse_args()
    device = choose_device(args.device)
    inception = Inception(args.inception_weights, device)
    theirs = read_network(args.inception_weights)[0].to(device)
    chosen = load_image_set(args.images, args.num_images)
    images = torch.cat([batch for batch, _ in chosen.batches(0, chosen.count)])
    print(f"{describe_machine(device)}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"{len(images):,} images, in pieces of {PART_SIZE:,}")

    def extract(piece):
        with tempfile.TemporaryDirectory() as folder:
            return FeatureStore(Path(folder), inception).features(StoredImages("piece", piece), len(piece)).values

    def bare(piece):
        return forward(inception.network, piece, BATCH_SIZES[device.type])

    def torch_fidelitys(piece):
        return forward(theirs, piece, THEIR_BATCH_SIZE)

    def extract_in_bf16(piece):
        with torch.autocast(device.type, torch.bfloat16):
            return inception(piece).float()

    def forward(network, piece, batch_size):
        return torch.cat([network(batch)[0] for batch in piece.to(device).split(batch_size)]).cpu()

    ways = {
        "compute_fid.py": extract,
        "bare forward passes": bare,
        f"torch-fidelity, batches of {THEIR_BATCH_SIZE}": torch_fidelitys,
        "compute_fid.py in bf16": extract_in_bf16,
    }
    features, seconds = {name: [] for name in ways}, dict.fromkeys(ways, 0.0)
    for way in ways.values():
        way(images[:THEIR_BATCH_SIZE])  # warm-up
    for piece in images.split(PART_SIZE):
        for name, way in ways.items():
            start = time.perf_counter()
            features[name].append(way(piece))
            seconds[name] += time.perf_counter() - start

    reference = load_statistics(args.reference)
    ours = seconds["compute_fid.py"]
    for name in ways:
        fid = frechet_distance(statistics(torch.cat(features[name])), reference)
        rate = len(images) / seconds[name]
        print(f"{name:32} {rate:8.1f} images/s   {ours / seconds[name]:5.3f} of our time / its time   FID {fid:.4f}")


if __name__ == "__main__":
    run(main)
