"""Runs the project's scripts, as they are run by hand, for searches and comparisons."""

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from common.checkpoint import load_header
from common.errors import UserError

ROOT = Path(__file__).parent.parent


def run_script(command: list[str]) -> None:
    """Runs a script of the repository's root and its arguments. Raises UserError where it fails; it has said why.

    Who stops the search stops the script, and waits until it has saved.
    """
    print(f"\npython {shlex.join(command)}", flush=True)
    script = subprocess.Popen([sys.executable, ROOT / command[0], *command[1:]])
    try:
        status = script.wait()
    except (KeyboardInterrupt, SystemExit):
        script.terminate()
        script.wait()
        raise
    if status:
        raise UserError(f"{command[0]} did not come to its end")


def as_arguments(options: dict) -> list[str]:
    """An option that is True stands alone; of a list, each value follows it."""
    arguments = []
    for name, value in options.items():
        values = () if value is True else value if isinstance(value, list) else (value,)
        arguments += [name, *map(str, values)]
    return arguments


def steps_for(flop: float, command: list[str], out: Path) -> int:
    """How many steps of a training script, at least 2, cost `flop` with what it needs once, as it counts them itself.

    Known from a run in the folder `out` that is paused after its first step. Raises UserError for too little.
    """
    shutil.rmtree(out, ignore_errors=True)
    endless = {"--steps": 10**6, "--warmup-steps": 0, "--decay-steps": 0, "--max-minutes": 1e-9}
    run_script([*command, *as_arguments(endless), "--out", str(out)])
    header = load_header(next(out.glob("*.safetensors")))
    shutil.rmtree(out)
    setup = header.get("setup_flop", 0)
    if flop <= setup:
        raise UserError(f"{flop:.3g} FLOP do not suffice: {command[0]} needs {setup:.3g} before its first step")
    per_step = (header["training_flop"] - header.get("initial_flop", 0) - setup) / header["step"]
    return max(2, round((flop - setup) / per_step))
