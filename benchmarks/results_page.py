"""Write docs/results.md, its figures, and the table of the README and of the model card.

    python -m benchmarks.results_page

From docs/results.jsonl, the other files of lines in docs/, and the shipped checkpoints. The page shows what
`compute_fid.py --output docs/results.jsonl` measured of the models that are in checkpoints/pretrained/ now, by their
hash; results of earlier models follow in tables of their own. No figure on it is typed by hand but those in
docs/published.json, which others published.
"""

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev

from benchmarks.commands_section import commands_section
from benchmarks.cost_section import NEEDED_OF_COST, complete_cost, cost_section
from benchmarks.guidance_section import NEEDED_OF_GUIDED, guidance_section
from benchmarks.headline import by_seed, headline
from benchmarks.losses_section import losses_section
from common.checkpoint import GUIDE_NAME, Checkpoint, load_checkpoint
from common.command_line import ArgumentParser, run
from common.curves import GAP, curve_series, fid_curve
from common.files import ROOT, write_bytes, write_text
from common.lineage import feature_networks_flop
from common.results import (
    NEEDED_OF_OPINIONS,
    comparable_groups,
    group_title,
    in_reading_order,
    machines_of,
    mean_fid,
    measured_on,
    name_of,
    read_results,
    run_of,
    table_of,
)
from common.stages import STAGES
from common.tables import markdown_table
from common.unet import count_values

PAGE = Path("docs/results.md")
WITH_HEADLINE = (Path("README.md"), Path("checkpoints/pretrained/README.md"))
FIRST_MARK, LAST_MARK = "<!-- make results: from here -->\n", "<!-- make results: to here -->\n"
"""Around what is written into these."""
FIGURES = {
    "nfe": "docs/fid_against_network_calls.png",
    "training_flop": "docs/fid_against_training_flop.png",
    "finishing_flop": "docs/fid_against_finishing_flop.png",
}


def parse_args() -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--out", type=Path, default=Path("."), help="folder in which the pages are written")
    return parser.parse_args()


def main() -> None:
    out = parse_args().out
    results = read_results(ROOT / "docs" / "results.jsonl")
    shipped = [load_checkpoint(path) for path in sorted((ROOT / "checkpoints" / "pretrained").glob("*.safetensors"))]
    shipped.sort(key=lambda checkpoint: (is_guide(checkpoint), list(STAGES).index(checkpoint.stage)))
    files = {checkpoint.sha256: f"checkpoints/pretrained/{checkpoint.path.name}" for checkpoint in shipped}
    current = [result for result in results if result["checkpoint"] in files]
    earlier = [result for result in results if result["checkpoint"] not in files]

    costs = read_results(ROOT / "docs" / "cost.jsonl", NEEDED_OF_COST)
    cost = complete_cost(costs, [checkpoint.sha256 for checkpoint in shipped if not is_guide(checkpoint)])
    table = headline(current, files, cost, earlier)  # which may refuse: before anything is written
    groups = [in_reading_order(group) for group in comparable_groups(current)]
    sections = [INTRODUCTION, shipped_section(shipped), *map(group_section, groups)]
    sections += [cost_section(cost)] if cost else []
    sections += curve_sections(current, results, out)
    if tried := read_results(ROOT / "docs" / "guidance.jsonl", NEEDED_OF_GUIDED):
        sections.append(guidance_section(tried))
    if opinions := read_results(ROOT / "docs" / "second_opinion.jsonl", NEEDED_OF_OPINIONS):
        sections.append(losses_section(results, opinions, files))
    sections.append(published_section())
    sections += [earlier_section(group) for group in comparable_groups(earlier)]
    sections.append(commands_section(groups, files))
    write_text(out / PAGE, "\n\n".join(sections) + "\n")
    for page in WITH_HEADLINE:
        before, _, rest = (ROOT / page).read_text(encoding="utf-8").partition(FIRST_MARK)
        _, _, after = rest.partition(LAST_MARK)
        link = f"[All results]({os.path.relpath(PAGE, page.parent)}).\n\n"
        write_text(out / page, f"{before}{FIRST_MARK}{table} {link}{LAST_MARK}{after}")
    print(out / PAGE, *(out / page for page in WITH_HEADLINE), sep="\n")


INTRODUCTION = """# Results

Written by `make results` from [results.jsonl](results.jsonl), which holds a JSON line for each measurement with all
that is needed to repeat it, and from the other files of lines that its sections name. FID falls as the number of
samples rises, and depends on the reference: figures compare within a table, not across tables. KID is the mean over 100
subsets of 1,000; precision and recall are for k = 3 and 10,000 images of each side, or as many as there are samples.
*JPEG CIFAR-10* is the 50,000 training images as JPEG files (quality 75, 4:2:0 chroma): figures against it are not those
of the published protocol, which takes the originals. CFG is classifier-free guidance; autoguidance is by the guide, a
weaker network. A single Euler step starts at t = 0, before guidance begins: guided or not, it is the same.

Settings were chosen by seed 1000, which favours what they were chosen for: fresh seeds may score a little worse.
A shipped model may also have been chosen by a seed by which, with as many samples, one not shipped was measured, too.
Tables that begin with *Not shipped* are of earlier models, and of what came on the way to the shipped ones.
[The commands](#the-commands) that measured the shipped models stand at the end."""


