"""The judge's opinion of a model's samples, against the same written out."""

import json

import numpy as np
import pytest
import torch
from conftest import EULER, SMALL_CONFIG
from PIL import Image
from scipy.linalg import sqrtm

from common.checkpoint import load_checkpoint, load_feature_network, load_header, save_checkpoint
from common.data import load_images, split_held_out
from common.images import to_float, to_uint8
from common.noise import sample_noise
from common.sampling import SamplingSettings, draw, labels_in_turn

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
    arguments = ("--network", '{"widths": [24, 16]}', *data, *SHORT, "--out", tmp_path / "judge")
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
    result = second_opinion(teacher, *EULER, "--guidance-scale", 1, "--num-samples", 40, "--seed", 3)
    assert result.status == 0, result.err

    network, _, _ = load_feature_network(judge)
    training, held_out = split_held_out(load_images("folder", image_folder), 0.25)
    model = load_checkpoint(teacher)
    noise, labels = sample_noise(3, 0, 40, (3, 32, 32)), labels_in_turn(range(10), 0, 40)
    settings = SamplingSettings(solver="euler", num_steps=2, guidance_scale=1.0)
    samples = to_uint8(draw(model.model, noise, labels, settings).images)
    with torch.no_grad():
        ours, theirs, known, mirrored = (
            network.summary(to_float(images))
            for images in (samples, held_out.images, training.images, training.images.flip(-1))
        )
    scale = known.std(dim=0, correction=0)
    ours, theirs, known, mirrored = (features / scale for features in (ours, theirs, known, mirrored))
    line = json.loads((tmp_path / "opinions.jsonl").read_text())
    assert line["frechet_distance"] == pytest.approx(frechet_distance(ours, theirs), rel=1e-3)
    assert line["checkpoint"] == model.sha256 and line["training_runs"] == []
    assert line["closer_than_real"] == pytest.approx(share_of_copies(ours, known, mirrored))
    real = line["real"]
    some = torch.randperm(150, generator=torch.Generator().manual_seed(3))[:40]
    assert real["frechet_distance"] == pytest.approx(frechet_distance(known[some], theirs), rel=1e-3)
    assert real["closer_than_real"] == pytest.approx(share_of_copies(theirs, known, mirrored))
    assert 0 < real["closer_than_real"] < 1 and real["count"] == 40
    assert f"{line['frechet_distance']:.3f}" in result.out
    assert f"{real['closer_than_real']:.1%}" in result.out


def share_of_copies(features, known, mirrored):
    """Image by image, without the vectors' tricks."""
    references = torch.cat([known, mirrored])
    copies = 0
    for feature in features:
        distances = (references - feature).norm(dim=1)
        index = distances.argmin().item()
        among_real = (references - references[index]).norm(dim=1)
        among_real[[index % len(known), index % len(known) + len(known)]] = float("inf")
        copies += bool(distances[index] < among_real.min())
    return copies / len(features)


def test_the_figure_shows_the_samples_and_their_nearest_training_images(
    second_opinion, judge, teacher, image_folder, tmp_path
):
    assert second_opinion(teacher, *EULER, "--num-samples", 40).status == 0
    (path,) = (tmp_path / "figures").iterdir()
    figure = Image.open(path)
    assert figure.size == (3 * (6 * 34 + 2), 3 * (10 * 34 + 2))
    shown = torch.from_numpy(np.asarray(figure)[1::3, 1::3].copy()).permute(2, 0, 1)
    tiles = shown[:, 2:, 2:].unfold(1, 32, 34).unfold(2, 32, 34).permute(1, 2, 0, 3, 4)  # (10, 6, 3, 32, 32)
    training, _ = split_held_out(load_images("folder", image_folder), 0.25)
    everything = torch.cat([training.images, training.images.flip(-1)])
    network, _, _ = load_feature_network(judge)
    with torch.no_grad():
        known, ours = network.summary(to_float(everything)), network.summary(to_float(tiles[:, 0]))
    scale = known[:150].std(dim=0)
    for row, feature in zip(tiles, ours, strict=True):
        nearest = ((known - feature) / scale).norm(dim=1).argsort()[:5]
        assert row[1:].equal(everything[nearest])


