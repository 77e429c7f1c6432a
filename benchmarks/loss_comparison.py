"""Train a student on by several losses, from one start and for equal training FLOP, and measure what comes of each.

    python -m benchmarks.loss_comparison --student checkpoints/pretrained/student.safetensors --flop 2e14 \\
        --teacher checkpoints/pretrained/teacher.safetensors --guide checkpoints/pretrained/guide.safetensors \\
        --judge checkpoints/pretrained/classifiers/judge.safetensors --reference data/train \\
        --reference-name "JPEG CIFAR-10"

Equal FLOP are those of the student and of all networks in its losses, and of the features of the real images, which the
Fréchet distance needs once. FID and its like go to docs/results.jsonl, the judge's opinion
(`benchmarks/second_opinion.py`) to docs/second_opinion.jsonl; `make results` makes the table and the curve of both. A
run that was interrupted goes on, and what was measured is not measured again. A finished run of another definition is
refused.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.stage_scripts import as_arguments, run_script, schedule, steps_for
from common.checkpoint import load_checkpoint, load_header
from common.command_line import COUNT, POSITIVE, SEED, ArgumentParser, run
from common.distillation_arguments import USUAL_FEATURE_NETWORK
from common.errors import UserError
from common.files import sha256
from common.lineage import feature_networks
from common.pairs import PairSet
from common.results import CHOOSING_SEED, NEEDED_OF_OPINIONS, read_results
from common.stages import STAGES

RECIPE = {
    "--batch-size": 128,
    "--optimizer": "muon",
    "--learning-rate": 2e-4,
    "--muon-momentum": 0.95,
    "--weight-decay": 0.01,
    "--ema-decay": 0.998,
    "--seed": 0,
}
"""Given in full, so that a row means the same whatever becomes of defaults."""
PIXELS, FEATURES = {"--loss": "pseudo-huber"}, {"--loss": "features", "--feature-weight": 0.15}
REAL, TEACHERS = {"--critic-images": "real"}, {"--critic-images": "teacher"}
FRECHET = {"--critic": "frechet", "--critic-weight": 0.4, "--critic-window": 4096, "--critic-share": 0.5}
ADVERSARIAL = {"--critic": "adversarial", "--critic-weight": 0.01, "--critic-share": 0.5}
LOSSES = {
    "pixels": PIXELS,
    "features": FEATURES,
    "pixels, Frechet": PIXELS | FRECHET | REAL,
    "features, Frechet": FEATURES | FRECHET | REAL,
    "features, Frechet to the teacher": FEATURES | FRECHET | TEACHERS,
    "features, adversarial": FEATURES | ADVERSARIAL | REAL,
}
OPINION_SEED = 0
LOSS_OPTIONS = list(dict.fromkeys(option for losses in LOSSES.values() for option in losses))


def parse_args() -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--student", type=Path, required=True, help="checkpoint of stage 3 or 4, where all begin")
    parser.add_argument("--flop", type=POSITIVE, required=True, help="training FLOP of each, from there on")
    parser.add_argument(
        "--losses", nargs="+", choices=LOSSES, metavar="LOSS", help=f"some of: {'; '.join(LOSSES)} (default: all)"
    )
    parser.add_argument("--out", type=Path, default=Path("checkpoints/loss_comparison"), help="folder of the runs")
    parser.add_argument("--results", type=Path, default=Path("docs/results.jsonl"), help="lines of compute_fid.py")
    parser.add_argument(
        "--opinions", type=Path, default=Path("docs/second_opinion.jsonl"), help="lines of second_opinion.py"
    )
    group = parser.add_argument_group("training, as for the stage scripts")
    group.add_argument("--teacher", type=Path, required=True)
    group.add_argument("--guide", type=Path)
    group.add_argument("--pairs", type=Path, default=Path("noise_pairs"), help="folder of stage 2")
    group.add_argument("--feature-network", type=Path)
    group.add_argument("--data-dir", type=Path, help="where the real images are")
    group = parser.add_argument_group("measuring, as for compute_fid.py and second_opinion.py")
    group.add_argument("--judge", type=Path, help="without, there is no second opinion")
    group.add_argument("--opinion-samples", type=COUNT, default=10_000, help="that the judge sees")
    group.add_argument("--num-samples", type=COUNT, default=5000, help="samples of each FID")
    group.add_argument("--fid-seed", type=SEED, default=CHOOSING_SEED, help="sampling seed of FID")
    group.add_argument("--reference", default="cifar10", help="reference of FID")
    group.add_argument("--reference-name")
    group.add_argument("--inception-weights", type=Path)
    return parser.parse_args()


def training_command(name: str, stage: str, args: argparse.Namespace) -> list[str]:
    """The command line of a loss, with steps by the FLOP: half of them decay, at most 100 warm up."""
    losses = LOSSES[name]
    files = {"--teacher": args.teacher, "--guide": args.guide, "--pairs": args.pairs}
    if needs_feature_network(losses):
        files["--feature-network"] = args.feature_network
    if "--critic" in losses:
        script, start = "finish_student.py", {"--student": args.student}
        if losses["--critic-images"] == "real":
            files["--data-dir"] = args.data_dir
    else:
        script, start = STAGES[stage].script, {"--init": args.student}
    command = [script, *as_arguments(start | files | RECIPE | losses)]
    steps = steps_for(args.flop, command)
    return [*command, *as_arguments({"--steps": steps, "--evaluate-every": steps} | schedule(steps))]


def needs_feature_network(losses: dict) -> bool:
    return losses["--loss"] == "features" or "--critic" in losses


def is_finished(path: Path) -> bool:
    if not path.is_file():
        return False
    header = load_header(path)
    return header["step"] == header["arguments"]["steps"]


def require_same_definition(path: Path, name: str, args: argparse.Namespace) -> None:
    """Raises UserError for a finished run of other FLOP, recipe, loss, teacher, feature network or pairs than now."""
    header, losses = load_header(path), LOSSES[name]
    remedy = f"delete {path.parent} to train it anew"
    flop = header["training_flop"] - header.get("initial_flop", 0)
    if abs(flop - args.flop) > (flop - header.get("setup_flop", 0)) / header["step"]:
        raise UserError(f"{path} was trained for {flop:g} FLOP, not {args.flop:g}: {remedy}")
    options = RECIPE | schedule(header["step"]) | {option: losses.get(option) for option in LOSS_OPTIONS}
    for option, value in options.items():
        found = header["arguments"].get(option.removeprefix("--").replace("-", "_"))
        if found != value:
            raise UserError(f"{path} was trained with {option} {found}, not {value}: {remedy}")
    networks = {sha256(args.feature_network or USUAL_FEATURE_NETWORK)} if needs_feature_network(losses) else set()
    pairs = PairSet(args.pairs, torch.device("cpu"))
    for is_same, other in (
        (header["teacher"] == sha256(args.teacher), "another teacher"),
        (feature_networks(header).keys() == networks, "another feature network"),
        (pairs.are_those_of(header), "other pairs"),
        (header["num_pairs"] == len(pairs), "more or fewer pairs"),
    ):
        if not is_same:
            raise UserError(f"{path} was trained with {other}: {remedy}")


def main() -> None:
    args = parse_args()
    student = load_checkpoint(args.student)
    if not student.is_student:
        raise UserError(f"{args.student} is a teacher: give a student")
    models = [args.student]
    for name in args.losses or LOSSES:
        folder = args.out / f"{student.sha256[:12]}_{args.flop:g}" / name.replace(" ", "_").replace(",", "")
        models.append(folder / STAGES[student.stage].weights_file)
        if is_finished(models[-1]):
            require_same_definition(models[-1], name, args)
        else:
            run_script([*training_command(name, student.stage, args), "--out", str(folder)])

    fid = {"--num-samples": args.num_samples, "--seed": args.fid_seed, "--reference": args.reference}
    fid |= {"--reference-name": args.reference_name, "--inception-weights": args.inception_weights}
    run_script(["compute_fid.py", *map(str, models), *as_arguments(fid | {"--output": args.results})])
    if args.judge and (unjudged := without_opinion([args.teacher, *models], args)):
        is_teacher_judged = args.teacher not in unjudged
        opinion = {"--teacher": args.teacher} if is_teacher_judged else {"--guide": args.guide}
        opinion |= {"--judge": args.judge, "--pairs": args.pairs, "--data-dir": args.data_dir}
        opinion |= {"--num-samples": args.opinion_samples, "--seed": OPINION_SEED, "--output": args.opinions}
        run_script(["benchmarks/second_opinion.py", *map(str, unjudged), *as_arguments(opinion)])


def without_opinion(models: Sequence[Path], args: argparse.Namespace) -> list[Path]:
    """The models of which this judge's opinion is not on record yet, a student's with its error to its teacher."""
    judge = sha256(args.judge)
    on_record = {
        line["checkpoint"]
        for line in read_results(args.opinions, NEEDED_OF_OPINIONS)
        if (line["judge"], line["num_samples"], line["seed"]) == (judge, args.opinion_samples, OPINION_SEED)
        and (line["stage"] == "teacher" or line["held_out_error"] is not None)
    }
    return [model for model in models if sha256(model) not in on_record]


if __name__ == "__main__":
    run(main)
