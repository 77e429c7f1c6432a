"""The comparison of losses: what it trains, that the FLOP are equal, and that nothing is done twice."""

import json
import re
import sys

import pytest
from conftest import SMALL_CONFIG

from benchmarks import loss_comparison, stage_scripts
from benchmarks.loss_comparison import LOSSES, RECIPE
from common import presets
from common.checkpoint import load_checkpoint
from common.errors import UserError

SHORT = ("--steps", 3, "--warmup-steps", 0, "--decay-steps", 0, "--batch-size", 8)
FLOP = 2.5e10


@pytest.fixture
def compare(run_script, image_folder, random_inception, monkeypatch, tmp_path):
    """compare(stage script, losses ...): the lines of FID, those of the second opinion, and what was run for them."""
    monkeypatch.setitem(presets.NETWORKS, "tiny", SMALL_CONFIG)
    monkeypatch.setitem(RECIPE, "--batch-size", 32)
    monkeypatch.chdir(tmp_path)
    data = ("--data", "folder", "--data-dir", image_folder, "--val-fraction", 0.25)
    teacher, pairs = ("--teacher", "teacher/teacher.safetensors"), ("--pairs", "pairs")
    assert run_script("teacher_rectified_flow.py", "--preset", "tiny", *data, *SHORT, "--out", "teacher").status == 0
    how = ("--num-pairs", 20, "--solver", "euler", "--num-steps", 4)
    assert run_script("generate_noise_dataset.py", *teacher, *how, "--out", "pairs").status == 0
    for name, seed in (("features", 0), ("judge", 1)):
        network = ("--network", '{"widths": [24, 16]}', *data, *SHORT, "--seed", seed, "--out", name)
        assert run_script("feature_network.py", *network).status == 0

    commands = []

    def in_this_process(command):
        commands.append(command)
        result = run_script(*command)
        assert result.status == 0, result.err

    for module in (loss_comparison, stage_scripts):
        monkeypatch.setattr(module, "run_script", in_this_process)

    def run(script, *losses, more=()):
        (student,) = tmp_path.glob("student/*.safetensors") if (tmp_path / "student").exists() else [None]
        if not student:
            assert run_script(script, *teacher, *pairs, *SHORT, "--out", "student").status == 0
            (student,) = tmp_path.glob("student/*.safetensors")
        commands.clear()
        networks = ("--feature-network", "features/feature_network.safetensors")
        networks += ("--judge", "judge/feature_network.safetensors", "--opinion-samples", 40)
        fid = ("--num-samples", 40, "--reference", image_folder, "--inception-weights", random_inception)
        files = ("--results", "results.jsonl", "--opinions", "opinions.jsonl", "--data-dir", image_folder)
        arguments = ("--student", student, "--flop", FLOP, *teacher, *pairs, *networks, *fid, *files)
        monkeypatch.setattr(sys, "argv", [*map(str, ("loss_comparison.py", *arguments, *more, "--losses", *losses))])
        loss_comparison.main()
        lines = ((tmp_path / name).read_text().splitlines() for name in ("results.jsonl", "opinions.jsonl"))
        return (*([json.loads(line) for line in file] for file in lines), list(commands))

    return run


def test_losses_are_compared_from_one_start_at_equal_flop_and_only_once(compare, tmp_path, monkeypatch):
    monkeypatch.setitem(LOSSES, "pixels, Frechet", LOSSES["pixels, Frechet"] | {"--critic-window": 64})
    names = ["pixels", "features", "pixels, Frechet", "features, adversarial"]
    results, opinions, _ = compare("distill_student.py", *names)
    start, *finished = results
    assert start["init_sha256"] is None and {line["init_sha256"] for line in finished} == {start["checkpoint"]}
    assert [(line["training_runs"][-1]["loss"], line["training_runs"][-1]["critic"]) for line in finished] == [
        ("pseudo-huber", None),
        ("features", None),
        ("pseudo-huber", "frechet"),
        ("features", "adversarial"),
    ]
    assert [line["training_runs"][-1]["flop"] for line in finished] == pytest.approx([FLOP] * 4, rel=0.1)
    assert [line["checkpoint"] for line in opinions[1:]] == [line["checkpoint"] for line in results]
    assert opinions[0]["stage"] == "teacher"
    finish = load_checkpoint(next(tmp_path.glob("checkpoints/loss_comparison/*/pixels_Frechet/*.safetensors"))).header
    assert finish["arguments"]["learning_rate"] == 2e-4 and finish["arguments"]["batch_size"] == 32
    assert finish["setup_flop"] > 0

    again, opinions_again, commands = compare("distill_student.py", *names)
    assert (again, opinions_again) == (results, opinions)
    assert [command[0] for command in commands] == ["compute_fid.py"]  # which has its own record
    (tmp_path / "opinions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in opinions[:-1]))
    assert compare("distill_student.py", *names)[1] == opinions


def test_a_finished_run_of_another_definition_is_refused(compare, run_script, tmp_path, monkeypatch):
    """And the folder named that has to go."""
    compare("distill_student.py", "features")
    folder = next(tmp_path.glob("checkpoints/loss_comparison/*/features"))

    def refusal(more=()):
        with pytest.raises(UserError, match=re.escape(f"delete {folder.relative_to(tmp_path)} ")) as refused:
            compare("distill_student.py", "features", more=more)
        return str(refused.value)

    for options, changed in ((LOSSES["features"], {"--feature-weight": 0.5}), (RECIPE, {"--ema-decay": 0.9})):
        with monkeypatch.context() as patch:
            for option, value in changed.items():
                trained_with = options[option]
                patch.setitem(options, option, value)
                assert f"{option} {trained_with}, not {value}" in refusal()
    assert "another feature network" in refusal(("--feature-network", "judge/feature_network.safetensors"))
    more = ("--teacher", "teacher/teacher.safetensors", "--num-pairs", 20, "--solver", "euler", "--num-steps", 5)
    assert run_script("generate_noise_dataset.py", *more, "--out", "more").status == 0
    assert "other pairs" in refusal(("--pairs", "more"))
    assert len(compare("distill_student.py", "features")[2]) == 1  # as it was: only measured


def test_a_four_step_student_is_trained_on_by_its_own_stage(compare):
    results, _, commands = compare("four_step_student.py", "pixels")
    assert [line["stage"] for line in results] == ["four_step"] * 2
    assert commands[1][0] == "four_step_student.py"
