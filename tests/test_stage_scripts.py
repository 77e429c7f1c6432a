"""What searches run: in processes of their own, which stop with the search, and save first."""

import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT

from benchmarks.stage_scripts import as_arguments, run_script
from common.errors import UserError

SEARCH = """
from benchmarks.stage_scripts import run_script
from common.command_line import run

run(lambda: run_script({command!r}))
"""


def test_who_stops_a_search_stops_the_script_and_loses_nothing(image_folder, tmp_path):
    out = tmp_path / "run"
    images = ("--data", "folder", "--data-dir", str(image_folder), "--log-every", "1")
    command = ["teacher_rectified_flow.py", "--preset", "tiny", *images, "--out", str(out)]
    search = subprocess.Popen([sys.executable, "-c", SEARCH.format(command=command)], cwd=ROOT)
    try:
        deadline = time.monotonic() + 180
        while not (out / "metrics.jsonl").is_file() or not (out / "metrics.jsonl").read_text():
            assert search.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        assert not (out / "training_state.pt").exists()
    finally:
        search.send_signal(signal.SIGTERM)
        status = search.wait(timeout=60)
    assert status == 128 + signal.SIGTERM
    assert (out / "training_state.pt").is_file()


def test_options_become_arguments():
    options = {"--steps": 2, "--compile": True, "--no-flips": False, "--guide": None, "--step-times": [0.25, 0.5]}
    assert as_arguments(options) == ["--steps", "2", "--compile", "--step-times", "0.25", "0.5"]


@pytest.mark.parametrize(
    ("script", "by_hand"),
    [("sample.py", "python sample.py"), ("benchmarks/results_page.py", "python -m benchmarks.results_page")],
)
def test_scripts_and_benchmarks_run_as_by_hand_and_say_why_they_fail(script, by_hand, capfd, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError, match=f"{script} did not come to its end"):
        run_script([script, "--magic"])
    captured = capfd.readouterr()
    assert captured.out == f"\n{by_hand} --magic\n"
    assert "arguments" in captured.err and "Traceback" not in captured.err
