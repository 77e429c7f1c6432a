"""Compare ways to distil a student at equal training FLOP, by the error on held-out pairs and by FID.

    python -m benchmarks.student_search --teacher checkpoints/teacher/teacher.safetensors --pairs noise_pairs \\
        --flop 2e14 --reference statistics.npz

Trains each variant of `student_variants.py` with its stage script for as many steps as the FLOP allow, and appends a
row to docs/student_search.jsonl; docs/student_search.md is written anew from all rows. What has a row already is not
done again, and a run that was interrupted goes on. A variant that begins as another one shares the FLOP with it.
"""

import argparse
import shlex
from pathlib import Path

from benchmarks.search_rows import protocol_of, read_rows, require_definition, rows_to_oneself, write_rows
from benchmarks.stage_scripts import as_arguments, measure_fid, run_script, schedule, steps_for
from benchmarks.student_page import page
from benchmarks.student_variants import STUDENTS
from common.checkpoint import load_checkpoint, load_header
from common.command_line import COUNT, POSITIVE, SEED, ArgumentParser, run
from common.device import choose_device, describe_machine
from common.errors import UserError
from common.pairs import PairSet, held_out_of
from common.results import CHOOSING_SEED
from common.run_log import read_metrics

FID_PROTOCOL = ("num_samples", "seed", "reference_sha256", "inception_sha256", "arithmetic")
"""What must be the same in all FIDs of a table."""


def parse_args() -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--teacher", type=Path, required=True, help="checkpoint of stage 1")
    parser.add_argument("--pairs", type=Path, required=True, help="folder of stage 2, by the same teacher")
    parser.add_argument("--flop", type=POSITIVE, required=True, help="training FLOP of each variant")
    parser.add_argument("--variants", nargs="+", choices=STUDENTS, metavar="VARIANT", help="(default: all)")
    parser.add_argument("--out", type=Path, default=Path("checkpoints/student_search"), help="folder of the runs")
    parser.add_argument("--rows", type=Path, default=Path("docs/student_search.jsonl"), help="file of rows")
    parser.add_argument("--num-samples", type=COUNT, default=5000, help="samples of each FID")
    parser.add_argument("--fid-seed", type=SEED, default=CHOOSING_SEED, help="sampling seed of FID")
    parser.add_argument("--reference", default="cifar10", help="reference of FID, as for compute_fid.py")
    parser.add_argument("--inception-weights", type=Path, help="as for compute_fid.py")
    return parser.parse_args()


class Search:
    """The variants on one teacher's pairs, each for the same FLOP, and the rows that are there already."""

    def __init__(self, args: argparse.Namespace):
        device = choose_device("auto")
        teacher, pairs = load_checkpoint(args.teacher), PairSet(args.pairs, device)
        pairs.require_teacher(teacher)
        self.args, self.machine, self.pairs = args, describe_machine(device), pairs
        self.circumstances = {
            "flop_budget": args.flop,
            "teacher": teacher.sha256,
            "teacher_training_flop": teacher.header["training_flop"],
            "held_out_pairs": pairs.held_out_count,
        }
        self.runs = args.out / f"{args.flop:.3g}_{teacher.sha256[:12]}"
        self.all_rows = read_rows(args.rows)

    @property
    def rows(self) -> dict[str, dict]:
        """Those of this search, by variant."""
        ours = [row for row in self.all_rows if all(row[name] == value for name, value in self.circumstances.items())]
        return {row["variant"]: row for row in ours}

    def add(self, name: str) -> None:
        """Makes the row of a variant, after those of what it begins as, where it is not there yet."""
        variant = STUDENTS[name]
        if variant.begins_as:
            self.add(variant.begins_as)
        if name not in self.rows:
            row = self.trained(name)
            if variant.stage != "teacher":
                row["fid"] = self.measured_fid(name)
            self.all_rows.append(row)
            write_rows(self.args.rows, self.all_rows, page)
        require_definition(self.rows[name], variant.definition)

    def trained(self, name: str) -> dict:
        """Trains a variant, and returns its row without FID."""
        variant, out = STUDENTS[name], self.folder(name)
        command = self.training_command(name)
        run_script([*command, "--out", str(out)])
        header, last = load_header(out / variant.weights_name), read_metrics(out / "metrics.jsonl")[-1]
        before = self.rows.get(variant.begins_as, {"training_flop": 0, "examples": 0, "minutes": 0})
        return {
            "variant": name,
            "definition": variant.definition,
            **self.circumstances,
            "num_pairs": header["num_pairs"],
            "training_flop": header["training_flop"] - header.get("initial_flop", 0) + before["training_flop"],
            "examples": header["images_seen"] + before["examples"],
            "held_out_error": last.get("held_out_error"),
            "minutes": last["seconds"] / 60 + before["minutes"],
            "fid": None,
            "machine": f"{self.machine}, {header['precision']}",
            "code": header["code_version"],
            "command": shlex.join(["python", *command]),
        }

    def training_command(self, name: str) -> list[str]:
        """The stage's command line, with steps by the FLOP: half of them decay, at most 100 warm up."""
        variant, teacher = STUDENTS[name], self.args.teacher
        options = {"--init" if variant.stage == "teacher" else "--teacher": teacher}
        if variant.begins_as:
            options["--init"] = self.folder(variant.begins_as) / STUDENTS[variant.begins_as].weights_name
        options["--pairs"] = self.args.pairs
        if variant.pairs_share != 1:
            options["--num-pairs"] = self.number_of_pairs(variant.pairs_share)
        command = [variant.script, *as_arguments(options | variant.all_options)]
        wanted = self.args.flop * variant.flop_share
        steps = steps_for(wanted, command)
        length = {"--steps": steps, "--ema-decay": 0.998, "--evaluate-every": steps}
        return [*command, *as_arguments(length | schedule(steps))]

    def folder(self, name: str) -> Path:
        return self.runs / name.replace(" ", "_").replace(",", "").replace("'", "")

    def number_of_pairs(self, share: float) -> int:
        """Raises UserError where fewer would be held out of so many: errors are compared on the same pairs."""
        count = round(share * len(self.pairs))
        if held_out_of(count) != self.pairs.held_out_count:
            raise UserError(f"{self.args.pairs} has too few pairs for a variant with {share:g} of them: make more")
        return count

    def measured_fid(self, name: str) -> dict:
        """FID and how it was measured. Raises UserError where others of the table were measured otherwise."""
        args, out = self.args, self.folder(name)
        options = {"--num-samples": args.num_samples, "--seed": args.fid_seed, "--reference": args.reference}
        options["--inception-weights"] = args.inception_weights
        result = measure_fid(out / STUDENTS[name].weights_name, options, out / "fid.jsonl")
        earlier = [row["fid"]["protocol"] for row in self.rows.values() if row["fid"]]
        return {"fid": result["fid"], "protocol": protocol_of(result, FID_PROTOCOL, earlier)}


def main() -> None:
    args = parse_args()
    with rows_to_oneself(args.rows):
        search = Search(args)
        for name in args.variants or STUDENTS:
            search.add(name)


if __name__ == "__main__":
    run(main)
