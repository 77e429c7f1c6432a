"""Run the commands of the model card in their order, each of them shorter, to see that they still run through.

    python -m benchmarks.card_commands --share 0.1 --data-dir data/train --out card_run

In the folder OUT, which takes the place of the repository's root: what is trained there touches no other model. Steps,
warm-up, decay and the number of pairs are the given share of the card's, and so is the Fréchet critic's window, down to
what its covariance needs. Run again, it goes on where it stopped: every stage does.
"""

import argparse
import re
import runpy
import shlex
import sys
from pathlib import Path

from benchmarks.stage_scripts import run_python
from common.command_line import ArgumentParser, bounded, run
from common.errors import UserError
from common.files import ROOT

CARD = ROOT / "checkpoints" / "pretrained" / "README.md"
SMALLEST_SHARE = 0.04
"""A little below it, the card's shortest finishing run would end before the smallest window is full."""
SMALLEST_WINDOW = 2048
"""Samples that suffice for the features of the card's networks, 1,120 at most."""


def parse_args() -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--card", type=Path, default=CARD, help="Markdown page of the commands")
    share = bounded(float, low=SMALLEST_SHARE, high=1)
    parser.add_argument("--share", type=share, default=0.1, help="share of its steps and pairs")
    parser.add_argument("--data-dir", type=Path, default=Path("data/train"), help="folder of the training images")
    parser.add_argument("--out", type=Path, default=Path("card_run"), help="folder that all is made in")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if not args.data_dir.is_dir():
        raise UserError(f"there is no folder of images at {args.data_dir}")
    images = args.out / "data" / "train"
    images.parent.mkdir(parents=True, exist_ok=True)
    if not images.exists():
        images.symlink_to(args.data_dir.resolve())
    for language, block in blocks_of(args.card.read_text(encoding="utf-8")):
        if language == "python":
            run_python(["-c", block], "the Python of the model card", args.out)
            continue
        for _, script, *arguments in commands_of(block):
            shorter = [*arguments, *shortened(script, arguments, args.share)]
            run_python([str(ROOT / script), *shorter], script, args.out)


def blocks_of(page: str) -> list[tuple[str, str]]:
    """The fenced blocks of a Markdown page that can be run, in their order: ("bash" or "python", the text)."""
    return re.findall(r"```(bash|python)\n(.*?)```", page, flags=re.DOTALL)


def commands_of(block: str) -> list[list[str]]:
    """The words of each command, as the shell expands them; a command may go on in the next line after a backslash."""
    lines = block.replace("\\\n", " ").strip().splitlines()
    return [[part for word in shlex.split(line) for part in expanded(word)] for line in lines]


def expanded(word: str) -> list[str]:
    """a/{b,c}.d to a/b.d and a/c.d; JSON, which the shell is given in quotes, stays."""
    match = re.fullmatch(r"(.*)\{([^\"]*)\}(.*)", word)
    return [match[1] + part + match[3] for part in match[2].split(",")] if match else [word]


def shortened(script: str, arguments: list[str], share: float) -> list[str]:
    """What to append to a command, so that it takes a share of its length; the last value of an option counts."""
    parsed = arguments_of(script, arguments)
    names = [name for name in ("steps", "warmup_steps", "decay_steps", "num_pairs") if getattr(parsed, name, 0)]
    changes = {name: max(1, round(share * getattr(parsed, name))) for name in names}
    if "decay_steps" in changes:  # begins where the trunk that it goes off has ended, however that was rounded
        changes["decay_steps"] = changes["steps"] - round(share * (parsed.steps - parsed.decay_steps))
    if getattr(parsed, "critic_window", None):
        changes["critic_window"] = max(SMALLEST_WINDOW, round(share * parsed.critic_window))
    return [word for name, value in changes.items() for word in (f"--{name.replace('_', '-')}", str(value))]


def arguments_of(script: str, arguments: list[str]) -> argparse.Namespace:
    """What a script makes of its command line, defaults included."""
    before = sys.argv
    try:
        sys.argv = [script, *arguments]
        return runpy.run_path(str(ROOT / script))["parse_args"]()
    finally:
        sys.argv = before


if __name__ == "__main__":
    run(main)
