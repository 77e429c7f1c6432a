"""Autoguidance through the scripts: snapshots to guide with, and a guide in samples, pairs, tables and results."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import SMALL_CONFIG, save_students

from common.checkpoint import load_checkpoint, load_initial_weights
from common.noise import sample_noise
from common.pairs import PairSet
from common.sampling import CLASSIFIER_FREE, SamplingSettings, draw, labels_in_turn
from common.unet import UNet, UNetConfig, count_forward_flop

NARROW = UNetConfig(widths=(16, 16), head_width=16, embedding_width=16, blocks_per_level=2, num_classes=10)


@pytest.fixture
def teacher_and_guide(make_teacher):
    return make_teacher(seed=0), make_teacher(seed=1, config=NARROW)


def test_the_teacher_keeps_its_early_weights(run_script, tmp_path, monkeypatch):
    monkeypatch.setattr("common.data.SHAPES_COUNT", 200)
    short = ("--preset", "tiny", "--data", "shapes", "--warmup-steps", 0, "--decay-steps", 0, "--batch-size", 8)
    long_run, short_run = tmp_path / "long", tmp_path / "short"
    assert (
        run_script(
            "teacher_rectified_flow.py", *short, "--steps", 4, "--snapshot-steps", 2, 3, "--out", long_run
        ).status
        == 0
    )
    assert run_script("teacher_rectified_flow.py", *short, "--steps", 2, "--out", short_run).status == 0
    snapshot, expected = (
        load_checkpoint(path)
        for path in (long_run / "snapshots/step_0000002.safetensors", short_run / "teacher.safetensors")
    )
    assert snapshot.header["step"] == 2 and snapshot.header["training_flop"] == expected.header["training_flop"]
    weights, others = snapshot.model.state_dict(), expected.model.state_dict()
    assert all(torch.equal(weights[name], others[name]) for name in weights)
    assert (long_run / "snapshots/step_0000003.safetensors").is_file()
    load_initial_weights(UNet(snapshot.model.config), snapshot.path)  # a model file like any other


def test_samples_are_guided_as_asked(run_script, teacher_and_guide, tmp_path):
    teacher, guide = teacher_and_guide
    out = tmp_path / "samples.npz"
    arguments = (teacher, "--guide", guide, "--num-images", 5, "--num-steps", 4, "--out", out, "--precision", "fp32")
    result = run_script("sample.py", *arguments)
    assert result.status == 0, result.err
    saved = np.load(out)
    settings = json.loads(str(saved["settings"]))
    assert settings["guide"] == load_checkpoint(guide).sha256
    assert (settings["guidance_scale"], settings["guide_scale"]) == (1.0, 2.0)
    # 4 evaluations, 3 of them guided
    assert "adams 4, autoguidance 2 for t in [0.1, 0.8]" in result.out and "NFE 7" in result.out

    both = run_script("sample.py", *arguments, "--guidance-scale", 1.5, "--guide-scale", 3)
    assert "CFG 1.5, autoguidance 3" in both.out and "NFE 10" in both.out
    assert (np.load(out)["arr_0"] != saved["arr_0"]).any()


def test_the_guide_beside_a_teacher_guides_it_unless_something_else_is_asked_for(
    run_script, teacher_and_guide, tmp_path
):
    for path, name in zip(teacher_and_guide, ("teacher.safetensors", "guide.safetensors"), strict=True):
        shutil.copy(path, tmp_path / name)
    drawing = ("sample.py", tmp_path / "teacher.safetensors", "--num-images", 1, "--num-steps", 4)
    drawing += ("--out", tmp_path / "samples.png")
    assert "autoguidance 2 for t in [0.1, 0.8]" in run_script(*drawing).out
    assert "autoguidance 3 for t in [0.1, 0.8]" in run_script(*drawing, "--guide-scale", 3).out
    assert "CFG 1.5 for t in [0.1, 0.8]" in run_script(*drawing, "--guidance-scale", 1.5).out
    alone = run_script(*drawing, "--guide-scale", 1).out  # is none
    assert "adams 4, NFE 4" in alone
    both = run_script(*drawing, "--guidance-scale", 1.5, "--guide-scale", 3).out
    assert "CFG 1.5, autoguidance 3 for t in [0.1, 0.8]" in both
    alone = run_script("sample.py", tmp_path / "guide.safetensors", "--num-images", 1, *drawing[4:]).out
    assert "CFG 2 for t in [0.1, 0.8]" in alone  # a guide does not guide itself


def test_a_teacher_of_one_class_is_not_guided_away_from_itself(make_teacher, run_script, tmp_path):
    teacher = make_teacher(config=replace(SMALL_CONFIG, num_classes=1))
    drawing = ("sample.py", teacher, "--num-images", 2, "--num-steps", 2, "--out", tmp_path / "one.png")
    assert "adams 2, NFE 2" in run_script(*drawing).out
    assert "CFG 3" in run_script(*drawing, "--guidance-scale", 3).out


def test_pairs_name_their_guide_and_count_its_work(run_script, teacher_and_guide, tmp_path):
    teacher, guide = teacher_and_guide
    making = ("generate_noise_dataset.py", "--teacher", teacher, "--num-pairs", 20, "--num-steps", 4, "--out", tmp_path)
    assert run_script(*making, "--guide", guide, "--precision", "fp32").status == 0
    pairs = PairSet(tmp_path, torch.device("cpu"))
    ours, theirs = load_checkpoint(teacher), load_checkpoint(guide)
    assert pairs.header["guide"] == theirs.sha256 and pairs.settings == SamplingSettings("adams", 4, guide_scale=2.0)
    assert replace(ours.guided_by(theirs).settings, num_steps=4) == pairs.settings  # as by default, but for the steps
    flop = 20 * (4 * count_forward_flop(ours.model) + 3 * count_forward_flop(theirs.model))
    assert pairs.description["pair_generation_flop"] == flop
    noise, labels = sample_noise(0, 0, 20, (3, 32, 32), "pairs"), labels_in_turn(range(10), 0, 20)
    expected = draw(ours.model, noise, labels, pairs.settings, guide=theirs.model).images
    torch.testing.assert_close(pairs.gather(torch.arange(20)).image, expected, atol=4e-3, rtol=1e-3)  # stored as fp16

    shutil.copy(guide, teacher.with_name("guide.safetensors"))
    assert run_script(*making[:-1], tmp_path / "alone", "--guide-scale", 1).status == 0
    teacher.with_name("guide.safetensors").unlink()
    alone = PairSet(tmp_path / "alone", torch.device("cpu"))
    assert alone.header["guide"] is None and alone.settings == SamplingSettings("adams", 4, guidance_scale=1.0)

    distilling = ("--teacher", teacher, "--pairs", tmp_path, "--out", tmp_path / "student", "--steps", 1)
    short = ("--warmup-steps", 0, "--decay-steps", 0, "--batch-size", 8)
    report = run_script("distill_student.py", *distilling, *short)
    assert report.status == 0, report.err
    student = load_checkpoint(tmp_path / "student/student.safetensors")
    assert student.header["pairs"]["guide"] == theirs.sha256

    # The report runs the teacher with the guide of the pairs, if it is given, and says so if not.
    guided = run_script(
        "distill_student.py", *distilling[:4], "--steps", 1, *short, "--guide", guide, "--out", tmp_path
    )
    line = next(line for line in guided.out.splitlines() if "teacher, euler 2" in line)
    held_out = pairs.held_out()
    as_guided = replace(pairs.settings, solver="euler", num_steps=2)
    drawn = draw(ours.model, held_out.noise, held_out.labels, as_guided, guide=theirs.model).images
    assert f" {(drawn - held_out.image).square().mean():.4f} " in line and "without its guide" not in guided.out
    assert "euler 2, without its guide" in report.out

    # Also with the guide that lies beside the teacher, if it is that of the pairs.
    for other, found in ((guide, True), (teacher, False)):
        shutil.copy(other, teacher.with_name("guide.safetensors"))
        report = run_script("distill_student.py", *distilling[:4], "--steps", 1, *short, "--out", tmp_path / str(found))
        assert (line in report.out) == found and ("without its guide" in report.out) != found
    teacher.with_name("guide.safetensors").unlink()

    other = run_script("distill_student.py", *distilling, *short, "--guide", teacher)
    assert f"SHA-256 {theirs.sha256[:12]}...: give it as --guide" in other.error_line

    comparing = ("sample.py", "--compare", teacher, student.path, "--num-images", 10, "--out", tmp_path / "figure.png")
    table = run_script(*comparing, "--guide", guide).out
    assert "--guide" in run_script(*comparing).error_line  # as for the pairs, or as is said: never silently otherwise
    assert "--guide" in run_script(*comparing, "--guide", teacher).error_line
    assert run_script(*comparing, "--guidance-scale", 1.5).status == 0
    teachers = next(line for line in table.splitlines() if line.startswith("teacher "))
    assert " + " in teachers and " 7 " in teachers  # both files, and the calls of both, run as for the pairs
    assert run_script(*comparing, "--guide", guide, "--guide-scale", 3).status == 0


def test_a_guide_that_came_after_the_pairs_does_not_change_a_comparison(run_script, teacher_and_guide, tmp_path):
    teacher, guide = teacher_and_guide
    save_students(tmp_path, teacher)  # of pairs without a guide, by classifier-free guidance
    models = (teacher, tmp_path / "student.safetensors")
    comparing = ("sample.py", "--compare", *models, "--num-images", 10, "--out", tmp_path / "figure.png")
    before = run_script(*comparing).out.splitlines()[2].split()
    shutil.copy(guide, teacher.with_name("guide.safetensors"))
    after = run_script(*comparing).out.splitlines()[2].split()
    assert after[:4] == before[:4] and CLASSIFIER_FREE.guidance_scale == 2
    assert "without a guide: run" in run_script(*comparing, "--guide", guide).error_line


def test_a_result_names_the_guide(run_script, random_inception, teacher_and_guide, image_folder, tmp_path):
    teacher, guide = teacher_and_guide
    how = ("--solver", "euler", "--num-steps", 2, "--num-samples", 20, "--kid-only", "--guide", guide)
    where = ("--reference", image_folder, "--inception-weights", random_inception, "--features", tmp_path / "features")
    assert run_script("compute_fid.py", teacher, *how, *where, "--output", tmp_path / "results.jsonl").status == 0
    result = json.loads((tmp_path / "results.jsonl").read_text())
    network = load_checkpoint(guide)
    assert result["guide"] == network.sha256 and result["nfe"] == 3
    assert result["guide_training_flop"] == network.header["training_flop"]
    assert result["guide_parameters"] == sum(parameter.numel() for parameter in network.model.parameters())
    assert (result["guidance_scale"], result["guide_scale"]) == (1.0, 2.0)


def test_guides_that_cannot_guide_are_refused(run_script, make_teacher, tmp_path):
    teacher = make_teacher()
    unconditional = make_teacher(config=replace(SMALL_CONFIG, num_classes=0))
    out = ("--out", tmp_path / "samples.png")
    assert "cannot guide" in run_script("sample.py", teacher, "--guide", unconditional, *out).error_line
    assert "needs a --guide" in run_script("sample.py", teacher, "--guide-scale", 2, *out).error_line
    unused = run_script("sample.py", teacher, "--guide", teacher, "--guide-scale", 1, *out)
    assert "--guide-scale 1 is without a guide" in unused.error_line
    assert "no checkpoint" in run_script("sample.py", teacher, "--guide", tmp_path / "none", *out).error_line
    with pytest.raises(ValueError, match="needs the guide's network"):
        draw(load_checkpoint(teacher).model, torch.zeros(1, 3, 32, 32), None, SamplingSettings(guide_scale=2.0))
