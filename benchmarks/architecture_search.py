"""Compare networks and recipes at equal training FLOP, by the loss on held-out images.

    python benchmarks/architecture_search.py --images data/train --flop 1e14
    python benchmarks/architecture_search.py --images data/train --flop 4e14 --variants baseline muon

Trains each variant with `teacher_rectified_flow.py` for as many steps as the FLOP allow, on the same images in the same
order, with four lengths of EMA, and appends a row to docs/architecture_search.jsonl; docs/architecture_search.md is
written anew from all rows. A variant that has its row is skipped, and one that was interrupted goes on. The held-out
loss has the same noise and times for all, so that differences far smaller than its spread over images count.
"""

import argparse
import json
import shlex
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parent.parent))

from common.command_line import POSITIVE, run
from common.device import choose_device, choose_precision, describe_machine
from common.files import write_text
from common.presets import NETWORKS
from common.tables import markdown_table
from common.unet import UNet, count_forward_flop, count_values

ROOT = Path(__file__).parent.parent
ROWS = ROOT / "docs" / "architecture_search.jsonl"
PAGE = ROOT / "docs" / "architecture_search.md"
RECIPE = {"--batch-size": 64, "--learning-rate": 1e-3, "--optimizer": "adamw"}
EMA_DECAYS = (0.99, 0.995, 0.998, 0.999, 0.9995)
VALUES_LIMIT = 3_075_000

# What each variant changes of the network of preset `cpu`, and of the recipe above.
VARIANTS = {
    "baseline": ({}, {}),
    # Where the parameters and the arithmetic sit.
    "32x32 level": ({"patch_size": 1, "widths": [16, 64, 96, 112], "attention_levels": [2]}, {}),
    "two levels": ({"widths": [80, 128], "head_width": 16}, {}),
    "heavier 16x16": ({"widths": [80, 96, 96]}, {}),
    "lighter 16x16": ({"widths": [48, 96, 112]}, {}),
    "twice as deep": ({"widths": [48, 80, 80], "blocks_per_level": 2, "head_width": 16}, {}),
    "deeper at 8x8": ({"widths": [64, 96, 80], "blocks_per_level": [1, 2, 1], "head_width": 16}, {}),
    # How it is wired.
    "added skips": ({"skips": "added", "widths": [80, 112, 112], "head_width": 16}, {}),
    "no attention": ({"attention_levels": []}, {}),
    "attention at 16x16 and 8x8": ({"widths": [64, 96, 96], "attention_levels": [0, 1]}, {}),
    "attention at 8x8 and 4x4": ({"widths": [64, 96, 96], "attention_levels": [1, 2]}, {}),
    "heads of 48": ({"head_width": 48}, {}),
    "RMS norm": ({"normalisation": "rms"}, {}),
    "groups of a quarter": ({"widths": [80, 128, 144], "convolution_groups": 4, "head_width": 16}, {}),
    "depthwise": ({"widths": [112, 176, 176], "convolution_groups": 0, "head_width": 16}, {}),
    # How it is trained.
    "batch 32": ({}, {"--batch-size": 32}),
    "batch 128": ({}, {"--batch-size": 128}),
    "learning rate 5e-4": ({}, {"--learning-rate": 5e-4}),
    "learning rate 2e-3": ({}, {"--learning-rate": 2e-3}),
    "Muon 1e-3": ({}, {"--optimizer": "muon"}),
    "Muon 2e-3": ({}, {"--optimizer": "muon", "--learning-rate": 2e-3}),
    "Muon 4e-3": ({}, {"--optimizer": "muon", "--learning-rate": 4e-3}),
    "uniform times": ({}, {"--time-distribution": "uniform"}),
    "label dropout 0.1": ({}, {"--label-dropout": 0.1}),
}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="image folder with a sub-folder for each class")
    parser.add_argument("--flop", type=POSITIVE, required=True, help="training FLOP of each variant")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="VARIANT")
    parser.add_argument("--out", type=Path, default=Path("checkpoints/search"), help="folder of the runs")
    return parser.parse_args()


