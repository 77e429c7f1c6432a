"""Runs the project's scripts, as they are run by hand, for the searches."""

import shlex
import subprocess
import sys
from pathlib import Path

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
