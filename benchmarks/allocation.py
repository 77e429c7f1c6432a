"""What the allocator's setting in common/memory.py is worth: a training step with it and without it.

    python -m benchmarks.allocation --preset cpu

Forward and backward passes, each setting in processes of its own, in turns, so that a machine that changes its speed
changes it for all. Page faults and the kernel's time show what the setting saves.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from dataclasses import replace

import torch

from benchmarks.training_rate import one_step
from common.checkpoint import prepare
from common.command_line import COUNT, ArgumentParser, run
from common.device import PRECISIONS, choose_device, choose_precision, describe_machine
from common.errors import UserError
from common.files import ROOT
from common.presets import NETWORKS, TEACHER_RECIPES
from common.unet import UNet

FREED_MEMORY_GOES_BACK = {"GLIBC_TUNABLES": "glibc.malloc.tcache_count=7"}  # glibc's own defaults
SETTINGS = {
    "as the project sets it": {},
    "freed memory goes back": FREED_MEMORY_GOES_BACK,
}


def parse_args() -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--preset", choices=NETWORKS, default="cpu", help="network and batch size")
    parser.add_argument(
        "--precision", choices=PRECISIONS, default="auto", help="arithmetic of the forward and backward passes"
    )
    parser.add_argument("--steps", type=COUNT, default=12, help="steps that a process times, after 4 to warm up")
    parser.add_argument("--rounds", type=COUNT, default=3, help="processes of each setting")
    parser.add_argument("--measure", action="store_true", help="measure in this process, and print JSON")
    return parser.parse_args()


def measure(args: argparse.Namespace) -> dict[str, float]:
    """Median seconds of a step, mean page faults and seconds in the kernel, and the most memory that was held."""
    import resource  # not on every system

    device = choose_device("cpu")
    model = prepare(UNet(replace(NETWORKS[args.preset], num_classes=10)), device).train()
    step = one_step(model, TEACHER_RECIPES[args.preset].batch_size, choose_precision(args.precision, device))
    times = []
    for index in range(args.steps + 4):
        if index == 4:
            before = resource.getrusage(resource.RUSAGE_SELF)
        model.zero_grad()
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    after = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "seconds": statistics.median(times[4:]),
        "faults": (after.ru_minflt - before.ru_minflt) / args.steps,
        "kernel_seconds": (after.ru_stime - before.ru_stime) / args.steps,
        "megabytes": after.ru_maxrss / 1024,
    }


def main() -> None:
    args = parse_args()
    if platform.libc_ver()[0] != "glibc":
        raise UserError("the setting exists in glibc alone, which this system does not have")
    if args.measure:
        print(json.dumps(measure(args)))
        return
    device = choose_device("cpu")
    precision = choose_precision(args.precision, device).name
    print(f"{args.preset}, {describe_machine(device)}, {precision}, torch {torch.__version__}")
    command = [sys.executable, "-m", "benchmarks.allocation", "--measure", "--preset", args.preset]
    command += ["--precision", precision, "--steps", str(args.steps)]
    inherited = {name: value for name, value in os.environ.items() if name not in FREED_MEMORY_GOES_BACK}
    results: dict[str, list[dict]] = {name: [] for name in SETTINGS}
    for _ in range(args.rounds):
        for name, setting in SETTINGS.items():
            process = subprocess.run(command, cwd=ROOT, env=inherited | setting, check=True, stdout=subprocess.PIPE)
            results[name].append(json.loads(process.stdout))
    for name, measured in results.items():
        each = ", ".join(f"{1000 * result['seconds']:.0f}" for result in measured)
        means = {key: statistics.mean(result[key] for result in measured) for key in measured[0]}
        print(
            f"{name:24}{each} ms a step, {means['faults']:,.0f} page faults, "
            f"{1000 * means['kernel_seconds']:.0f} ms in the kernel, {means['megabytes']:,.0f} MB"
        )


if __name__ == "__main__":
    run(main)
