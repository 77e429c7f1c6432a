"""The stages through their command lines, one after the other, and what a student begins with."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from runs import MODELS, SHORT

from common.checkpoint import load_checkpoint, save_checkpoint
from common.noise import derive_seed
from common.pairs import PairSet
from common.presets import NETWORKS
from common.sampling import draw
from common.unet import UNet

UNMOVED = ("--steps", 1, "--warmup-steps", 0, "--decay-steps", 0, "--learning-rate", 1e-12)
"""After SHORT: a run whose weights are still those that it began with."""


def assert_same_weights(first: UNet, second: UNet) -> None:
    for name, value in second.state_dict().items():
        torch.testing.assert_close(first.state_dict()[name], value, atol=1e-9, rtol=0)


def weights_differ(first: UNet, second: UNet) -> bool:
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    return any(not torch.allclose(one, other, atol=1e-6) for one, other in pairs)


def test_the_four_stages_and_the_comparison(pipeline, run_script):
    for folder in ("teacher", "one_step", "four_step"):
        run = pipeline / "checkpoints" / folder
        records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert [record["step"] for record in records if "loss" in record] == [2, 4, 6]
        assert {"held_out_loss", "held_out_error"} & set().union(*records)
        assert records[-1]["training_flop"] > 0 and records[-1]["seconds"] > 0
        for picture in ("loss.png", "previews/step_0000003.png", "previews/step_0000006.png"):
            assert Image.open(run / picture).size[0] > 100
        assert list((run / "tensorboard").iterdir())

    teacher, four_step, one_step = (load_checkpoint(path) for path in MODELS)
    assert (teacher.stage, four_step.stage, one_step.stage) == ("teacher", "four_step", "one_step")
    assert one_step.header["teacher"] == four_step.header["teacher"] == teacher.sha256
    assert one_step.header["pairs"]["sampling"]["num_steps"] == 4
    for checkpoint in (teacher, four_step, one_step):
        header = checkpoint.header
        assert header["step"] == 6 and header["images_seen"] == 48 and header["training_flop"] > 1e9
        assert header["class_names"][0] == "circle" and header["code_version"]

    result = run_script("sample.py", "--compare", *MODELS, "--out", "figure.png", "--num-images", 20)
    assert result.status == 0
    table = [line.split() for line in result.out.splitlines()[2:5]]
    assert [row[0] for row in table] == ["teacher", "four-step", "one-step"]
    # Four evaluations of Adams, three of them guided.
    assert "7" in table[0] and "4" in table[1] and "1" in table[2]
    assert Image.open("figure.png").size[0] > 1000


def test_a_comparison_tells_two_teachers_apart_and_finds_each_students_own(pipeline, run_script):
    shutil.copy(MODELS[1], "checkpoints/copy.safetensors")
    models = (Path("checkpoints/one_step/snapshots/other.safetensors"), *MODELS[:2], "checkpoints/copy.safetensors")
    teacher = load_checkpoint(MODELS[0])
    save_checkpoint(models[0], teacher.model, {**teacher.header, "step": 7})
    result = run_script("sample.py", "--compare", *models, "--out", "several.png", "--num-images", 20)
    assert result.status == 0, result.err
    rows = [line.split("  ")[0] for line in result.out.splitlines()[2:6]]
    assert rows[:2] == ["teacher one_step/snapshots/other", "teacher teacher/teacher"]
    assert rows[2:] == ["four-step student four_step/four_step", "four-step student copy"]
    assert [line.split()[-1].endswith("%") for line in result.out.splitlines()[2:6]] == [False, False, True, True]


def test_the_held_out_report_is_that_of_its_definition(pipeline, run_script):
    report = run_script("distill_student.py", *SHORT).out
    student = load_checkpoint(MODELS[2])
    pairs = PairSet(pipeline / "noise_pairs", torch.device("cpu")).held_out()
    images = draw(student.model, pairs.noise, pairs.labels, student.settings).images
    zero = torch.zeros(len(pairs))
    with torch.no_grad():
        expected = pairs.noise + student.model(pairs.noise, zero, pairs.labels)
    torch.testing.assert_close(images, expected, atol=1e-5, rtol=1e-4)
    error = (expected - pairs.image).square().mean().item()
    printed = next(line for line in report.splitlines() if "student, 1 step" in line)
    assert float(printed.split()[3]) == pytest.approx(error, rel=0.02)
    assert "teacher, euler 2, CFG 2" in report


def test_unconditional_training(run_script, image_folder, tmp_path):
    data = ("--preset", "tiny", "--data", "folder", "--data-dir", image_folder, "--unconditional")
    assert run_script("teacher_rectified_flow.py", *data, *SHORT, "--out", tmp_path / "run").status == 0
    assert load_checkpoint(tmp_path / "run" / "teacher.safetensors").class_names == []


def test_reflow_starts_from_the_teacher(pipeline, run_script):
    arguments = ("--preset", "tiny", "--pairs", "noise_pairs", "--time-distribution", "u-shaped", "--init", MODELS[0])
    assert run_script("teacher_rectified_flow.py", *arguments, *SHORT, "--out", "reflow").status == 0
    first = load_checkpoint("reflow/teacher.safetensors")
    teacher = load_checkpoint(MODELS[0])
    assert first.header["class_names"] == teacher.class_names
    # Both made as many steps of the same network: what the first cost is part of what the second did.
    assert first.header["training_flop"] == 2 * teacher.header["training_flop"]
    assert first.header["initial"]["sha256"] == teacher.sha256
    assert (teacher.settings.guidance_scale, first.settings.guidance_scale) == (2, 1)  # its images are guided already
    assert first.supports_guidance


def test_a_student_of_another_network_begins_with_new_weights(pipeline, run_script, monkeypatch):
    """Of a network of the same shapes, into which the teacher's weights would fit."""
    other = replace(NETWORKS["tiny"], head_width=8)
    monkeypatch.setitem(NETWORKS, "cpu", other)
    network = ("--student-network", "cpu")
    assert run_script("distill_student.py", *SHORT, *UNMOVED, *network, "--out", "s").status == 0
    student, teacher = load_checkpoint("s/student.safetensors").model, load_checkpoint(MODELS[0]).model
    assert student.config == replace(other, num_classes=10) != teacher.config
    torch.manual_seed(derive_seed("weights", 0))
    assert_same_weights(student, UNet(student.config))
    assert weights_differ(student, teacher)


