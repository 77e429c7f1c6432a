"""The app as a server of its own, and a headless Chromium to visit it: for the measurement and the tests of the app."""

import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from common.errors import UserError
from common.files import ROOT

if TYPE_CHECKING:
    from playwright.sync_api import Browser

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
"""The system's Chromium, or None."""


@contextmanager
def serve(folder: Path) -> Iterator[tuple[str, subprocess.Popen]]:
    """Runs the app on the models below `folder`; its address and process. Raises RuntimeError where it ends at once."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    options = ("--server.headless", "true", "--server.port", str(port), "--server.fileWatcherType", "none")
    command = [sys.executable, "-m", "streamlit", "run", "app.py", *options, "--", str(folder)]
    server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://localhost:{port}"
    try:
        while not _answers(address):
            if server.poll() is not None:
                raise RuntimeError(f"the app stopped with status {server.returncode}")
            time.sleep(0.1)
        yield address, server
    finally:
        server.terminate()
        server.wait(30)


@contextmanager
def chromium() -> Iterator["Browser"]:
    """A headless Chromium, driven by Playwright. Raises UserError where one of them is missing."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        raise UserError("this needs Playwright: pip install -r requirements-dev.txt") from None
    if CHROMIUM is None:
        raise UserError("this needs a Chromium, such as Debian's package chromium")
    with sync_playwright() as session:
        browser = session.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def _answers(address: str) -> bool:
    try:
        return urllib.request.urlopen(f"{address}/_stcore/health", timeout=5).status == 200
    except OSError:
        return False
