"""A run that was killed and run again ends bit-identical to one that was never stopped: every stage that takes time."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT, TINIEST_CONFIG, folder_contents

from common.checkpoint import load_checkpoint
from common.files import sha256
from common.run_log import read_metrics
from common.training_state import COMPACT_FILE, STATE_FILE, load_training_state

WEIGHTS = ("teacher.safetensors", "teacher_ema_0.5.safetensors", "student.safetensors", "four_step.safetensors")
WEIGHTS += ("feature_network.safetensors",)


def start(script, *arguments) -> subprocess.Popen:
    command = [sys.executable, str(ROOT / script), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT)


def wait_for(condition, process, seconds=60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.01)


def logged_steps(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.is_file() else 0


def assert_equal_runs(first: Path, second: Path) -> None:
    for name in WEIGHTS:
        assert (first / name).is_file() == (second / name).is_file()
        if (first / name).is_file():
            assert sha256(first / name) == sha256(second / name)
    losses = []
    for folder in (first, second):
        records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        losses.append([(record["step"], record["loss"]) for record in records if "loss" in record])
    assert losses[0] == losses[1]
    assert [step for step, _ in losses[0]] == list(range(1, 13))


STAGES = ["teacher", "muon", "reflow", "one_step", "four_step", "features", "rotation"]
STAGES += ["one_step_frechet", "four_step_adversarial"]


@pytest.mark.parametrize("stage", STAGES)
def test_a_stopped_run_ends_like_an_unbroken_one(stage, commands, run_script, tmp_path):
    """Stopped after 7 steps by Ctrl-C, as the user does it; saved then, though no save was due."""
    script, *arguments = commands[stage]
    unbroken, stopped = tmp_path / "unbroken", tmp_path / "stopped"
    assert run_script(script, *arguments, "--out", unbroken).status == 0

    import common.training

    train_step, count = common.training.Trainer._train_step, 0

    def interrupting(trainer):
        nonlocal count
        count += 1
        if count == 7:
            os.kill(os.getpid(), signal.SIGINT)
        return train_step(trainer)

    common.training.Trainer._train_step = interrupting
    try:
        result = run_script(script, *arguments, "--out", stopped)
    finally:
        common.training.Trainer._train_step = train_step
    assert result.status == 130 and "step 7 of 12" in result.out
    if stage == "one_step_frechet":  # stopped between two computations of the gradients: the saved ones have to do
        critic = load_training_state(stopped / STATE_FILE)["critic"]
        assert critic["critics.0.running.updates"] > 0 and critic["critics.0.running.by_mean"].any()
    assert run_script(script, *arguments, "--out", stopped).status == 0
    assert_equal_runs(unbroken, stopped)

    before = folder_contents(stopped)
    again = run_script(script, *arguments, "--out", stopped)
    assert again.status == 0 and "is finished" in again.out
    assert folder_contents(stopped) == before


def test_a_terminated_run_saves_and_ends_like_an_unbroken_one(commands, run_script, tmp_path):
    script, *arguments = commands["teacher"]
    unbroken, stopped = tmp_path / "unbroken", tmp_path / "stopped"
    assert run_script(script, *arguments, "--out", unbroken).status == 0
    process = start(script, *arguments, "--out", stopped)
    wait_for(lambda: logged_steps(stopped) >= 3, process)
    process.send_signal(signal.SIGTERM)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 143, output
    assert (stopped / "training_state.pt").is_file()
    assert run_script(script, *arguments, "--out", stopped).status == 0
    assert_equal_runs(unbroken, stopped)


@pytest.mark.parametrize("stage", ["teacher", "four_step"])
def test_a_killed_run_ends_like_an_unbroken_one(stage, commands, run_script, tmp_path):
    """Killed without warning while it saves after every step: at any moment, the middle of a write included."""
    script, *arguments = commands[stage]
    unbroken, killed = tmp_path / "unbroken", tmp_path / "killed"
    assert run_script(script, *arguments, "--out", unbroken).status == 0
    process = start(script, *arguments, "--out", killed, "--save-minutes", 1e-9)
    wait_for(lambda: logged_steps(killed) >= 5, process)
    process.kill()
    process.communicate(timeout=60)
    assert (killed / "training_state.pt").is_file()
    assert run_script(script, *arguments, "--out", killed).status == 0
    assert_equal_runs(unbroken, killed)
    assert not list(killed.glob(".*"))  # what the killed process had half written is gone


def test_the_log_does_not_depend_on_when_a_run_was_saved(commands, run_script, tmp_path):
    script, *arguments = commands["teacher"]
    arguments += ["--steps", 12, "--decay-steps", 4, "--log-every", 3]
    run_script(script, *arguments, "--out", tmp_path / "unbroken")
    run_script(script, *arguments, "--out", tmp_path / "paused", "--max-minutes", 1e-3)
    run_script(script, *arguments, "--out", tmp_path / "paused", "--save-minutes", 1e-9)
    losses = [
        [record["loss"] for record in read_metrics(tmp_path / run / "metrics.jsonl") if "loss" in record]
        for run in ("unbroken", "paused")
    ]
    assert losses[0] == losses[1] and len(losses[0]) == 4


def test_a_killed_pair_generator_goes_on_with_the_shards_that_it_has(make_teacher, run_script, tmp_path):
    few = ("--num-pairs", 2100, "--solver", "euler", "--num-steps", 2, "--trajectory-times")
    arguments = ("--teacher", make_teacher(config=TINIEST_CONFIG), *few)
    unbroken, killed = tmp_path / "unbroken", tmp_path / "killed"
    assert run_script("generate_noise_dataset.py", *arguments, "--out", unbroken).status == 0
    first = killed / "pairs_00000.pt"
    process = start("generate_noise_dataset.py", *arguments, "--out", killed)
    wait_for(first.is_file, process)
    process.kill()
    process.communicate(timeout=60)
    assert not (killed / "pairs_00002.pt").exists()
    written = first.stat().st_mtime_ns
    assert run_script("generate_noise_dataset.py", *arguments, "--out", killed).status == 0
    assert first.stat().st_mtime_ns == written
    for name in ("pairs_00000.pt", "pairs_00001.pt", "pairs_00002.pt"):
        assert sha256(unbroken / name) == sha256(killed / name)


def test_a_time_limit_pauses_and_a_decay_can_be_started_later(commands, run_script, tmp_path):
    """A trunk at constant rate, prolonged by a decay, and the same decay branched into another folder."""
    script, *arguments = commands["teacher"]
    trunk = ("--steps", 10, "--decay-steps", 0)
    paused = run_script(script, *arguments, *trunk, "--max-minutes", 1e-5, "--out", tmp_path / "trunk")
    assert paused.status == 0 and "paused" in paused.out
    run_script(script, *arguments, *trunk, "--out", tmp_path / "trunk")
    late = run_script(script, *arguments, "--steps", 15, "--decay-steps", 8, "--out", tmp_path / "trunk")
    assert "would have begun before step 10" in late.error_line and "give --steps 18 or more" in late.error_line
    decay = ("--steps", 16, "--decay-steps", 6)
    branch = ("--branch-from", tmp_path / "trunk", "--out", tmp_path / "branch")
    assert run_script(script, *arguments, *decay, *branch).status == 0
    assert run_script(script, *arguments, *decay, "--out", tmp_path / "trunk").status == 0
    assert sha256(tmp_path / "branch" / "teacher.safetensors") == sha256(tmp_path / "trunk" / "teacher.safetensors")
    for steps, decay_steps in ((40, 6), (20, 10)):  # the second would have to begin its decay earlier, too
        longer = ("--steps", steps, "--decay-steps", decay_steps, "--out", tmp_path / "trunk")
        prolonged = run_script(script, *arguments, *longer)
        assert "began its decay at step 10 and cannot be prolonged" in prolonged.error_line
    assert (
        "more than --steps 12" in run_script(script, *arguments, "--steps", 12, "--out", tmp_path / "trunk").error_line
    )


def test_a_run_goes_on_from_a_compact_state_where_the_whole_one_is_lost(commands, run_script, tmp_path):
    """Half the steps' trunk, with its decay, then a branch of its weights alone: stopped and run again, as ever."""
    script, *arguments = commands["muon"]
    trunk = tmp_path / "trunk"
    first = ("--steps", 12, "--decay-steps", 4, "--compact-state", "--out", trunk)
    assert run_script(script, *arguments, *first).status == 0
    whole, compact = (load_training_state(trunk / name) for name in (STATE_FILE, COMPACT_FILE))
    assert (trunk / COMPACT_FILE).stat().st_size < (trunk / STATE_FILE).stat().st_size / 5
    weights = compact["model"]["stem.weight"]
    assert weights.dtype == torch.float16 and torch.allclose(weights.float(), whole["model"]["stem.weight"], rtol=1e-3)

    prolonged = (script, *arguments, "--steps", 24, "--decay-steps", 4, "--branch-from", trunk)
    assert whole["warmed_up_from"] == 0
    assert "cannot be prolonged" in run_script(*prolonged, "--out", tmp_path / "refused").error_line
    (trunk / STATE_FILE).unlink()
    before = sha256(trunk / "teacher.safetensors")
    assert f"--branch-from {trunk} to another --out" in run_script(script, *arguments, *first).error_line
    assert sha256(trunk / "teacher.safetensors") == before and not (trunk / STATE_FILE).exists()
    tight = run_script(*prolonged, "--steps", 19, "--out", tmp_path / "tight")
    assert "there are 7 steps, into which 4 of warm-up and 4 of decay do not fit" in tight.error_line
    assert run_script(*prolonged, "--out", tmp_path / "unbroken").status == 0
    paused = run_script(*prolonged, "--max-minutes", 1e-5, "--out", tmp_path / "stopped")
    assert "paused" in paused.out and "step 13 of 24" in paused.out
    state = load_training_state(tmp_path / "stopped" / STATE_FILE)
    assert state["warmed_up_from"] == 12
    average = torch.lerp(weights.float(), state["model"]["stem.weight"], 1 - 13 / 22)  # it began at the weights
    torch.testing.assert_close(state["averages"]["0.9"]["module.stem.weight"], average)
    assert run_script(*prolonged, "--out", tmp_path / "stopped").status == 0
    for name in ("teacher.safetensors", "teacher_ema_0.5.safetensors"):
        assert sha256(tmp_path / "unbroken" / name) == sha256(tmp_path / "stopped" / name)
    assert load_checkpoint(tmp_path / "stopped" / "teacher.safetensors").header["step"] == 24


