"""What a run is not resumed with, and what it is resumed with in spite of a difference; nothing is spoiled."""

import shutil
from dataclasses import replace

import pytest
import torch
from conftest import folder_contents, save_model

from common.checkpoint import load_checkpoint, load_header
from common.files import folder_to_oneself
from common.presets import NETWORKS


def test_a_run_that_another_process_trains_is_left_alone(commands, run_script, tmp_path):
    script, *arguments = commands["teacher"]
    run_script(script, *arguments, "--out", tmp_path / "run", "--max-minutes", 1e-5)
    before = folder_contents(tmp_path / "run")
    with folder_to_oneself(tmp_path / "run"):
        result = run_script(script, *arguments, "--out", tmp_path / "run")
    assert "another process is at work in" in result.error_line
    assert folder_contents(tmp_path / "run") == before
    assert run_script(script, *arguments, "--out", tmp_path / "run").status == 0


def test_a_run_is_not_resumed_with_other_arguments(commands, run_script, tmp_path):
    script, *arguments = commands["teacher"]
    run_script(script, *arguments, "--out", tmp_path / "run", "--max-minutes", 1e-5)
    before = folder_contents(tmp_path / "run")
    result = run_script(script, *arguments, "--out", tmp_path / "run", "--learning-rate", 0.5)
    assert "was made with --learning-rate 0.002, not 0.5" in result.error_line
    result = run_script(script, *arguments, "--out", tmp_path / "run", "--network", '{"embedding_width": 32}')
    assert "was made with another network" in result.error_line
    assert folder_contents(tmp_path / "run") == before


def test_a_run_is_not_resumed_on_other_images_or_on_pairs(commands, run_script, image_folder, tmp_path):
    script, *arguments = commands["teacher"]
    folder = tmp_path / "growing"
    shutil.copytree(image_folder, folder)
    run = (script, *arguments, "--data", "folder", "--data-dir", folder, "--out", tmp_path / "run")
    assert run_script(*run, "--max-minutes", 1e-5).status == 0
    assert (
        "was made without --no-flips: leave it out, or use another --out" in run_script(*run, "--no-flips").error_line
    )
    reflow = (*commands["reflow"], "--out", tmp_path / "run")
    assert "was trained on images: leave out --pairs, or" in run_script(*reflow).error_line
    assert run_script(*reflow[:-1], tmp_path / "reflow", "--no-flips", "--max-minutes", 1e-5).status == 0
    refused = run_script(script, *arguments, "--out", tmp_path / "reflow", "--no-flips")
    assert "was trained on noise pairs: give --pairs, or use another --out" in refused.error_line
    assert "was made with --no-flips: give it, or" in run_script(*reflow[:-1], tmp_path / "reflow").error_line
    (image,) = list((folder / "circle").iterdir())[:1]
    shutil.copy(image, folder / "square" / "another.png")
    assert "was made with other images: use another --out" in run_script(*run).error_line


def test_a_run_is_not_resumed_with_another_network(commands, run_script, tmp_path, monkeypatch):
    """A newer version of the project may have another network under a preset's name."""
    script, *arguments = commands["teacher"]
    run_script(script, *arguments, "--out", tmp_path / "run", "--max-minutes", 1e-5)
    before = folder_contents(tmp_path / "run")
    monkeypatch.setitem(NETWORKS, "tiny", replace(NETWORKS["tiny"], widths=(16, 32, 48)))
    result = run_script(script, *arguments, "--out", tmp_path / "run")
    assert "was made with another network: use another --out" in result.error_line
    assert folder_contents(tmp_path / "run") == before


def test_a_run_is_not_resumed_on_other_pairs(commands, make_teacher, run_script, tmp_path):
    for stage in ("reflow", "one_step"):
        script, *arguments = commands[stage]
        run_script(script, *arguments, "--out", tmp_path / stage, "--max-minutes", 1e-5)
        other = ("--teacher", make_teacher(seed=7)) if stage == "one_step" else ()
        pairs = tmp_path / f"other_{stage}"
        command = ("--teacher", make_teacher(seed=7), "--out", pairs, "--num-pairs", 50, "--num-steps", 4)
        run_script("generate_noise_dataset.py", *command)
        result = run_script(script, *arguments, *other, "--pairs", pairs, "--out", tmp_path / stage)
        assert f"was made with {'another teacher' if other else 'other pairs'}" in result.error_line


def test_a_run_is_not_resumed_from_other_initial_weights(commands, run_script, tmp_path):
    """But without them, since they may be lost by then."""
    script, *arguments = commands["one_step"]
    save_model(tmp_path / "first.safetensors", "one_step", 1, arguments={})
    save_model(tmp_path / "second.safetensors", "one_step", 2, arguments={})
    run = (script, *arguments, "--out", tmp_path / "run")
    assert run_script(*run, "--init", tmp_path / "first.safetensors", "--max-minutes", 1e-5).status == 0
    refused = run_script(*run, "--student-network", "tiny").error_line
    assert "was made without --student-network: leave it out, or use another --out" in refused
    assert "began at other weights" in run_script(*run, "--init", tmp_path / "second.safetensors").error_line
    first = load_header(tmp_path / "run" / "student.safetensors")["initial"]
    assert run_script(*run).status == 0
    assert load_header(tmp_path / "run" / "student.safetensors")["initial"] == first