def is_guide(checkpoint: Checkpoint) -> bool:
    return checkpoint.path.name == GUIDE_NAME


def shipped_section(shipped: Sequence[Checkpoint]) -> str:
    rows = [
        (
            f"`{checkpoint.path.name}`",
            "the teacher's guide" if is_guide(checkpoint) else STAGES[checkpoint.stage].label,
            f"`{checkpoint.sha256[:12]}`",
            f"{count_values(checkpoint.model):,}",
            f"{checkpoint.path.stat().st_size / 1e6:.2f}",
            f"{checkpoint.header['training_flop']:.3g}",
        )
        for checkpoint in shipped
    ]
    header = ("file", "model", "SHA-256", "parameters", "MB", "training FLOP")
    classifiers = max(feature_networks_flop(checkpoint.header) for checkpoint in shipped)
    pairs = max(checkpoint.header.get("pair_generation_flop", 0) for checkpoint in shipped)
    notes = (
        "Training FLOP are of all networks in the model's steps, with those of the student that it began as. Not in a\n"
        f"student's: its teacher's, its pairs' ({pairs:.3g}), and the training of the classifiers in its losses "
        f"({classifiers:.3g})."
    )
    return f"## What is shipped\n\n{markdown_table(header, rows)}\n\n{notes}"


def group_section(group: Sequence[dict]) -> str:
    sizes = " or ".join(str(size) for size in sorted({result["batch_size"] for result in group}))
    versions = " or ".join(sorted({result["versions"].get("torch", "unknown") for result in group}))
    measured = f"{measured_on(group)} In batches of {sizes}, by PyTorch {versions}.".lstrip()
    paragraphs = [f"## {group_title(group)}", markdown_table(*table_of(group)), *spread_over_seeds(group), measured]
    return "\n\n".join(paragraphs)


def earlier_section(group: Sequence[dict]) -> str:
    table = markdown_table(*table_of(group, with_ids=True, with_losses=True))
    return f"## Not shipped: {group_title(group)}\n\n{table}\n\n{measured_on(group)}".rstrip()


def spread_over_seeds(group: Sequence[dict]) -> list[str]:
    """A paragraph on the FIDs of what was measured by several sampling seeds, if anything was."""
    lines = []
    for results in by_seed(group):
        if len(results) > 1:
            first, spread = results[0], stdev(result["fid"] for result in results)
            run = f"{run_of(first)}, {first['arithmetic']}" if first["stage"] == "teacher" else first["arithmetic"]
            mean = f"{mean_fid(results):.2f}"
            recalls = [result["recall"] for result in results if result["recall"] is not None]
            recall = f"; recall {fmean(recalls):.3f}" if len(recalls) == len(results) else ""
            spreads = f"standard deviation {spread:.2f} of {len(results)} seeds"
            lines.append(f"- {name_of(first)}, {run}: {mean}, {spreads}{recall}")
    return ["FID, mean over sampling seeds:\n\n" + "\n".join(lines)] if lines else []


def curve_sections(current: Sequence[dict], results: Sequence[dict], out: Path) -> list[str]:
    """A figure for each axis along which more than two points were measured."""
    sections = []
    for axis, candidates, title in (
        ("nfe", current, "FID against network calls"),
        ("training_flop", [result for result in results if result["stage"] == "teacher"], "FID against training FLOP"),
        (
            "finishing_flop",
            [result for result in results if result["stage"] not in (None, "teacher")],
            "FID against finishing FLOP",
        ),
    ):
        measured = [result for result in candidates if result["fid"] is not None]
        groups = [in_reading_order(group) for group in comparable_groups(measured)]
        curves = [group for group in groups if len(places(group, axis)) > 2]
        if curves:
            group = max(
                curves, key=lambda group: (len({result["stage"] for result in group}), len(places(group, axis)))
            )
            write_bytes(out / FIGURES[axis], fid_curve(group, axis))
            picture = f"![{title}, {group_title(group)}]({Path(FIGURES[axis]).name})"
            notes = "The guides of autoguided teachers are not all of one kind, and their FLOP are not counted. "
            notes = notes if axis == "training_flop" and any(result["guide"] for result in group) else ""
            sections.append(f"## {title}\n\n{picture}\n\n{notes}Measured on: {machines_of(group)}.")
    return sections


def places(group: Sequence[dict], axis: str) -> set[float]:
    return {point[0] for points in curve_series(group, axis).values() for point in points if point is not GAP}


def published_section() -> str:
    published = json.loads((ROOT / "docs" / "published.json").read_text(encoding="utf-8"))
    rows = [
        (
            entry["model"],
            entry["size"],
            entry["conditional"],
            str(entry["nfe"]),
            entry["fid"],
            entry["samples"],
            entry["reference"],
            f"[{entry['source']}]({entry['url']})" if "url" in entry else entry["source"],
        )
        for entry in published
    ]
    header = ("model", "size", "conditional", "NFE", "FID", "samples", "reference", "source")
    return (
        "## Published figures\n\nOf other models, from their authors; not by the protocol of the tables above, whose\n"
        "reference is JPEG images, and whose samples are as many as each says.\n\n" + markdown_table(header, rows)
    )


if __name__ == "__main__":
    run(main)
