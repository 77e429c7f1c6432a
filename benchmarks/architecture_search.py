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

from benchmarks.architecture_page import FID_SAMPLES, page
from benchmarks.architecture_variants import GUIDANCE, STARTING_NETWORK, VARIANTS, Variant
from benchmarks.search_rows import protocol_of, read_rows, require_definition, rows_to_oneself, write_rows
from benchmarks.stage_scripts import as_arguments, measure_fid, run_script, steps_for
from benchmarks.training_rate import bare_rate, one_step
from common.checkpoint import load_header, prepare
from common.command_line import POSITIVE, SEED, ArgumentParser, run
from common.device import Precision, choose_device, describe_machine
from common.errors import UserError
from common.presets import SNAPSHOT_STEPS
from common.run_log import read_metrics
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
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, metavar="VARIANT", help="(default: all)")
    parser.add_argument("--out", type=Path, default=Path("checkpoints/search"), help="folder of the runs")
    parser.add_argument("--rows", type=Path, default=Path("docs/architecture_search.jsonl"), help="file of rows")
    parser.add_argument("--compile", action="store_true", help="torch.compile the networks (needs a C++ compiler)")
    parser.add_argument("--fid-seeds", type=SEED, nargs="*", default=[], help="sampling seeds of FID")
    guidance = {"choices": GUIDANCE, "default": ["classifier-free"], "metavar": "KIND"}
    parser.add_argument("--guidance", nargs="+", help="by which FID is measured", **guidance)
    parser.add_argument("--reference", default="cifar10", help="reference of FID, as for compute_fid.py")
    parser.add_argument("--inception-weights", type=Path, help="as for compute_fid.py")
    return parser.parse_args()


def network_of(variant: Variant) -> UNet:
    return UNet(replace(STARTING_NETWORK, **variant.network))


def training_command(variant: Variant, flop: float, images: Path, out: Path, compiled: bool) -> list[str]:
    """The teacher's command line, with steps by the FLOP and a warm-up of a tenth of them (at most 500).

    It gives the whole network, so that it means the same whatever becomes of the preset. The early snapshots stay on:
    they are what a finalist is guided by.
    """
    network = network_of(variant).config.to_dict()
    del network["num_classes"]  # comes with the images
    options = {
        "--preset": "cpu",
        "--data": "folder",
        "--data-dir": images,
        "--batch-size": variant.batch_size,
        "--optimizer": variant.optimizer,
        "--learning-rate": variant.learning_rate,
        "--ema-decay": EMA_DECAYS[-1],
        "--more-ema-decays": list(EMA_DECAYS[:-1]),
        "--network": json.dumps(network),
        **variant.flow,
    }
    command = ["teacher_rectified_flow.py", *as_arguments(options)]
    steps = steps_for(flop, command)
    schedule = {
        "--steps": steps,
        "--warmup-steps": min(500, steps // 10),
        "--decay-steps": round(steps * variant.decay_share),
        "--evaluate-every": steps,
        "--compile": compiled,
        "--out": out,
    }
    return [*command, *as_arguments(schedule)]


def averaged(path: Path, ema_decay: float) -> Path:
    """The file beside `path` with the weights of another average."""
    return path if ema_decay == EMA_DECAYS[-1] else path.with_stem(f"{path.stem}_ema_{ema_decay}")


def guide_of(row: dict, guidance: str, out: Path) -> Path | None:
    """The early weights by which a row's model is guided, of the same average; None without such guidance.

    Raises UserError where the run kept none that are early enough.
    """
    share = GUIDANCE[guidance].snapshot_share
    if share is None:
        return None
    early = [step for step in SNAPSHOT_STEPS if step <= row["steps"] * share]
    if not early:
        raise UserError(f"the run of {row['variant']} has no snapshot in the first {share:.0%} of its steps")
    return averaged(out / "snapshots" / f"step_{early[-1]:07d}.safetensors", row["ema_decay"])


def add_fid(row: dict, guidance: str, seed: int, reference: str, weights: Path | None, out: Path) -> None:
    """Adds to a row the FID of a sampling seed, of the average with the lowest held-out loss.

    Raises UserError where the row's others with this guidance were measured otherwise.
    """
    options = GUIDANCE[guidance].sampler | {
        "--guide": guide_of(row, guidance, out),
        "--num-samples": FID_SAMPLES,
        "--seed": seed,
        "--reference": reference,
        "--inception-weights": weights,
    }
    output = out / f"fid_{guidance.replace(' ', '_')}_{seed}.jsonl"
    result = measure_fid(averaged(out / "teacher.safetensors", row["ema_decay"]), options, output)
    earlier = [row["fid"][guidance]["protocol"]] if guidance in row["fid"] else []
    measured = {"protocol": protocol_of(result, FID_PROTOCOL, earlier), "seeds": {}}
    row["fid"].setdefault(guidance, measured)["seeds"][str(seed)] = result["fid"]


def trained(name: str, flop: float, images: Path, out: Path, compiled: bool) -> dict:
    """Trains a variant, and returns its row without FID."""
    variant, model = VARIANTS[name], network_of(VARIANTS[name])
    command = training_command(variant, flop, images, out, compiled)
    run_script(command)
    records = read_metrics(out / "metrics.jsonl")
    last = records[-1]
    losses = {str(decay): last[f"held_out_loss_ema_{decay}"] for decay in EMA_DECAYS[:-1]}
    losses[str(EMA_DECAYS[-1])] = last["held_out_loss"]
    best = min(losses, key=losses.get)
    device, header = choose_device("auto"), load_header(out / "teacher.safetensors")
    precision = Precision(device, header["precision"])
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
        "code": header["code_version"],
        "command": shlex.join(["python", *command]),
    }


def main() -> None:
    args = parse_args()
    with rows_to_oneself(args.rows):
        search(args)


def search(args: argparse.Namespace) -> None:
    """Makes the rows that are missing of the variants, and their FIDs."""
    rows = read_rows(args.rows)
    for name in args.variants or VARIANTS:
        out = args.out / f"{args.flop:.3g}" / name.replace(" ", "_")
        row = next((row for row in rows if (row["variant"], row["flop_budget"]) == (name, args.flop)), None)
        if row is None:
            row = trained(name, args.flop, args.images, out, args.compile)
            rows.append(row)
            write_rows(args.rows, rows, page)
        require_definition(row, asdict(VARIANTS[name]))
        for guidance, seed in product(args.guidance, args.fid_seeds):
            if str(seed) not in row["fid"].get(guidance, {}).get("seeds", {}):
                add_fid(row, guidance, seed, args.reference, args.inception_weights, out)
                write_rows(args.rows, rows, page)


if __name__ == "__main__":
    run(main)