def test_a_student_can_start_from_a_checkpoint(pipeline, run_script):
    assert run_script("distill_student.py", *SHORT, "--loss", "pseudo-huber", "--out", "s").status == 0
    start = ("--init", "s/student.safetensors")
    assert run_script("four_step_student.py", *SHORT, *UNMOVED, *start, "--out", "f").status == 0
    first, second = load_checkpoint("s/student.safetensors"), load_checkpoint("f/four_step.safetensors")
    assert second.header["initial"]["sha256"] == first.sha256
    assert_same_weights(second.model, first.model)
    assert weights_differ(second.model, load_checkpoint(MODELS[0]).model)


def test_what_was_spent_on_a_student_s_first_weights_counts(pipeline, run_script):
    """Also where the run goes on without them. A teacher's weights, with which students start anyway, do not count."""

    def flop_of(*arguments) -> int:
        assert run_script("distill_student.py", *arguments, "--out", "s").status == 0
        return load_checkpoint("s/student.safetensors").header["training_flop"]

    one_step, four_step = (load_checkpoint(path).header["training_flop"] for path in (MODELS[2], MODELS[1]))
    half = ("--steps", 3, *SHORT[2:4], "--decay-steps", 0, *SHORT[6:])
    assert flop_of(*half, "--init", MODELS[1]) == four_step + one_step / 2
    assert flop_of(*SHORT) == four_step + one_step
    shutil.rmtree("s")
    assert flop_of(*SHORT, "--init", MODELS[0]) == one_step

    # After reflow the weights are a teacher's, too, and what it had cost before reflow is not the student's.
    reflow = ("--preset", "tiny", "--pairs", "noise_pairs", "--init", MODELS[0], "--out", "reflow", *SHORT)
    assert run_script("teacher_rectified_flow.py", *reflow).status == 0
    header = load_checkpoint("reflow/teacher.safetensors").header
    shutil.rmtree("s")
    spent = header["training_flop"] - header["initial_flop"]
    assert flop_of(*SHORT, "--init", "reflow/teacher.safetensors") == spent + one_step > one_step


def test_a_student_that_starts_from_its_teacher_keeps_its_weights_at_first(pipeline, run_script):
    assert run_script("distill_student.py", *SHORT, *UNMOVED, "--out", "s").status == 0
    assert_same_weights(load_checkpoint("s/student.safetensors").model, load_checkpoint(MODELS[0]).model)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_network_learns_the_same(run_script, image_folder, tmp_path):
    network = ("--preset", "tiny", "--network", '{"widths": [16], "attention_levels": []}')  # compiled soon
    data = (*network, "--data", "folder", "--data-dir", image_folder, "--precision", "fp32", *SHORT)
    for name, options in (("eager", ()), ("compiled", ("--compile",))):
        assert run_script("teacher_rectified_flow.py", *data, *options, "--out", tmp_path / name).status == 0
    eager, compiled = (load_checkpoint(tmp_path / name / "teacher.safetensors") for name in ("eager", "compiled"))
    for name, value in eager.model.state_dict().items():
        torch.testing.assert_close(compiled.model.state_dict()[name], value, atol=2e-3, rtol=1e-2)
