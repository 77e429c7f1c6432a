"""How wrong are mirrored pairs: does a teacher turn mirrored noise into the mirrored image?

    python -m benchmarks.mirror_symmetry checkpoints/pretrained/teacher.safetensors \\
        --guide checkpoints/pretrained/guide.safetensors

The student stages mirror noise, states and image of a pair together, unless --no-flips is given. Of a teacher that is
not quite symmetric half of these pairs are not its own. A student that fits both halves alike misses each by half of
the way between them, a quarter of their mean squared distance, however long it is trained. More pairs without flips
have no such floor. Prints both beside the variance of the images around their class mean.
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F

from common.command_line import COUNT, SEED, ArgumentParser, add_device_arguments, run
from common.device import describe_machine
from common.distances import share_of_variance, variance_around_class_mean
from common.noise import BLOCK_SIZE, sample_noise
from common.sampling import draw, labels_in_turn
from common.sampling_arguments import (
    add_sampling_arguments,
    load_teacher,
    sampling_precision,
    sampling_settings,
)


def parse_args() -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument("teacher", type=Path, help="checkpoint of stage 1")
    parser.add_argument("--num-samples", type=COUNT, default=200, help="images, and as many of mirrored noise")
    parser.add_argument("--seed", type=SEED, default=0, help="random seed of the noise")
    add_sampling_arguments(parser)
    add_device_arguments(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    precision = sampling_precision(args)
    device = precision.device
    teacher = load_teacher(args.teacher, args, device, otherwise="give the teacher whose pairs it learned from")
    (settings,) = sampling_settings(args, [teacher])
    images, of_mirrored_noise, labels = [], [], labels_in_turn(range(len(teacher.class_names)), 0, args.num_samples)
    for start in range(0, args.num_samples, BLOCK_SIZE):
        count = min(BLOCK_SIZE, args.num_samples - start)
        noise = sample_noise(args.seed, start, count, teacher.model.config.image_shape)
        some = None if labels is None else labels[start : start + count]
        for drawn, given in ((images, noise), (of_mirrored_noise, noise.flip(-1))):
            drawn.append(
                draw(teacher.model, given, some, settings, precision=precision, guide=teacher.guide_model).images.cpu()
            )
    images, of_mirrored_noise = torch.cat(images), torch.cat(of_mirrored_noise)
    error = F.mse_loss(of_mirrored_noise.flip(-1), images).item()
    variance = variance_around_class_mean(images, labels)
    print(f"{describe_machine(device)}, {precision.name}, torch {torch.__version__}")
    print(f"{args.num_samples} images of seed {args.seed}, {settings.describe()}")
    for name, value in (
        ("between an image and that of mirrored noise", error),
        ("error of a student that fits both alike", error / 4),
    ):
        print(f"{name:45} {value:.4f}  {share_of_variance(value, variance)}")


if __name__ == "__main__":
    run(main)
