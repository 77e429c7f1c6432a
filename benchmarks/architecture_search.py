"""Compare networks and recipes at equal training FLOP, by the loss on held-out images and by FID.

    python benchmarks/architecture_search.py --images data/train --flop 1e14
    python benchmarks/architecture_search.py --images data/train --flop 4e14 --variants "Muon 2e-3" "lighter 16x16" \\
        --fid-seeds 1000 --reference statistics.npz

Trains each variant with `teacher_rectified_flow.py` for as many steps as the FLOP allow, on the same images in the same
order, with five lengths of EMA, and appends a row to docs/architecture_search.jsonl; docs/architecture_search.md is
written anew from all rows. What a row has already is not done again, and a run that was interrupted goes on. The
held-out loss has the same noise and times for all, so that differences far smaller than its spread over images count.
"""

import argparse
import json
import shlex
import statistics
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.search_variants import STARTING_NETWORK, VARIANTS, Variant
from benchmarks.training_rate import bare_rate, one_step
from common.checkpoint import prepare
from common.command_line import COUNT_OR_ZERO, POSITIVE, run
from common.device import choose_device, choose_precision, describe_machine
from common.errors import UserError
from common.files import write_text
from common.presets import NETWORKS
from common.tables import markdown_table
from common.unet import UNet, UNetConfig, count_forward_flop, count_values

ROOT = Path(__file__).parent.parent
EMA_DECAYS = (0.99, 0.995, 0.998, 0.999, 0.9995)
FID_SAMPLES = 5000
SAMPLER = {"--solver": "euler", "--num-steps": 24, "--guidance-scale": 2}
"""Of FID: 41 network calls an image."""
FID_PROTOCOL = (
    *("num_samples", "reference_sha256", "inception_sha256", "solver", "num_steps", "guidance_scale"),
    *("guidance_interval", "arithmetic"),
)
"""What must be the same in all FIDs of a row."""


INTRODUCTION = """\
# Search for a network and a recipe

Written by `benchmarks/architecture_search.py` from [architecture_search.jsonl](architecture_search.jsonl), which holds
the definition, the command and the losses of each row. What is not in a variant's name is Muon at 2e-3, batches of 64,
decay over the last 40 % and the network that preset `cpu` had at the start.

- Held-out loss: at uniform times, with the best of the EMA lengths, which the next column gives. It compares only runs
  with one distribution of training times: uniform ones are trained for this very loss, whatever FID makes of them.
- FID: {samples:,} samples of `{sampler}`
  against all training images, the mean over so many sampling seeds.
- Share of bare: the arithmetic rate of training over that of the network's convolutions alone. Rates vary by a tenth
  from run to run, and all but the last of the lengths of EMA cost time that a usual run does not spend."""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="image folder with a sub-folder for each class")
    parser.add_argument("--flop", type=POSITIVE, required=True, help="training FLOP of each variant")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="VARIANT")
    parser.add_argument("--out", type=Path, default=Path("checkpoints/search"), help="folder of the runs")
    parser.add_argument("--rows", type=Path, default=ROOT / "docs" / "architecture_search.jsonl", help="file of rows")
    parser.add_argument("--fid-seeds", type=COUNT_OR_ZERO, nargs="*", default=[], help="sampling seeds of FID")
    parser.add_argument("--reference", default="cifar10", help="of FID, as for compute_fid.py")
    parser.add_argument("--inception-weights", type=Path, help="as for compute_fid.py")
    return parser.parse_args()


