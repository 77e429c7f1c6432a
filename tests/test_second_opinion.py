"""The judge's opinion of a model's samples, against the same written out."""

import json

import numpy as np
import pytest
import torch
from conftest import EULER, SMALL_CONFIG
from PIL import Image
from scipy.linalg import sqrtm

from common.checkpoint import load_checkpoint, load_feature_network
from common.data import load_images, split_held_out
from common.images import to_float, to_uint8
from common.noise import sample_noise
from common.sampling import balanced_labels, draw

SHORT = ("--steps", 3, "--warmup-steps", 0, "--decay-steps", 0, "--batch-size", 8, "--precision", "fp32")


@pytest.fixture
def data(image_folder):
    return ("--data", "folder", "--data-dir", image_folder, "--val-fraction", 0.25)


@pytest.fixture
def teacher(run_script, data, tmp_path, monkeypatch):
    from common import presets

    monkeypatch.setitem(presets.NETWORKS, "tiny", SMALL_CONFIG)
    out = tmp_path / "teacher"
    assert run_script("teacher_rectified_flow.py", "--preset", "tiny", *data, *SHORT, "--out", out).status == 0
    return out / "teacher.safetensors"


@pytest.fixture
def judge(run_script, data, tmp_path):
    arguments = ("--network", '{"widths": [8, 16]}', *data, *SHORT, "--out", tmp_path / "judge")
    assert run_script("feature_network.py", *arguments).status == 0
    return tmp_path / "judge" / "feature_network.safetensors"


@pytest.fixture
def pairs(run_script, teacher, tmp_path):
    sampling = ("--solver", "euler", "--num-steps", 4)
    out = tmp_path / "pairs"
    arguments = ("--teacher", teacher, *sampling, "--num-pairs", 20, "--out", out)
    assert run_script("generate_noise_dataset.py", *arguments).status == 0
    return out


@pytest.fixture
def second_opinion(run_script, judge, tmp_path):
    def run(*arguments):
        files = ("--judge", judge, "--figures", tmp_path / "figures", "--output", tmp_path / "opinions.jsonl")
        return run_script("benchmarks/second_opinion.py", *files, "--precision", "fp32", *arguments)

    return run


def frechet_distance(first, second):
    """Of features (N, D), in numpy."""
    means = [features.double().mean(dim=0).numpy() for features in (first, second)]
    covariances = [torch.cov(features.double().T).numpy() for features in (first, second)]
    traces = sum(covariance.trace() for covariance in covariances)
    return ((means[0] - means[1]) ** 2).sum() + traces - 2 * sqrtm(covariances[0] @ covariances[1]).real.trace()


def test_the_opinion_is_of_the_samples_and_the_held_out_images(second_opinion, judge, teacher, image_folder, tmp_path):
    sampling = (*EULER, "--guidance-scale", 1)
    result = second_opinion(teacher, *sampling, "--num-samples", 40, "--seed", 3)
    assert result.status == 0, result.err

    network, _, _ = load_feature_network(judge)
    training, held_out = split_held_out(load_images("folder", image_folder), 0.25)
    model = load_checkpoint(teacher)
    noise, labels = sample_noise(3, 0, 40, (3, 32, 32)), balanced_labels(range(10), 0, 40)
    settings = model.settings.__class__(solver="euler", num_steps=2, guidance_scale=1.0)
    samples = to_uint8(draw(model.model, noise, labels, settings).images)
    with torch.no_grad():
        scale = network.summary(to_float(training.images)).std(dim=0)
        ours, theirs = (network.summary(to_float(images)) / scale for images in (samples, held_out.images))
    line = json.loads((tmp_path / "opinions.jsonl").read_text())
    assert line["frechet_distance"] == pytest.approx(frechet_distance(ours, theirs), rel=1e-3)
    assert line["checkpoint"] == model.sha256 and line["loss"] is None
    assert line["closer_than_real"] == 0  # an untrained network repeats nothing
    assert f"{line['frechet_distance']:.3f}" in result.out
    assert f"{line['real_closer_than_real']:.1%}" in result.out


def test_the_figure_shows_the_samples_and_real_neighbours(second_opinion, teacher, image_folder, tmp_path):
    assert second_opinion(teacher, *EULER, "--num-samples", 20).status == 0
    figure = Image.open(tmp_path / "figures" / "nearest_to_teacher.png")
    assert figure.size == (3 * (6 * 34 + 2), 3 * (10 * 34 + 2))
    shown = torch.from_numpy(np.asarray(figure)[1::3, 1::3].copy()).permute(2, 0, 1)
    training, _ = split_held_out(load_images("folder", image_folder), 0.25)
    known = {image.numpy().tobytes() for image in torch.cat([training.images, training.images.flip(-1)])}
    for column in range(6):
        tile = shown[:, 2:34, 2 + 34 * column : 34 + 34 * column].contiguous()
        assert (tile.numpy().tobytes() in known) == (column > 0)


def test_who_cannot_judge_is_refused(second_opinion, run_script, judge, teacher, pairs, data, image_folder, tmp_path):
    other = ("--preset", "tiny", *data[:4], "--val-fraction", 0.5, *SHORT, "--out", tmp_path / "other")
    assert run_script("teacher_rectified_flow.py", *other).status == 0
    assert "has learned from other images" in second_opinion(tmp_path / "other" / "teacher.safetensors").error_line
    (tmp_path / "fewer").mkdir()
    for path in sorted(image_folder.iterdir())[:3]:
        (tmp_path / "fewer" / path.name).symlink_to(path)
    assert "are not those that trained" in second_opinion(teacher, "--data-dir", tmp_path / "fewer").error_line
    assert "is no feature network" in second_opinion(teacher, "--judge", teacher).error_line

    files = ("--teacher", teacher, "--pairs", pairs, "--feature-network", judge)
    student = tmp_path / "student" / "student.safetensors"
    assert run_script("distill_student.py", *files, *SHORT, "--loss", "features", "--out", student.parent).status == 0
    assert "was trained to please" in second_opinion(student).error_line
    assert not (tmp_path / "opinions.jsonl").exists()


def test_a_student_is_also_compared_with_its_teacher(second_opinion, run_script, teacher, pairs, tmp_path):
    files = ("--teacher", teacher, "--pairs", pairs, "--out", tmp_path / "student")
    trained = run_script("distill_student.py", *files, *SHORT, "--loss", "pseudo-huber")
    assert trained.status == 0
    reported = float(next(line for line in trained.out.splitlines() if "student, 1 step" in line).split()[3])
    student = tmp_path / "student" / "student.safetensors"
    assert second_opinion(student, "--pairs", pairs, "--num-samples", 20).status == 0
    line = json.loads((tmp_path / "opinions.jsonl").read_text())
    assert line["held_out_error"] == pytest.approx(reported, abs=1e-4)
    assert line["loss"] == "pseudo-huber"
