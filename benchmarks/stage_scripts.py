"""Runs the stage scripts and the benchmarks, as they are run by hand, for searches and comparisons."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from common.checkpoint import load_header
from common.errors import UserError
from common.files import ROOT


def run_script(command: list[str]) -> None:
    """Runs "compute_fid.py" or "benchmarks/fid_sanity.py" with arguments. Raises UserError where it fails."""
    path, *arguments = command
    is_benchmark = path.startswith("benchmarks/")
    start = ["-m", f"benchmarks.{Path(path).stem}"] if is_benchmark else [os.path.relpath(ROOT / path)]
    run_python([*start, *arguments], path)


def run_python(arguments: list[str], name: str, folder: Path | None = None) -> None:
    """Runs Python with these arguments, in `folder` if there is one, with this repository's modules.

    Raises UserError, which calls it `name`, where it fails; it has said why. Who stops this process stops that one, and
    waits until it has saved, for which `subprocess.run` has no patience.
    """
    print(f"\npython {shlex.join(arguments)}", flush=True)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    script = subprocess.Popen([sys.executable, *arguments], cwd=folder, env=environment)
    try:
        status = script.wait()
    except (KeyboardInterrupt, SystemExit):
        script.terminate()
        script.wait()
        raise
    if status:
        raise UserError(f"{name} did not come to its end")


def as_arguments(options: dict) -> list[str]:
    """An option that is True stands alone, one that is False or None is left out; of a list, each value follows it."""
    arguments = []
    for name, value in options.items():
        if value is False or value is None:
            continue
        values = () if value is True else value if isinstance(value, list) else (value,)
        arguments += [name, *map(str, values)]
    return arguments


def steps_for(flop: float, command: list[str]) -> int:
    """How many steps of a training script, at least 2, cost `flop` with what it needs once, as it counts them itself.

    Known from a run in a temporary folder that is paused after its first step. Raises UserError for too little.
    """
    endless = {"--steps": 10**6, "--warmup-steps": 0, "--decay-steps": 0, "--max-minutes": 1e-9}
    with TemporaryDirectory() as folder:
        run_script([*command, *as_arguments(endless), "--out", folder])
        header = load_header(next(Path(folder).glob("*.safetensors")))
    setup = header.get("setup_flop", 0)
    if flop <= setup:
        raise UserError(f"{flop:.3g} FLOP do not suffice: {command[0]} needs {setup:.3g} before its first step")
    per_step = (header["training_flop"] - header.get("initial_flop", 0) - setup) / header["step"]
    return max(2, round((flop - setup) / per_step))


def schedule(steps: int) -> dict[str, int]:
    """Of students that are compared: half of their steps decay, at most 100 warm up."""
    return {"--warmup-steps": min(100, steps // 10), "--decay-steps": steps // 2}


def measure_fid(checkpoint: Path, options: dict, output: Path) -> dict:
    """The line that `compute_fid.py` writes of a checkpoint, alone in the file `output`."""
    output.unlink(missing_ok=True)  # the features are kept: measuring the same again takes a moment
    run_script(["compute_fid.py", str(checkpoint), *as_arguments(options | {"--output": output})])
    return json.loads(output.read_text())
