"""The page of `architecture_search.py`: its rows as Markdown."""

import statistics

from common.results import CHOOSING_SEED, run_of
from common.tables import markdown_table

FID_SAMPLES = 5000

INTRODUCTION = """\
# Search for a network and a recipe

Written by `benchmarks/architecture_search.py` from [architecture_search.jsonl](architecture_search.jsonl), which holds
the definition, the command and the losses of each row. What is not in a variant's name is Muon at 2e-3, batches of 64,
decay over the last 40 % and the network that preset `cpu` had at the start. Lines of that file with no `code`, or
0.1.0+d6cbe16, are by a Muon of five Newton-Schulz steps, the others by one of three; a row named after it shows what
that changed. Options of the network that brought nothing (other norms, other activations) were taken out of the code
afterwards: a line's `code` names the commit that still has them, and d6cbe16 has those of lines without one.

The network 32 wide at 32x32 became preset `cpu`. One 16 wide there is behind it at 1e14 FLOP and slightly ahead at
4e14, where the two were trained on different machines; on one, in bf16, it takes longer for as many FLOP (at 1e14, 4.1
minutes against 3.6).

- Held-out loss: at uniform times, with the best of the EMA lengths, which the next column gives (an average is over a
  tenth of the steps so far at most: in short runs the longest lengths are the same). It compares only runs with one
  distribution of training times: uniform ones are trained for this very loss, whatever FID makes of them.
- FID: {samples:,} samples against all training images, guided classifier-free; first by the sampling seed
  {choosing_seed}, which choices were made by, then the mean over fresh seeds. The machine is that of the training:
  in what arithmetic a FID was drawn, its row says under `protocol`.
- Share of bare: the arithmetic rate of training over that of the network's convolutions alone. Rates vary by a tenth
  from run to run, and all but the last of the lengths of EMA cost time that a usual run does not spend. Minutes are
  by the clock, with whatever else the machine did."""

GUIDANCE_INTRODUCTION = """\
## Guidance

The same, with the kinds of guidance that were tried. A snapshot is the last of those that the run kept within the first
so many per cent of its steps."""


def page(rows: list[dict]) -> str:
    sections = [INTRODUCTION.format(samples=FID_SAMPLES, choosing_seed=CHOOSING_SEED)]
    header = (
        *("variant", "held-out loss", "EMA", "FID", "FID, fresh seeds", "parameters", "forward MFLOP", "images/s"),
        *("GFLOP/s", "share of bare", "minutes", "machine"),
    )
    for budget in sorted({row["flop_budget"] for row in rows}):
        chosen = sorted((row for row in rows if row["flop_budget"] == budget), key=lambda row: row["held_out_loss"])
        table = markdown_table(header, [cells(row) for row in chosen])
        sections.append(f"## {budget:.3g} training FLOP\n\n{table}")
    guided = [row for row in rows if row["fid"].keys() - {"classifier-free"}]
    if guided:
        header = ("variant", "training FLOP", "guidance", "sampler", "NFE", "FID", "FID, fresh seeds")
        lines = [line for row in guided for line in guidance_cells(row)]
        sections.append(f"{GUIDANCE_INTRODUCTION}\n\n{markdown_table(header, lines)}")
    return "\n\n".join(sections) + "\n"


def cells(row: dict) -> tuple[str, ...]:
    rate = row["training_flop"] / row["steps"] / row["batch_size"] * row["images_per_second"]
    return (
        row["variant"],
        f"{row['held_out_loss']:.5f}",
        f"{row['ema_decay']:g}",
        *fid_cells(row["fid"].get("classifier-free")),
        f"{row['parameters']:,}",
        f"{row['forward_flop'] / 1e6:.0f}",
        f"{row['images_per_second']:.0f}",
        f"{rate / 1e9:.0f}",
        f"{rate / row['bare_flop_per_second']:.0%}",
        f"{row['minutes']:.1f}",
        f"{row['machine']}, compiled" if "--compile" in row["command"] else row["machine"],
    )


def guidance_cells(row: dict) -> list[tuple[str, ...]]:
    return [
        (
            row["variant"],
            f"{row['flop_budget']:.3g}",
            guidance,
            run_of({**measured["protocol"], "stage": "teacher"}),
            f"{measured['protocol']['nfe']:g}",
            *fid_cells(measured),
        )
        for guidance, measured in row["fid"].items()
    ]


def fid_cells(measured: dict | None) -> tuple[str, str]:
    """FID by the seed of choices; mean and standard deviation over the others."""
    fids = dict(measured["seeds"]) if measured else {}
    choosing = fids.pop(str(CHOOSING_SEED), None)
    fresh = list(fids.values())
    spread = f" ± {statistics.stdev(fresh):.2f} ({len(fresh)})" if len(fresh) > 1 else ""
    return f"{choosing:.2f}" if choosing else "", f"{statistics.mean(fresh):.2f}{spread}" if fresh else ""
