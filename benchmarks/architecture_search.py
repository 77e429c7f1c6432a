"""Compare networks and recipes at equal training FLOP, by the loss on held-out images and by FID.

    python -m benchmarks.architecture_search --images data/train --flop 1e14
    python -m benchmarks.architecture_search --images data/train --flop 4e14 --variants "Muon 2e-3" "lighter 16x16" \\
        --fid-seeds 1000 --reference statistics.npz

Trains each variant with `teacher_rectified_flow.py` for as many steps as the FLOP allow, on the same images in the same
order, with five lengths of EMA, and appends a row to docs/architecture_search.jsonl; docs/architecture_search.md is
written anew from all rows. What a row has already is not done again, and a run that was interrupted goes on. The
held-out loss has the same noise and times for all, so that differences far smaller than its spread over images count.

FID is with classifier-free guidance; `--guidance` asks for other kinds, such as by an early snapshot of the same run.
"""

import argparse
import json
import shlex
import statistics
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.search_page import FID_SAMPLES, page
from benchmarks.search_variants import GUIDANCE, STARTING_NETWORK, VARIANTS, Variant
from benchmarks.stage_scripts import ROOT, run_script
from benchmarks.training_rate import bare_rate, one_step
from common.checkpoint import code_version, load_checkpoint, prepare
from common.command_line import COUNT_OR_ZERO, POSITIVE, ArgumentParser, run
from common.device import Precision, choose_device, describe_machine
from common.errors import UserError
from common.files import write_text
from common.presets import SNAPSHOT_STEPS
from common.unet import UNet, count_forward_flop, count_values

EMA_DECAYS = (0.99, 0.995, 0.998, 0.999, 0.9995)
FID_PROTOCOL = (
    *("num_samples", "reference_sha256", "inception_sha256", "solver", "num_steps", "guidance_scale"),
    *("guidance_interval", "guide", "guide_scale", "arithmetic", "nfe"),
)
"""What must be the same in all FIDs of a row with one guidance."""


def parse_args() -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--images", type=Path, required=True, help="image folder with a sub-folder for each class")
    parser.add_argument("--flop", type=POSITIVE, required=True, help="training FLOP of each variant")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="VARIANT")
    parser.add_argument("--out", type=Path, default=Path("checkpoints/search"), help="folder of the runs")
    parser.add_argument("--rows", type=Path, default=ROOT / "docs" / "architecture_search.jsonl", help="file of rows")
    parser.add_argument("--compile", action="store_true", help="torch.compile the networks (needs a C++ compiler)")
    parser.add_argument("--fid-seeds", type=COUNT_OR_ZERO, nargs="*", default=[], help="sampling seeds of FID")
    parser.add_argument("--guidance", nargs="+", choices=GUIDANCE, default=["classifier-free"], metavar="GUIDANCE")
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


def training_command(variant: Variant, flop: float, images: Path, out: Path, compiled: bool) -> list[str]:
    """The teacher's command line, with steps by the FLOP and a warm-up of a tenth of them (at most 500).

    It gives the whole network, so that it means the same whatever becomes of the preset. The early snapshots stay on:
    they are what a finalist is guided by.
    """
    model = network_of(variant)
    network = model.config.to_dict()
    del network["num_classes"]  # comes with the images
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
    command += ["--compile"] * compiled
    return [*command, "--more-ema-decays", *map(str, EMA_DECAYS[:-1]), "--network", json.dumps(network)]


def fid_file(out: Path, guidance: str, seed: int) -> Path:
    return out / f"fid_{guidance.replace(' ', '_')}_{seed}.jsonl"


def averaged(path: Path, ema_decay: float) -> Path:
    """The file beside `path` with the weights of another average."""
    return path if ema_decay == EMA_DECAYS[-1] else path.with_stem(f"{path.stem}_ema_{ema_decay:g}")


def fid_command(row: dict, guidance: str, seed: int, reference: str, weights: Path | None, out: Path) -> list[str]:
    """Of the average with the lowest held-out loss; its guide is the same average of the early weights."""
    options = {
        **GUIDANCE[guidance].sampler,
        "--num-samples": FID_SAMPLES,
        "--seed": seed,
        "--reference": reference,
        "--output": fid_file(out, guidance, seed),
    }
    if (share := GUIDANCE[guidance].snapshot_share) is not None:
        early = [step for step in SNAPSHOT_STEPS if step <= row["steps"] * share]
        if not early:
            raise UserError(f"the run of {row['variant']} has no snapshot in the first {share:.0%} of its steps")
        options["--guide"] = averaged(out / "snapshots" / f"step_{early[-1]:07d}.safetensors", row["ema_decay"])
    if weights:
        options["--inception-weights"] = weights
    command = ["python", "compute_fid.py", str(averaged(out / "teacher.safetensors", row["ema_decay"]))]
    return command + [str(part) for option in options.items() for part in option]


def measure_fid(row: dict, guidance: str, seed: int, reference: str, weights: Path | None, out: Path) -> None:
    """Adds the FID of a sampling seed to a row. Raises UserError where the row's others were measured otherwise."""
    file = fid_file(out, guidance, seed)
    file.unlink(missing_ok=True)  # the features are kept: measuring the same again takes a moment
    run_script(fid_command(row, guidance, seed, reference, weights, out)[1:])
    result = json.loads(file.read_text())
    protocol = {name: result[name] for name in FID_PROTOCOL}
    measured = row["fid"].setdefault(guidance, {"protocol": protocol, "seeds": {}})
    if measured["protocol"] != protocol:
        raise UserError(f"the row of {row['variant']} has FIDs by {measured['protocol']}, not by {protocol}")
    measured["seeds"][str(seed)] = result["fid"]


def trained(name: str, flop: float, images: Path, out: Path, compiled: bool) -> dict:
    """Trains a variant, and returns its row without FID."""
    variant, model = VARIANTS[name], network_of(VARIANTS[name])
    command = training_command(variant, flop, images, out, compiled)
    run_script(command[1:])
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    last = records[-1]
    losses = {f"{decay:g}": last[f"held_out_loss_ema_{decay:g}"] for decay in EMA_DECAYS[:-1]}
    losses[f"{EMA_DECAYS[-1]:g}"] = last["held_out_loss"]
    best = min(losses, key=losses.get)
    device = choose_device("auto")
    precision = Precision(device, load_checkpoint(out / "teacher.safetensors").header["precision"])
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
        "code": code_version(),
        "command": shlex.join(command),
    }


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
            row = trained(name, args.flop, args.images, out, args.compile)
            rows.append(row)
            save()
        if row["definition"] != asdict(VARIANTS[name]):
            raise UserError(f"the row of {name} is of {row['definition']}: delete it, or give the variant another name")
        for guidance, seed in product(args.guidance, args.fid_seeds):
            if str(seed) not in row["fid"].get(guidance, {}).get("seeds", {}):
                measure_fid(row, guidance, seed, args.reference, args.inception_weights, out)
                save()


if __name__ == "__main__":
    run(main)
