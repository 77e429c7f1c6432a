"""Compare ways to distil a student at equal training FLOP, by the error on held-out pairs and by FID.

    python benchmarks/student_search.py --teacher checkpoints/teacher/teacher.safetensors --pairs noise_pairs \\
        --flop 2e14 --reference statistics.npz

Trains each variant of `STUDENTS` with its stage script for as many steps as the FLOP allow, and appends a row to
docs/student_search.jsonl; docs/student_search.md is written anew from all rows. What has a row already is not done
again, and a run that was interrupted goes on. A variant that begins as another one shares the FLOP with it.
"""

import argparse
import json
import shlex
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from common.checkpoint import STUDENT_FILES, load_header
from common.command_line import COUNT, COUNT_OR_ZERO, POSITIVE, run
from common.errors import UserError
from common.files import write_text
from common.pairs import shard_paths
from common.run_log import read_metrics
from common.tables import markdown_table

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Variant:
    """What differs from the stage's own way with preset `cpu`."""

    script: str
    options: dict = field(default_factory=dict)
    begins_as: str = ""
    """The variant whose weights it starts from; without, the teacher."""
    flop_share: float = 1.0
    """Of the FLOP that were asked for; the rest is spent on what it begins as."""
    pairs_share: float = 1.0
    """The first so many of the shards, at least one."""

    @property
    def weights_name(self) -> str:
        return {
            "distill_student.py": STUDENT_FILES["one_step"],
            "four_step_student.py": STUDENT_FILES["four_step"],
            "teacher_rectified_flow.py": "teacher.safetensors",
        }[self.script]


ONE, FOUR = "distill_student.py", "four_step_student.py"
PATH = {"--own-share": 1, "--own-gradient": "path"}

STUDENTS = {
    "one step": Variant(ONE),
    "one step, no flips": Variant(ONE, {"--no-flips": True}),
    "one step, a quarter of the pairs": Variant(ONE, pairs_share=0.25),
    "one step, a quarter of the pairs, no flips": Variant(ONE, {"--no-flips": True}, pairs_share=0.25),
    "one step, pseudo-Huber": Variant(ONE, {"--loss": "pseudo-huber"}),
    "one step, 2e-3": Variant(ONE, {"--learning-rate": 2e-3}),
    "one step, AdamW 3e-4": Variant(ONE, {"--optimizer": "adamw", "--learning-rate": 3e-4}),
    "one step, batch 128": Variant(ONE, {"--batch-size": 128}),
    "reflow": Variant("teacher_rectified_flow.py", {"--time-distribution": "u-shaped"}, flop_share=0.5),
    "one step, after reflow": Variant(ONE, begins_as="reflow", flop_share=0.5),
    "four steps, for half the FLOP": Variant(FOUR, flop_share=0.5),
    "one step, after four": Variant(ONE, begins_as="four steps, for half the FLOP", flop_share=0.5),
    "four steps": Variant(FOUR),
    "four steps, no flips": Variant(FOUR, {"--no-flips": True}),
    "four steps, pseudo-Huber": Variant(FOUR, {"--loss": "pseudo-huber"}),
    "four steps, the teacher's states": Variant(FOUR, {"--own-share": 0}),
    "four steps, its own states": Variant(FOUR, {"--own-share": 1}),
    "four steps, its own states, end to end": Variant(FOUR, PATH),
}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", type=Path, required=True, help="checkpoint of stage 1")
    parser.add_argument("--pairs", type=Path, required=True, help="folder of stage 2, by the same teacher")
    parser.add_argument("--flop", type=POSITIVE, required=True, help="training FLOP of each variant")
    parser.add_argument("--variants", nargs="+", choices=STUDENTS, default=list(STUDENTS), metavar="VARIANT")
    parser.add_argument("--out", type=Path, default=Path("checkpoints/student_search"), help="folder of the runs")
    parser.add_argument("--rows", type=Path, default=ROOT / "docs" / "student_search.jsonl", help="file of rows")
    parser.add_argument("--num-samples", type=COUNT, default=5000, help="of FID")
    parser.add_argument("--fid-seed", type=COUNT_OR_ZERO, default=1000, help="sampling seed of FID")
    parser.add_argument("--reference", default="cifar10", help="of FID, as for compute_fid.py")
    parser.add_argument("--inception-weights", type=Path, help="as for compute_fid.py")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    rows = [json.loads(line) for line in args.rows.read_text().splitlines()] if args.rows.is_file() else []
    teacher = load_header(args.teacher)
    for name in with_beginnings(args.variants):
        row = next((row for row in rows if is_of(row, name, args)), None)
        if row is None:
            before = next((row["training_flop"] for row in rows if is_of(row, STUDENTS[name].begins_as, args)), 0)
            rows.append(row_of(name, args, teacher, before))
            write_text(args.rows, "".join(json.dumps(row) + "\n" for row in rows))
            write_text(args.rows.with_suffix(".md"), page(rows))
        elif row["definition"] != asdict(STUDENTS[name]):
            raise UserError(f"the row of {name} is of {row['definition']}: delete it, or give the variant another name")


