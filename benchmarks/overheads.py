"""What is spent beside the network: batch assembly in a training step, and the pair generator besides its evaluations.

    python benchmarks/overheads.py --preset cpu

Prints, from one run on this machine: the share of a teacher's training step that goes into assembling its batch
(gather, flip, noise) from 45,000 images; and the rate of the sampler that makes noise pairs, storing and writing
included, over that of the same network evaluations in a bare loop.
"""

import argparse
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parent.parent))

from common import flow
from common.checkpoint import prepare
from common.command_line import COUNT, add_device_arguments, run
from common.data import EpochOrder, ImageData
from common.device import choose_device, choose_precision
from common.files import save_tensor_file
from common.noise import BLOCK_SIZE
from common.pairs import TRAJECTORY_TIMES, shard_tensors
from common.presets import NETWORKS, TEACHER_RECIPES
from common.sampling import TEACHER_SETTINGS, draw_blocks
from common.sources import ImageSource
from common.training import step_generator
from common.unet import UNet


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=NETWORKS, default="cpu")
    parser.add_argument("--repeats", type=COUNT, default=15, help="measurements; the median is printed")
    parser.add_argument("--num-pairs", type=COUNT, default=2 * BLOCK_SIZE, help="pairs of one measurement")
    add_device_arguments(parser)
    return parser.parse_args()


def seconds(function, device: torch.device) -> float:
    start = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def measure_batch_assembly(model: UNet, batch_size: int, repeats: int, precision) -> None:
    device = precision.device
    images = torch.randint(0, 256, (50_000, *model.config.image_shape), dtype=torch.uint8)
    source = ImageSource(ImageData(images, torch.arange(50_000) % 10, list("abcdefghij")), 0.1, device)
    order = EpochOrder(source.training_count, batch_size, seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)

    def assemble(step):
        return source.batch(order, step, True, step_generator(0, step, device))

    def train(noise, image, labels):
        t = torch.rand(len(image), device=device)
        with precision.autocast():
            loss = F.mse_loss(model(flow.interpolate(noise, image, t), t, labels), flow.target_velocity(noise, image))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    assembly, training = [], []
    for step in range(repeats + 2):
        assembly.append(seconds(lambda step=step: assemble(step), device))
        batch = assemble(step)
        training.append(seconds(lambda batch=batch: train(*batch), device))
    batch_seconds, step_seconds = statistics.median(assembly[2:]), statistics.median(training[2:])
    share = batch_seconds / (batch_seconds + step_seconds)
    print(f"batch assembly: {1000 * batch_seconds:.2f} ms of a step of {1000 * step_seconds:.1f} ms: {share:.2%}")


def measure_pair_generation(model: UNet, num_pairs: int, repeats: int, precision) -> None:
    device = precision.device
    x = torch.randn(BLOCK_SIZE, *model.config.image_shape, device=device).contiguous(memory_format=torch.channels_last)
    labels = torch.arange(BLOCK_SIZE, device=device) % 10
    half_way = torch.full((BLOCK_SIZE,), 0.5, device=device)

    def generate(path):
        classes = range(10)
        batches = list(draw_blocks(model, 0, 0, num_pairs, classes, TEACHER_SETTINGS, TRAJECTORY_TIMES, precision))
        save_tensor_file(path, {"header": {}, **shard_tensors(batches)})
        return batches

    def evaluate(calls):
        with torch.no_grad(), precision.autocast():
            for _ in range(num_pairs // BLOCK_SIZE * calls):
                model(x, half_way, labels)

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pairs.pt"
        calls = generate(path)[0].network_calls
        ratios, rates = [], []
        for _ in range(max(3, repeats // 5)):
            generation = seconds(lambda: generate(path), device)
            ratios.append(seconds(lambda: evaluate(calls), device) / generation)
            rates.append(num_pairs / generation)
    print(
        f"pair generation: {statistics.median(rates):.2f} pairs/s at {calls} network calls a pair, "
        f"{statistics.median(ratios):.1%} of the bare network's rate"
    )


def main() -> None:
    args = parse_args()
    device = choose_device(args.device)
    precision = choose_precision(args.precision, device)
    model = prepare(UNet(replace(NETWORKS[args.preset], num_classes=10)), device)
    print(f"{args.preset}, {device}, {precision.name}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    measure_batch_assembly(model, TEACHER_RECIPES[args.preset].batch_size, args.repeats, precision)
    measure_pair_generation(model.eval(), args.num_pairs // BLOCK_SIZE * BLOCK_SIZE, args.repeats, precision)


if __name__ == "__main__":
    run(main)