def test_a_run_goes_on_with_some_of_its_averages(commands, run_script, tmp_path):
    script, *arguments = commands["muon"]
    arguments = [*arguments, "--steps", 12, "--decay-steps", 0, "--out", tmp_path / "run"]
    assert run_script(script, *arguments, "--max-minutes", 1e-5).status == 0
    other = run_script(script, *arguments, "--ema-decay", 0.7)
    assert "averages with --ema-decay 0.9, 0.5, and none with 0.7" in other.error_line
    assert run_script(script, *arguments, "--ema-decay", 0.5, "--more-ema-decays").status == 0
    assert load_checkpoint(tmp_path / "run" / "teacher.safetensors").header["ema_decay"] == 0.5


def test_a_finished_run_gives_the_average_that_it_is_asked_for(commands, run_script, tmp_path):
    script, *arguments = commands["muon"]
    arguments = [*arguments, "--out", tmp_path / "run"]
    assert run_script(script, *arguments).status == 0
    chosen, other = tmp_path / "run" / "teacher.safetensors", tmp_path / "run" / "teacher_ema_0.5.safetensors"
    weights = load_checkpoint(other).model.state_dict()
    assert load_checkpoint(chosen).header["ema_decay"] == 0.9
    assert run_script(script, *arguments, "--ema-decay", 0.5, "--more-ema-decays").status == 0
    checkpoint = load_checkpoint(chosen)
    assert checkpoint.header["ema_decay"] == 0.5
    assert all(torch.equal(weights[name], value) for name, value in checkpoint.model.state_dict().items())


def test_a_finished_run_makes_what_it_lacks(commands, run_script, tmp_path):
    """As after a kill between the last state and what follows it; and what it is only now asked for."""
    script, *arguments = commands["muon"]
    run = tmp_path / "run"
    arguments = [*arguments, "--steps", 12, "--decay-steps", 4, "--out", run]
    assert run_script(script, *arguments, "--compact-state", "--max-minutes", 1e-5).status == 0  # which grows old
    assert load_training_state(run / COMPACT_FILE)["step"] < 12
    assert run_script(script, *arguments).status == 0
    lost = [run / name for name in ("teacher.safetensors", "teacher_ema_0.5.safetensors", "loss.png")]
    before = [sha256(path) for path in lost]
    lost[0].write_bytes(lost[0].read_bytes()[:1000])
    for path in lost[1:]:
        path.unlink()
    assert "is finished" in run_script(script, *arguments, "--compact-state").out
    assert [sha256(path) for path in lost] == before
    compact = load_training_state(run / COMPACT_FILE)
    assert compact["step"] == 12 and compact["optimizer"] is None