def with_beginnings(names: list[str]) -> list[str]:
    """The variants, each after what it begins as."""
    order = []
    for name in names:
        order += [needed for needed in (STUDENTS[name].begins_as, name) if needed and needed not in order]
    return order


def is_of(row: dict, name: str, args: argparse.Namespace) -> bool:
    return (row["variant"], row["flop_budget"]) == (name, args.flop)


def row_of(name: str, args: argparse.Namespace, teacher: dict, flop_before: float) -> dict:
    """Trains a variant and measures it. `flop_before`: spent on what it begins as."""
    variant, out = STUDENTS[name], folder_of(name, args)
    command = training_command(name, args)
    run_script([*command, "--out", str(out)])
    header = load_header(out / variant.weights_name)
    records = read_metrics(out / "metrics.jsonl")
    fid = measure_fid(out, variant, args) if header["stage"] in STUDENT_FILES else {}
    return {
        "variant": name,
        "definition": asdict(variant),
        "flop_budget": args.flop,
        "teacher_training_flop": teacher["training_flop"],
        "num_pairs": header["num_pairs"],
        "training_flop": header["training_flop"] - header.get("initial_flop", 0) + flop_before,
        "steps": header["step"],
        "examples": header["images_seen"],
        "held_out_error": records[-1].get("held_out_error"),
        "minutes": records[-1]["seconds"] / 60,
        "fid": fid.get("fid"),
        "fid_samples": fid.get("num_samples"),
        "fid_seed": fid.get("seed"),
        "machine": fid.get("machine"),
        "precision": header["precision"],
        "code": header["code_version"],
        "command": shlex.join(["python", *command]),
    }


def folder_of(name: str, args: argparse.Namespace) -> Path:
    return args.out / f"{args.flop:.3g}" / name.replace(" ", "_").replace(",", "").replace("'", "")