def flop_per_image(model: UNet) -> float:
    """Forward and backward pass of a training step; torch counts the whole step in the same way."""
    labels = torch.zeros(2, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        model(torch.randn(2, *model.config.image_shape), torch.rand(2), labels).sum().backward()
    return counter.get_total_flops() / 2


def network_of(variant: Variant) -> UNet:
    return UNet(replace(STARTING_NETWORK, **variant.network))


def changes_of_preset(config: UNetConfig) -> dict:
    preset = replace(NETWORKS["cpu"], num_classes=config.num_classes).to_dict()
    return {name: value for name, value in config.to_dict().items() if value != preset[name]}


def training_command(variant: Variant, flop: float, images: Path, out: Path) -> list[str]:
    """The teacher's command line, with steps by the FLOP and a warm-up of a tenth of them (at most 500).

    Its early snapshots stay on: they are what a finalist is guided by.
    """
    model = network_of(variant)
    steps = round(flop / (flop_per_image(model) * variant.batch_size))
    options = {
        "--preset": "cpu",
        "--data": "folder",
        "--data-dir": images,
        "--batch-size": variant.batch_size,
        "--optimizer": variant.optimizer,
        "--learning-rate": variant.learning_rate,
        "--steps": steps,
        "--warmup-steps": min(500, steps // 10),
        "--decay-steps": round(steps * variant.decay_share),
        "--ema-decay": EMA_DECAYS[-1],
        "--evaluate-every": steps,
        "--out": out,
        **variant.flow,
    }
    command = ["python", "teacher_rectified_flow.py", *(str(part) for option in options.items() for part in option)]
    command += ["--more-ema-decays", *map(str, EMA_DECAYS[:-1])]
    changes = changes_of_preset(model.config)
    return [*command, "--network", json.dumps(changes)] if changes else command


def fid_file(out: Path, seed: int) -> Path:
    return out / f"fid_{seed}.jsonl"


def fid_command(ema_decay: float, seed: int, reference: str, weights: Path | None, out: Path) -> list[str]:
    """Of the average with the lowest held-out loss."""
    name = "teacher" if ema_decay == EMA_DECAYS[-1] else f"teacher_ema_{ema_decay:g}"
    options = {
        **SAMPLER,
        "--num-samples": FID_SAMPLES,
        "--seed": seed,
        "--reference": reference,
        "--output": fid_file(out, seed),
    }
    if weights:
        options["--inception-weights"] = weights
    command = ["python", "compute_fid.py", str(out / f"{name}.safetensors")]
    return command + [str(part) for option in options.items() for part in option]


def measure_fid(row: dict, seed: int, reference: str, weights: Path | None, out: Path) -> None:
    """Adds the FID of a sampling seed to a row. Raises UserError where the row's others were measured otherwise."""
    fid_file(out, seed).unlink(missing_ok=True)  # the features are kept: measuring the same again takes a moment
    run_stage(fid_command(row["ema_decay"], seed, reference, weights, out))
    result = json.loads(fid_file(out, seed).read_text())
    protocol = {name: result[name] for name in FID_PROTOCOL}
    if row.setdefault("fid_protocol", protocol) != protocol:
        raise UserError(f"the row of {row['variant']} has FIDs by {row['fid_protocol']}, not by {protocol}")
    row["fid"][str(seed)] = result["fid"]


def run_stage(command: list[str]) -> None:
    print(f"\n{shlex.join(command)}", flush=True)
    subprocess.run([sys.executable, ROOT / command[1], *command[2:]], check=True)


def trained(name: str, flop: float, images: Path, out: Path) -> dict:
    """Trains a variant, and returns its row without FID."""
    variant, model = VARIANTS[name], network_of(VARIANTS[name])
    command = training_command(variant, flop, images, out)
    run_stage(command)
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    last = records[-1]
    losses = {f"{decay:g}": last[f"held_out_loss_ema_{decay:g}"] for decay in EMA_DECAYS[:-1]}
    losses[f"{EMA_DECAYS[-1]:g}"] = last["held_out_loss"]
    best = min(losses, key=losses.get)
    device = choose_device("auto")
    precision = choose_precision("auto", device)
    bare, _ = bare_rate(one_step(prepare(model, device).train(), variant.batch_size, precision), 5, device)
    return {
        "variant": name,
        "definition": asdict(variant),
        "flop_budget": flop,
        "parameters": count_values(model),
        "forward_flop": count_forward_flop(model),
        "training_flop": last["training_flop"],
        "batch_size": variant.batch_size,
        "steps": last["step"],
        "images_per_second": statistics.median(record["images_per_second"] for record in records if "loss" in record),
        "bare_flop_per_second": bare,
        "minutes": last["seconds"] / 60,
        "held_out_losses": losses,
        "held_out_loss": losses[best],
        "ema_decay": float(best),
        "fid": {},
        "machine": f"{describe_machine(device)}, {precision.name}",
        "command": shlex.join(command),
    }


def page(rows: list[dict]) -> str:
    sampler = shlex.join(str(part) for option in SAMPLER.items() for part in option)
    sections = [INTRODUCTION.format(samples=FID_SAMPLES, sampler=sampler)]
    header = (
        *("variant", "held-out loss", "EMA", "FID", "seeds", "parameters", "forward MFLOP", "images/s"),
        *("GFLOP/s", "share of bare", "minutes"),
    )
    for budget in sorted({row["flop_budget"] for row in rows}):
        chosen = sorted((row for row in rows if row["flop_budget"] == budget), key=lambda row: row["held_out_loss"])
        machines = "; ".join(sorted({row["machine"] for row in chosen}))
        table = markdown_table(header, [cells(row) for row in chosen])
        sections.append(f"## {budget:.3g} training FLOP\n\n{table}\n\nMeasured on: {machines}.")
    return "\n\n".join(sections) + "\n"


def cells(row: dict) -> tuple[str, ...]:
    rate = row["training_flop"] / row["steps"] / row["batch_size"] * row["images_per_second"]
    return (
        row["variant"],
        f"{row['held_out_loss']:.5f}",
        f"{row['ema_decay']:g}",
        f"{statistics.mean(row['fid'].values()):.2f}" if row["fid"] else "",
        str(len(row["fid"]) or ""),
        f"{row['parameters']:,}",
        f"{row['forward_flop'] / 1e6:.0f}",
        f"{row['images_per_second']:.0f}",
        f"{rate / 1e9:.0f}",
        f"{rate / row['bare_flop_per_second']:.0%}",
        f"{row['minutes']:.1f}",
    )


def main() -> None:
    args = parse_args()
    rows = [json.loads(line) for line in args.rows.read_text().splitlines()] if args.rows.is_file() else []

    def save() -> None:
        write_text(args.rows, "".join(json.dumps(row) + "\n" for row in rows))
        write_text(args.rows.with_suffix(".md"), page(rows))

    for name in args.variants:
        out = args.out / f"{args.flop:.3g}" / name.replace(" ", "_")
        row = next((row for row in rows if (row["variant"], row["flop_budget"]) == (name, args.flop)), None)
        if row is None:
            row = trained(name, args.flop, args.images, out)
            rows.append(row)
            save()
        if row["definition"] != asdict(VARIANTS[name]):
            raise UserError(f"the row of {name} is of {row['definition']}: delete it, or give the variant another name")
        for seed in args.fid_seeds:
            if str(seed) not in row["fid"]:
                measure_fid(row, seed, args.reference, args.inception_weights, out)
                save()


if __name__ == "__main__":
    run(main)