def flop_per_image(model: UNet) -> float:
    """Forward and backward pass of a training step; torch counts the whole step in the same way."""
    labels = torch.zeros(2, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        model(torch.randn(2, *model.config.image_shape), torch.rand(2), labels).sum().backward()
    return counter.get_total_flops() / 2


def training_command(name: str, flop: float, images: Path, out: Path) -> list[str]:
    """The teacher's command line: steps by the FLOP, warm-up of a tenth (at most 500), decay over the last 40 %."""
    network, recipe = VARIANTS[name]
    recipe = RECIPE | recipe
    model = UNet(replace(NETWORKS["cpu"], num_classes=10, **network))
    steps = round(flop / (flop_per_image(model) * recipe["--batch-size"]))
    options = {
        "--preset": "cpu",
        "--data": "folder",
        "--data-dir": images,
        **recipe,
        "--steps": steps,
        "--warmup-steps": min(500, steps // 10),
        "--decay-steps": steps * 2 // 5,
        "--ema-decay": EMA_DECAYS[-1],
        "--evaluate-every": steps,
        "--out": out,
    }
    command = ["python", "teacher_rectified_flow.py", *(str(part) for option in options.items() for part in option)]
    command += ["--more-ema-decays", *map(str, EMA_DECAYS[:-1]), "--snapshot-steps"]
    return [*command, "--network", json.dumps(network)] if network else command


def measured_row(name: str, flop: float, command: list[str], out: Path) -> dict:
    network, _ = VARIANTS[name]
    model = UNet(replace(NETWORKS["cpu"], num_classes=10, **network))
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    last = records[-1]
    losses = {f"{decay:g}": last[f"held_out_loss_ema_{decay:g}"] for decay in EMA_DECAYS[:-1]}
    losses[f"{EMA_DECAYS[-1]:g}"] = last["held_out_loss"]
    best = min(losses, key=losses.get)
    device = choose_device("auto")
    return {
        "variant": name,
        "flop_budget": flop,
        "parameters": count_values(model),
        "forward_flop": count_forward_flop(model),
        "training_flop": last["training_flop"],
        "steps": last["step"],
        "images_per_second": statistics.median(record["images_per_second"] for record in records if "loss" in record),
        "minutes": last["seconds"] / 60,
        "held_out_losses": losses,
        "held_out_loss": losses[best],
        "ema_decay": float(best),
        "machine": f"{describe_machine(device)}, {choose_precision('auto', device).name}",
        "command": shlex.join(command),
    }


def page(rows: list[dict]) -> str:
    sections = [
        "# Search for a network and a recipe\n\nWritten by `benchmarks/architecture_search.py` from "
        "[architecture_search.jsonl](architecture_search.jsonl), where the command of each row stands."
    ]
    header = ("variant", "held-out loss", "EMA", "parameters", "forward MFLOP", "images/s", "GFLOP/s", "minutes")
    for budget in sorted({row["flop_budget"] for row in rows}):
        chosen = sorted((row for row in rows if row["flop_budget"] == budget), key=lambda row: row["held_out_loss"])
        cells = [
            (
                row["variant"],
                f"{row['held_out_loss']:.5f}",
                f"{row['ema_decay']:g}",
                f"{row['parameters']:,}",
                f"{row['forward_flop'] / 1e6:.0f}",
                f"{row['images_per_second']:.0f}",
                f"{row['training_flop'] / (60 * row['minutes']) / 1e9:.0f}",
                f"{row['minutes']:.1f}",
            )
            for row in chosen
        ]
        machines = "; ".join(sorted({row["machine"] for row in chosen}))
        sections.append(f"## {budget:.3g} training FLOP\n\n{markdown_table(header, cells)}\n\nMeasured on: {machines}.")
    return "\n\n".join(sections) + "\n"


def main() -> None:
    args = parse_args()
    rows = [json.loads(line) for line in ROWS.read_text().splitlines()] if ROWS.is_file() else []
    done = {(row["variant"], row["flop_budget"]) for row in rows}
    for name in args.variants:
        if (name, args.flop) in done:
            continue
        out = args.out / f"{args.flop:.3g}" / name.replace(" ", "_")
        command = training_command(name, args.flop, args.images, out)
        print(f"\n{name}: {shlex.join(command)}", flush=True)
        subprocess.run([sys.executable, *command[1:]], check=True, cwd=ROOT)
        rows.append(measured_row(name, args.flop, command, out))
        write_text(ROWS, "".join(json.dumps(row) + "\n" for row in rows))
        write_text(PAGE, page(rows))


if __name__ == "__main__":
    run(main)
