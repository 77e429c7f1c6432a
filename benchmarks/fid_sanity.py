"""Whether FID, as measured here, behaves as it must, on real images and with the real Inception weights.

    python -m benchmarks.fid_sanity --images data/train --inception-weights inception.pth --statistics stats.npz

Prints the FID of the images against themselves (0), of their statistics against those in a file (0 if it is of the same
images), of the held-out tenth of each class against the rest, and of a subset as it is and after JPEG compression, blur
and noise, each of which must raise it. Features go to the store of `compute_fid.py` and are used again.
"""

import argparse
from pathlib import Path

import torch
from torchvision.transforms.functional import gaussian_blur

from common.command_line import COUNT, ArgumentParser, run
from common.data import ImageData, split_held_out
from common.device import choose_device
from common.feature_store import FeatureStore
from common.image_sets import StoredImages, load_image_set
from common.images import through_jpeg
from common.inception import Inception
from common.metrics import frechet_distance, load_statistics, statistics
from common.reference import reference_features


def parse_args() -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--images", type=Path, required=True, help="image folder with a sub-folder for each class")
    parser.add_argument("--inception-weights", type=Path, required=True, help="torch-fidelity's .pth file")
    parser.add_argument("--statistics", type=Path, required=True, help=".npz of these images' statistics")
    parser.add_argument("--features", type=Path, default=Path("data/features"), help="folder of extracted features")
    parser.add_argument("--num-images", type=COUNT, default=2560, help="images that are made worse")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    store = FeatureStore(args.features, Inception(args.inception_weights, choose_device("auto")))
    everything = load_image_set(args.images)
    features, of_all = reference_features(everything, store)
    print(f"{len(features):,} images of {args.images.name}")
    print(f"against themselves                        {frechet_distance(statistics(features), of_all):10.6f}")
    saved = frechet_distance(of_all, load_statistics(args.statistics))
    print(f"their statistics against the file's       {saved:10.6f}")

    names = sorted({file.parent.name for file in everything.images.files})
    labels = torch.tensor([names.index(file.parent.name) for file in everything.images.files])
    # The split of the training stage, with features in the place of their images.
    rest, held_out = split_held_out(ImageData(features, labels, names), 0.1)
    split = frechet_distance(statistics(held_out.images), statistics(rest.images))
    print(f"{len(held_out):,} held-out images against the others   {split:10.4f}")

    chosen = load_image_set(args.images, args.num_images)
    images = torch.cat([batch for batch, _ in chosen.batches(0, chosen.count)])
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    print(f"{len(images):,} of the images against all of them, as they are and made worse")
    for name, worse in {
        "as they are": images,
        "JPEG of quality 75": torch.stack([through_jpeg(image) for image in images]),
        "JPEG of quality 30": torch.stack([through_jpeg(image, quality=30) for image in images]),
        "Gaussian blur, 0.5 pixels": gaussian_blur(images, kernel_size=5, sigma=0.5),
        "noise, 5 of 255 levels": (images + 5 * noise).round().clamp(0, 255).to(torch.uint8),
    }.items():
        values = store.features(StoredImages(name, worse), len(worse)).values
        print(f"  {name:32}        {frechet_distance(statistics(values), of_all):10.4f}")


if __name__ == "__main__":
    run(main)
