"""The rate of sampling by batch size, against that of the network's bare convolutions, and where the other time goes.

    python -m benchmarks.sampling_rate --preset cpu

In every round each batch size draws as many images as the largest batch holds, with one network call an image, as all
sampling here does: without autograd, under autocast. Right after it the convolutions of a call run alone and warm.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import torch

from benchmarks.training_rate import bare_rate, print_profile
from common.checkpoint import prepare
from common.command_line import COUNT, ArgumentParser, add_device_arguments, run
from common.device import Precision, choose_device, choose_precision, describe_machine
from common.noise import BLOCK_SIZE
from common.presets import NETWORKS
from common.sampling import SamplingSettings, draw, labels_in_turn
from common.unet import UNet, count_forward_flop

ONE_STEP = SamplingSettings(solver="euler", num_steps=1)


def parse_args() -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--preset", choices=NETWORKS, default="cpu", help="network")
    sizes = [8, 16, 32, 64, 128, 256]
    parser.add_argument("--batch-sizes", type=COUNT, nargs="+", default=sizes, metavar="SIZE", help="images of a call")
    parser.add_argument("--rounds", type=COUNT, default=5, help="measurements of each size; medians are printed")
    parser.add_argument("--rows", type=COUNT, default=12, help="lines of the profile")
    add_device_arguments(parser)
    return parser.parse_args()


def one_call(model: UNet, batch_size: int, precision: Precision):
    """A function that draws a batch with one network call."""
    noise = torch.randn(batch_size, *model.config.image_shape)
    labels = labels_in_turn(range(10), 0, batch_size)
    return lambda: draw(model, noise, labels, ONE_STEP, precision=precision)


def seconds(function: Callable[[], object], count: int, device: torch.device) -> float:
    """Of `count` calls, after one to warm up."""
    function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    for _ in range(count):
        function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def main() -> None:
    args = parse_args()
    device = choose_device(args.device)
    precision = choose_precision(args.precision, device)
    print(f"{args.preset}, {describe_machine(device)}, {precision.name}, torch {torch.__version__}")
    model = prepare(UNet(replace(NETWORKS[args.preset], num_classes=10)), device).eval()
    flop, num_images = count_forward_flop(model), max(args.batch_sizes)
    calls = {size: one_call(model, size, precision) for size in args.batch_sizes}
    rates: dict[int, list[float]] = {size: [] for size in calls}
    shares: dict[int, list[float]] = {size: [] for size in calls}
    for _ in range(args.rounds):
        for size, call in calls.items():
            count = max(1, num_images // size)
            rates[size].append(count * size / seconds(call, count, device))
            with torch.no_grad():
                bare, _ = bare_rate(call, 3, device)
            shares[size].append(rates[size][-1] * flop / bare)
    for size in calls:
        rate, share = statistics.median(rates[size]), statistics.median(shares[size])
        note = "   as the project samples" if size == BLOCK_SIZE else ""
        print(
            f"batches of {size:<4}{rate:8.0f} images/s{rate * flop / 1e9:8.0f} GFLOP/s, "
            f"{share:.0%} of the bare convolutions' rate{note}"
        )

    call = one_call(model, BLOCK_SIZE, precision)
    call()
    print_profile(f"five network calls, for {BLOCK_SIZE} images each,", call, args.rows)


if __name__ == "__main__":
    run(main)