def training_command(name: str, args: argparse.Namespace) -> list[str]:
    """The stage's command line, with steps by the FLOP: half of them decay, at most 100 warm up."""
    variant = STUDENTS[name]
    options = {"--preset": "cpu", "--pairs": first_pairs(args.pairs, variant.pairs_share, args.out)}
    if variant.script == "teacher_rectified_flow.py":
        options |= {"--init": args.teacher, "--learning-rate": 1e-3, "--snapshot-steps": True}
    else:
        options |= {"--teacher": args.teacher}
    if variant.begins_as:
        beginning = STUDENTS[variant.begins_as]
        options["--init"] = folder_of(variant.begins_as, args) / beginning.weights_name
    command = [variant.script, *as_arguments(options | variant.options)]
    steps = max(2, round(args.flop * variant.flop_share / flop_per_step(command, args.out / "one_step_of_it")))
    schedule = {"--steps": steps, "--warmup-steps": min(100, steps // 10), "--decay-steps": steps // 2}
    return [*command, *as_arguments(schedule | {"--ema-decay": 0.998, "--evaluate-every": steps})]


def as_arguments(options: dict) -> list[str]:
    """An option that is True stands alone."""
    return [str(part) for name, value in options.items() for part in ((name,) if value is True else (name, value))]


def first_pairs(folder: Path, share: float, out: Path) -> Path:
    """A folder of links to the first shards of a set, or the set itself where all are asked for."""
    paths = shard_paths(folder)
    if share == 1 or not paths:
        return folder
    chosen = out / f"pairs_{share:g}"
    chosen.mkdir(parents=True, exist_ok=True)
    for path in paths[: max(1, round(share * len(paths)))]:
        link = chosen / path.name
        link.unlink(missing_ok=True)
        link.symlink_to(path.resolve())
    return chosen


def flop_per_step(command: list[str], out: Path) -> float:
    """As the script itself counts them, by a run of one step."""
    shutil.rmtree(out, ignore_errors=True)
    run_script([*command, "--steps", "1", "--warmup-steps", "0", "--decay-steps", "0", "--out", str(out)])
    flop = read_metrics(out / "metrics.jsonl")[-1]["training_flop"]
    header = load_header(next(out.glob("*.safetensors")))
    shutil.rmtree(out)
    return flop - header.get("initial_flop", 0)


def measure_fid(out: Path, variant: Variant, args: argparse.Namespace) -> dict:
    file = out / "fid.jsonl"
    file.unlink(missing_ok=True)  # the features are kept: measuring the same again takes a moment
    options = {
        "--num-samples": args.num_samples,
        "--seed": args.fid_seed,
        "--reference": args.reference,
        "--output": file,
    }
    if args.inception_weights:
        options["--inception-weights"] = args.inception_weights
    run_script(["compute_fid.py", str(out / variant.weights_name), *as_arguments(options)])
    return json.loads(file.read_text())


def run_script(command: list[str]) -> None:
    print(f"\npython {shlex.join(command)}", flush=True)
    subprocess.run([sys.executable, ROOT / command[0], *command[1:]], check=True)


INTRODUCTION = """\
# Ways to distil a student

Written by `benchmarks/student_search.py` from [student_search.jsonl](student_search.jsonl), which holds the definition
and the command of each row. What is not in a variant's name is preset `cpu`: squared error, Muon at 1e-3, batches of
64, joint flips, all pairs; half of a four-step student's examples on its own states, at equal steps. All in a table
have the same training FLOP, with those of what they begin as.

- Error: mean squared, against the teacher's images of the same noise, on 512 pairs that trained nothing.
- FID: {samples} samples of seed {seed}."""


def page(rows: list[dict]) -> str:
    measured = next((row for row in rows if row["fid"] is not None), {"fid_samples": 0, "fid_seed": 0})
    sections = [INTRODUCTION.format(samples=f"{measured['fid_samples']:,}", seed=measured["fid_seed"])]
    header = ("variant", "error", "FID", "training FLOP", "steps", "examples", "pairs", "minutes", "machine")
    tables = sorted({(row["flop_budget"], row["teacher_training_flop"]) for row in rows})
    for budget, teacher in tables:
        chosen = [row for row in rows if (row["flop_budget"], row["teacher_training_flop"]) == (budget, teacher)]
        cells = [row_cells(row) for row in chosen if row["held_out_error"] is not None]
        title = f"## {budget:.3g} training FLOP, with a teacher of {teacher:.3g}"
        sections.append(f"{title}\n\n{markdown_table(header, cells)}")
    return "\n\n".join(sections) + "\n"


def row_cells(row: dict) -> tuple[str, ...]:
    return (
        row["variant"],
        f"{row['held_out_error']:.5f}",
        f"{row['fid']:.2f}",
        f"{row['training_flop']:.3g}",
        f"{row['steps']:,}",
        f"{row['examples']:,}",
        f"{row['num_pairs']:,}",
        f"{row['minutes']:.1f}",
        f"{row['machine']}, {row['precision']}",
    )


if __name__ == "__main__":
    run(main)