def test_a_teacher_does_not_begin_at_one_that_saw_what_is_held_out(commands, run_script, tmp_path, monkeypatch):
    """Nor at what that one became meanwhile; fewer held-out images are some of the same."""
    script, *arguments = commands["teacher"]

    def train(name, val_fraction, *init):
        out = ("--max-minutes", 1e-5, "--out", tmp_path / name)  # one step of it suffices
        result = run_script(script, *arguments, "--val-fraction", val_fraction, *out, *init)
        return result, ("--init", tmp_path / name / "teacher.safetensors")

    _, all_seen = train("all", 0)
    refused = "has learned from images that are held out now: give --val-fraction 0"
    assert refused in train("refused", 0.25, *all_seen)[0].error_line
    _, later = train("later", 0, *all_seen)
    assert refused in train("refused", 0.25, *later)[0].error_line
    assert not (tmp_path / "refused").exists()
    _, quarter_held_out = train("quarter", 0.25)
    assert train("tenth", 0.1, *quarter_held_out)[0].status == 0
    with monkeypatch.context() as patched:  # begun by a version that did not look
        patched.setattr("common.sources.ImageSource.require_held_out_unseen", lambda *_: None)
        assert train("begun", 0.25, *all_seen)[0].status == 0
    assert train("begun", 0.25, *all_seen)[0].status == 0


def test_a_run_does_not_branch_from_one_with_other_arguments(commands, run_script, tmp_path):
    script, *arguments = commands["teacher"]
    run_script(script, *arguments, "--out", tmp_path / "trunk", "--max-minutes", 1e-5)
    branch = (*arguments, "--branch-from", tmp_path / "trunk", "--out", tmp_path / "branch")
    result = run_script(script, *branch, "--learning-rate", 0.5)
    assert "--learning-rate 0.002, not 0.5: give the same value" in result.error_line
    assert result.error_line.endswith("or branch from another run")


@pytest.mark.parametrize(("stage", "weights"), [("one_step", "student"), ("reflow", "teacher")])
def test_a_run_goes_on_with_its_pairs_where_there_are_more_by_now(
    stage, weights, commands, run_script, make_teacher, tmp_path
):
    script, *arguments = commands[stage]
    pairs = ("--teacher", make_teacher(), "--num-steps", 4, "--out", tmp_path / "growing")
    run = (script, *arguments, "--pairs", tmp_path / "growing", "--out", tmp_path / "run")
    run_script("generate_noise_dataset.py", *pairs, "--num-pairs", 40)
    assert run_script(*run, "--max-minutes", 1e-5).status == 0
    assert run_script(*run[:-1], tmp_path / "unbroken").status == 0
    run_script("generate_noise_dataset.py", *pairs, "--num-pairs", 60)
    assert "was made with 40 pairs: give --num-pairs 40" in run_script(*run).error_line
    assert "holds only 60 pairs, not 61" in run_script(*run, "--num-pairs", 61).error_line
    assert run_script(*run, "--num-pairs", 40).status == 0
    first, second = (load_checkpoint(tmp_path / name / f"{weights}.safetensors") for name in ("run", "unbroken"))
    assert first.header["pair_generation_flop"] == second.header["pair_generation_flop"]
    weights = second.model.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in first.model.state_dict().items())


@pytest.mark.parametrize(("rate", "message"), [(1e30, "the loss or its gradient is"), (1e38, "the weights are")])
def test_what_is_not_finite_stops_the_run_and_is_not_saved(rate, message, commands, run_script, tmp_path):
    script, *arguments = commands["teacher"]
    saving = ("--save-minutes", 1e-9, "--snapshot-steps", 1) if "weights" in message else ()
    run = (*arguments, "--learning-rate", rate, "--warmup-steps", 0, "--out", tmp_path / "run", *saving)
    error = run_script(script, *run).error_line
    assert f"{message} not finite" in error and ("at step 2;" in error or "after step 1;" in error)
    assert not list((tmp_path / "run").rglob("*.safetensors"))
    assert not (tmp_path / "run" / "training_state.pt").exists()


def test_weights_without_a_training_state_are_not_overwritten(commands, run_script, tmp_path):
    """Those of a run whose state was lost, say, or models that somebody put there."""
    script, *arguments = commands["one_step"]
    save_model(tmp_path / "run" / "student.safetensors", "one_step", 1, arguments={})
    before = folder_contents(tmp_path / "run")
    result = run_script(script, *arguments, "--out", tmp_path / "run")
    assert "student.safetensors is there, but no training state" in result.error_line
    assert folder_contents(tmp_path / "run") == before
