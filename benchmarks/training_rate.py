"""The arithmetic rate of training, against that of the network's bare convolutions, and where the other time goes.

    python -m benchmarks.training_rate --preset cpu
    python -m benchmarks.training_rate --preset cpu --compile

The first rate is the FLOP of a training step over the wall-clock of whole steps (batch assembly, optimiser and EMA
included), as `teacher_rectified_flow.py` itself logs it on drawn shapes. For the second, every convolution of one real
step is recorded and run alone and warm: at its shape, batch, memory format and precision, forward and with the
gradients that it needs; median times are added up. The two are measured in turns, because machines change their speed,
and with --compile the compiled network's training beside the eager one's. Then what the parts of a step take, each
alone and eager, and the profiler's list of what the network does, compiled if asked for.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from common import flow
from common.checkpoint import prepare
from common.command_line import COUNT, ArgumentParser, add_device_arguments, run
from common.device import Precision, choose_device, choose_precision, describe_machine
from common.errors import UserError
from common.files import ROOT
from common.muon import as_matrix
from common.optimisation import OPTIMIZERS, ema_update, make_optimizer
from common.presets import NETWORKS, TEACHER_RECIPES
from common.run_log import read_metrics
from common.unet import UNet

CONVOLUTIONS = (torch.ops.aten.convolution.default, torch.ops.aten.convolution_backward.default)


def parse_args() -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--preset", choices=NETWORKS, default="cpu", help="network and recipe")
    parser.add_argument("--batch-size", type=COUNT, help="images of a step (default: the preset's)")
    parser.add_argument("--optimizer", choices=OPTIMIZERS, help="(default: the preset's)")
    parser.add_argument("--compile", action="store_true", help="torch.compile the network (needs a C++ compiler)")
    parser.add_argument(
        "--rounds", type=COUNT, default=3, help="training runs, each between two of the bare convolutions"
    )
    parser.add_argument("--steps", type=COUNT, default=50, help="steps that a run times, after 20 to warm up")
    parser.add_argument("--repeats", type=COUNT, default=7, help="runs of each bare convolution")
    parser.add_argument("--rows", type=COUNT, default=16, help="lines of the profile")
    add_device_arguments(parser)
    return parser.parse_args()


def training_rate(args: argparse.Namespace, batch_size: int, optimizer: str, compiled: bool) -> tuple[float, float]:
    """(FLOP a second, images a second) of the teacher's own training loop: the median over windows of ten steps."""
    script = ROOT / "teacher_rectified_flow.py"
    options = {
        "--preset": args.preset,
        "--batch-size": batch_size,
        "--optimizer": optimizer,
        "--steps": args.steps + 20,
        "--warmup-steps": 0,
        "--decay-steps": 0,
        "--log-every": 10,
        "--evaluate-every": 10**9,
        "--device": args.device,
        "--precision": args.precision,
    }
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, script, "--data", "shapes", "--snapshot-steps", "--out", folder]
        command += [part for option in options.items() for part in option] + ["--compile"] * compiled
        process = subprocess.run(list(map(str, command)), capture_output=True, text=True)
        if process.returncode:
            raise UserError(process.stderr.strip().splitlines()[-1])
        records = read_metrics(Path(folder) / "metrics.jsonl")
    rates = [record["images_per_second"] for record in records if "loss" in record][2:]
    images_per_second = statistics.median(rates)
    flop_per_image = records[-1]["training_flop"] / (records[-1]["step"] * batch_size)
    return images_per_second * flop_per_image, images_per_second


class ConvolutionRecorder(TorchDispatchMode):
    """Notes every convolution, forward or backward, with the shapes, strides and types of its tensors."""

    def __init__(self):
        super().__init__()
        self.calls: Counter = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in CONVOLUTIONS:
            self.calls[function, tuple(map(describe_argument, args))] += 1
        return function(*args, **(kwargs or {}))


def describe_argument(value):
    if isinstance(value, torch.Tensor):
        return ("tensor", tuple(value.shape), value.stride(), value.dtype, value.device)
    return tuple(value) if isinstance(value, list) else value


def make_argument(description):
    if isinstance(description, tuple) and description[:1] == ("tensor",):
        _, shape, stride, dtype, device = description
        return torch.empty_strided(shape, stride, dtype=dtype, device=device).normal_()
    return list(description) if isinstance(description, tuple) else description


def one_step(model: UNet, batch_size: int, precision: Precision):
    """A function that makes the forward and backward pass of a training step on a random batch."""
    device = precision.device
    shape = (batch_size, *model.config.image_shape)
    noise, image = (torch.randn(shape).to(device).contiguous(memory_format=torch.channels_last) for _ in range(2))
    t, labels = torch.rand(batch_size, device=device), torch.arange(batch_size, device=device) % 10

    def step():
        with precision.autocast():
            loss = flow.matching_loss(model, noise, image, t, labels)
        loss.backward()

    return step