def test_who_cannot_judge_is_refused(second_opinion, run_script, judge, teacher, pairs, data, image_folder, tmp_path):
    other = tmp_path / "other" / "teacher.safetensors"
    arguments = ("--preset", "tiny", *data[:4], "--val-fraction", 0.5, *SHORT, "--out", other.parent)
    assert run_script("teacher_rectified_flow.py", *arguments).status == 0
    assert "has learned from other images" in second_opinion(other).error_line
    (tmp_path / "fewer").mkdir()
    for path in sorted(image_folder.iterdir())[:3]:
        (tmp_path / "fewer" / path.name).symlink_to(path)
    assert "are not those that trained" in second_opinion(teacher, "--data-dir", tmp_path / "fewer").error_line
    assert "is no feature network" in second_opinion(teacher, "--judge", teacher).error_line
    assert "needs more than 32" in second_opinion(teacher, "--num-samples", 32).error_line

    files = ("--teacher", teacher, "--pairs", pairs)
    first, second = (tmp_path / name / "student.safetensors" for name in ("first", "second"))
    please = ("--loss", "features", "--feature-network", judge)
    assert run_script("distill_student.py", *files, *SHORT, *please, "--out", first.parent).status == 0
    assert run_script("distill_student.py", *files, *SHORT, "--init", first, "--out", second.parent).status == 0
    knows_more = tmp_path / "knows_more" / "feature_network.safetensors"
    training = (
        "--network",
        '{"widths": [24, 16]}',
        *data[:4],
        "--val-fraction",
        0.1,
        *SHORT,
        "--out",
        knows_more.parent,
    )
    assert run_script("feature_network.py", *training).status == 0
    please = ("--loss", "features", "--feature-network", knows_more, "--out", tmp_path / "third")
    refused = run_script("distill_student.py", *files, *SHORT, *please).error_line
    assert "held out from the teacher: train it with --val-fraction 0.25" in refused
    assert "was trained to please" in second_opinion(teacher, first).error_line
    assert "was trained to please" in second_opinion(teacher, second).error_line
    header = load_header(first)
    header["feature_network"], header["feature_network_flop"] = next(iter(header.pop("feature_networks").items()))
    save_checkpoint(tmp_path / "early.safetensors", load_checkpoint(first).model, header)  # as headers were at first
    assert "was trained to please" in second_opinion(teacher, tmp_path / "early.safetensors").error_line
    assert "or give it as --teacher" in second_opinion(second).error_line
    assert "is not the teacher of" in second_opinion(second, "--teacher", other).error_line
    reflow = ("teacher_rectified_flow.py", "--preset", "tiny", "--pairs", pairs, *SHORT, "--out", tmp_path / "reflow")
    assert run_script(*reflow).status == 0
    assert "was trained on noise pairs" in second_opinion(tmp_path / "reflow" / "teacher.safetensors").error_line

    (tmp_path / "opinions.jsonl").write_text("?\n")
    assert "line 1 of" in second_opinion(teacher, "--num-samples", 40).error_line
    assert (tmp_path / "opinions.jsonl").read_text() == "?\n"
    assert not (tmp_path / "figures").exists()


def test_a_student_is_also_compared_with_its_teacher(second_opinion, run_script, teacher, pairs, tmp_path):
    """Each of two, whose files have the same name, by what trained it."""
    first, second = (tmp_path / name / "student.safetensors" for name in ("first", "second"))
    reported = []
    for student, loss, start in ((first, "l2", ()), (second, "pseudo-huber", ("--init", first))):
        files = ("--teacher", teacher, "--pairs", pairs, "--out", student.parent)
        trained = run_script("distill_student.py", *files, *SHORT, "--loss", loss, *start)
        assert trained.status == 0
        reported.append(float(next(line for line in trained.out.splitlines() if "student, 1 step" in line).split()[3]))
    assert second_opinion(teacher, first, second, "--pairs", pairs, "--num-samples", 40).status == 0
    of_teacher, *lines = map(json.loads, (tmp_path / "opinions.jsonl").read_text().splitlines())
    assert of_teacher["held_out_error"] is None
    assert [line["held_out_error"] for line in lines] == pytest.approx(reported, abs=1e-4)
    assert [[run["loss"] for run in line["training_runs"]] for line in lines] == [["l2"], ["l2", "pseudo-huber"]]
    flop = lines[0]["training_flop"]
    assert [run["flop"] for run in lines[1]["training_runs"]] == [flop, flop] and lines[1]["training_flop"] == 2 * flop
    assert len(list((tmp_path / "figures").iterdir())) == 3
    alone = second_opinion(first, "--teacher", teacher, "--pairs", pairs, "--num-samples", 40)
    assert alone.status == 0 and len((tmp_path / "opinions.jsonl").read_text().splitlines()) == 3  # said already

    fewer = ("--teacher", teacher, *("--solver", "euler", "--num-steps", 4), "--num-pairs", 10)
    assert run_script("generate_noise_dataset.py", *fewer, "--out", tmp_path / "fewer").status == 0
    few = second_opinion(teacher, first, "--pairs", tmp_path / "fewer", "--num-samples", 41)
    assert "1 pairs are held out, and 2 of those of" in few.error_line
    assert len((tmp_path / "opinions.jsonl").read_text().splitlines()) == 3

    others = ("--teacher", teacher, "--num-pairs", 20, "--num-steps", 4, "--out", tmp_path / "others")
    assert run_script("generate_noise_dataset.py", *others).status == 0
    assert "did not learn from pairs" in second_opinion(teacher, first, "--pairs", tmp_path / "others").error_line