def bare_rate(step, repeats: int, device: torch.device) -> tuple[float, float]:
    """(FLOP a second, seconds) of all convolutions of a step, each run alone."""
    with ConvolutionRecorder() as recorder:
        step()
    flop = seconds = 0.0
    for (function, descriptions), count in recorder.calls.items():
        arguments = [make_argument(description) for description in descriptions]
        with FlopCounterMode(display=False) as counter:
            function(*arguments)
        flop += count * counter.get_total_flops()
        seconds += count * median_seconds(partial(function, *arguments), repeats, device)
    return flop / seconds, seconds


def median_seconds(function: Callable[[], object], repeats: int, device: torch.device) -> float:
    """Of a call, after two to warm up."""
    times = []
    for _ in range(repeats + 2):
        start = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times[2:])


def parts_of_a_step(model: UNet, step, repeats: int, device: torch.device) -> dict[str, float]:
    """Seconds of each part alone; of the optimisers a run has one, and torch's own Muon is there to compare with."""
    average = AveragedModel(model, multi_avg_fn=ema_update(0.999, num_averaged=lambda: 1000))
    ours = {name: make_optimizer(name, model, 1e-6, 0.0) for name in OPTIMIZERS}
    kernels = [kernel for group in ours["muon"].parts["muon"].param_groups for kernel in group["params"]]
    matrices = [nn.Parameter(as_matrix(kernel.detach()).clone()) for kernel in kernels]
    for kernel, matrix in zip(kernels, matrices, strict=True):
        matrix.grad = as_matrix(kernel.grad.contiguous(memory_format=torch.channels_last)).clone()
    functions = {
        "AdamW": ours["adamw"].step,
        "Muon and AdamW": ours["muon"].step,
        "of it Muon": ours["muon"].parts["muon"].step,
        "torch.optim.Muon": torch.optim.Muon(matrices, lr=1e-6).step,
        "gradient clipping": lambda: nn.utils.clip_grad_norm_(model.parameters(), 1.0),
        "EMA": lambda: average.update_parameters(model),
        "forward and backward": lambda: (model.zero_grad(), step()),
    }
    return {name: median_seconds(function, repeats, device) for name, function in functions.items()}


def print_profile(what_five_calls_are: str, function: Callable[[], object], rows: int) -> None:
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        for _ in range(5):
            function()
    print(f"\n{what_five_calls_are} by kind of operation")
    print(profiled.key_averages().table(sort_by="self_cpu_time_total", row_limit=rows, max_name_column_width=48))


def listed(values: Sequence[float], unit: float) -> str:
    """The median, and each value in the order of measurement."""
    each = ", ".join(f"{value / unit:.1f}" for value in values)
    return f"{statistics.median(values) / unit:8.1f} ({each})"


def main() -> None:
    args = parse_args()
    device = choose_device(args.device)
    precision = choose_precision(args.precision, device)
    batch_size = args.batch_size or TEACHER_RECIPES[args.preset].batch_size
    optimizer = args.optimizer or TEACHER_RECIPES[args.preset].optimizer
    print(
        f"{args.preset}, batches of {batch_size}, {optimizer}, {describe_machine(device)}, {precision.name}, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    torch.manual_seed(0)
    model = prepare(UNet(replace(NETWORKS[args.preset], num_classes=10)), device).train()
    step = one_step(model, batch_size, precision)
    step()

    bare_rate(step, args.repeats, device)  # a processor's first seconds of load are its fastest
    kinds = ("training", "compiled training") if args.compile else ("training",)
    bare, training = [bare_rate(step, args.repeats, device)], {kind: [] for kind in kinds}
    for _ in range(args.rounds):
        for kind, measured in training.items():
            measured.append(training_rate(args, batch_size, optimizer, compiled=kind != "training"))
        bare.append(bare_rate(step, args.repeats, device))
    bare_rates, bare_seconds = zip(*bare, strict=True)
    around = [statistics.mean(neighbours) for neighbours in pairwise(bare_rates)]
    print(f"{'bare convolutions':24}{listed(bare_rates, 1e9)} GFLOP/s")
    for kind, measured in training.items():
        rates, images_per_second = zip(*measured, strict=True)
        shares = [rate / neighbours for rate, neighbours in zip(rates, around, strict=True)]
        print(f"{kind:24}{listed(rates, 1e9)} GFLOP/s, {statistics.median(images_per_second):.0f} images/s")
        print(f"{'  of the bare rate':24}{listed(shares, 0.01)} %")
        print(f"{'  a step':24}{1000 * batch_size / statistics.median(images_per_second):8.1f} ms")
    print(f"{'bare convolutions':24}{1000 * statistics.median(bare_seconds):8.1f} ms")
    for name, part in parts_of_a_step(model, step, args.repeats, device).items():
        print(f"{name:24}{1000 * part:8.1f} ms")
    if args.compile:
        torch.compiler.config.force_disable_caches = True  # the training runs have filled them
        step = one_step(torch.compile(model), batch_size, precision)
        start = time.perf_counter()
        step()
        print(f"{'first compiled step':24}{time.perf_counter() - start:8.1f} s")
        compiled = median_seconds(lambda: (model.zero_grad(), step()), args.repeats, device)
        print(f"{'later compiled steps':24}{1000 * compiled:8.1f} ms")

    print_profile(f"five{' compiled' * args.compile} forward and backward passes", step, args.rows)


if __name__ == "__main__":
    run(main)
