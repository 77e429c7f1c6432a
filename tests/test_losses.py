"""The loss of each training stage, read from its log after one step, against the same written out by hand.

All training pairs go into the one step, so that their order does not matter; every network starts as the teacher.
"""

import shutil
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from conftest import random_network, save_feature_network, save_model

from common import flow
from common.adversarial_critic import AdversarialCritic
from common.checkpoint import load_checkpoint
from common.distances import FeatureDistance, pseudo_huber
from common.epoch_order import EpochOrder
from common.files import sha256
from common.noise import derive_seed
from common.pair_shards import TRAJECTORY_TIMES
from common.pairs import PairSet
from common.run_log import read_metrics
from common.sampling import SamplingSettings, draw
from common.training import step_generator
from common.unet import count_forward_flop

CPU = torch.device("cpu")
NUM_PAIRS, NUM_TRAINING = 20, 18
ONE_STEP = ("--steps", 1, "--warmup-steps", 0, "--decay-steps", 0, "--no-flips", "--precision", "fp32")
L2 = ("--loss", "l2")


@pytest.fixture
def first_record(make_teacher, run_script, tmp_path):
    """first_record(script, *arguments): the metrics of the first step of a stage."""
    pairs = tmp_path / "pairs"
    command = ("--teacher", make_teacher(), "--out", pairs, "--num-pairs", NUM_PAIRS, "--num-steps", 4)
    run_script("generate_noise_dataset.py", *command, "--precision", "fp32")

    def run(script, *arguments) -> dict:
        if script != "teacher_rectified_flow.py":
            arguments = ("--teacher", make_teacher(), *arguments)
        result = run_script(script, "--pairs", pairs, *ONE_STEP, "--out", tmp_path / "run", *arguments)
        assert result.status == 0, result.err
        (tmp_path / "report.txt").write_text(result.out)
        return read_metrics(tmp_path / "run" / "metrics.jsonl")[0]

    return run


@pytest.fixture
def training_pairs(first_record, tmp_path):
    return PairSet(tmp_path / "pairs", CPU, TRAJECTORY_TIMES).gather(torch.arange(NUM_PAIRS - NUM_TRAINING, NUM_PAIRS))


@torch.no_grad()
def velocity(x, t, labels):
    return random_network()(x, torch.full((len(x),), float(t)), labels)


@pytest.mark.parametrize("loss", ["l2", "pseudo-huber"])
def test_one_step_student(loss, first_record, training_pairs):
    record = first_record("distill_student.py", "--batch-size", NUM_TRAINING, "--loss", loss)
    pair = training_pairs
    landed = pair.noise + velocity(pair.noise, 0, pair.labels)
    expected = (landed - pair.image).square().mean() if loss == "l2" else pseudo_huber(landed, pair.image).mean()
    assert record["loss"] == pytest.approx(expected.item(), rel=1e-4)


def landings(training_pairs):
    """Where a step of 1/4 from each of the teacher's states leads, and the teacher's next state.

    A quarter of the pairs, in the order of the run, trains each of the steps; the last of them ends at the images.
    """
    order = EpochOrder(NUM_TRAINING, NUM_TRAINING, seed=0).indices(0)
    path, labels = training_pairs.trajectory[order], training_pairs.labels[order]
    for index, rows in enumerate((slice(0, 5), slice(5, 9), slice(9, 14), slice(14, 18))):
        start = path[rows, index]
        yield start + 0.25 * velocity(start, index / 4, labels[rows]), path[rows, index + 1]


@pytest.mark.parametrize("loss", ["l2", "pseudo-huber"])
def test_four_step_student(loss, first_record, training_pairs):
    record = first_record("four_step_student.py", "--batch-size", NUM_TRAINING, "--loss", loss)
    landed, targets = map(torch.cat, zip(*landings(training_pairs), strict=True))
    expected = (landed - targets).square().mean() if loss == "l2" else pseudo_huber(landed, targets).mean()
    assert record["loss"] == pytest.approx(expected.item(), rel=1e-4)


def test_the_feature_loss_is_of_images_alone(first_record, training_pairs, tmp_path):
    """Pseudo-Huber everywhere; at t = 1, half of the features' distance beside it."""
    distance = FeatureDistance([save_feature_network(tmp_path / "features.safetensors")])
    arguments = ("--loss", "features", "--feature-network", tmp_path / "features.safetensors", "--feature-weight", 0.5)
    arguments = ("--batch-size", NUM_TRAINING, *arguments)
    *to_states, (images, teachers) = landings(training_pairs)
    losses = [pseudo_huber(landed, target) for landed, target in to_states]
    losses.append(pseudo_huber(images, teachers) + 0.5 * distance(images, teachers))
    record = first_record("four_step_student.py", *arguments)
    assert record["loss"] == pytest.approx(torch.cat(losses).mean().item(), rel=1e-4)
    header = load_checkpoint(tmp_path / "run" / "four_step.safetensors").header
    assert header["feature_networks"] == {sha256(tmp_path / "features.safetensors"): 0}

    pair = training_pairs
    landed = pair.noise + velocity(pair.noise, 0, pair.labels)
    expected = pseudo_huber(landed, pair.image).mean() + 0.5 * distance(landed, pair.image).mean()
    shutil.rmtree(tmp_path / "run")
    record = first_record("distill_student.py", *arguments)
    assert record["loss"] == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize(("stage", "times"), [("one_step", [0, 1]), ("four_step", [0, 0.25, 0.5, 0.75, 1])])
def test_a_critic_judges_the_images_of_fresh_noise(stage, times, first_record, training_pairs, make_teacher, tmp_path):
    """A quarter of the images, beside those of all pairs; by the discriminators as they are at their start.

    The gradient goes through all of the student's steps. What the student had cost before counts.
    """
    paths = (tmp_path / "features.safetensors", tmp_path / "more_features.safetensors")
    networks = (save_feature_network(paths[0]), save_feature_network(paths[1], widths=(8, 24), training_flop=5))
    header = PairSet(tmp_path / "pairs", CPU).description | {"teacher": sha256(make_teacher()), "training_flop": 10**9}
    save_model(tmp_path / "student.safetensors", stage, 0, arguments={}, **header)
    student = ("--student", tmp_path / "student.safetensors", "--feature-network", *paths)
    critic = ("--critic", "adversarial", "--critic-images", "teacher", "--critic-weight", 2, "--critic-share", 0.25)
    record = first_record("finish_student.py", "--batch-size", 24 * (len(times) - 1), *student, *critic, *L2)

    seed = derive_seed("finishing", 0, sha256(tmp_path / "student.safetensors"))
    generator, pair, network_of_student = step_generator(seed, 0, CPU), training_pairs, random_network()
    torch.rand(NUM_TRAINING, generator=generator)  # the flips
    fresh = torch.randn(6, 3, 32, 32, generator=generator)
    x, labels = pair.noise, torch.randint(10, (6,), generator=generator)
    for t, end in pairwise(times):
        x = x + (end - t) * network_of_student(x, torch.full((NUM_TRAINING,), t), pair.labels)
        fresh = fresh + (end - t) * network_of_student(fresh, torch.full((6,), t), labels)
    real = SimpleNamespace(count=NUM_TRAINING)
    critics = [AdversarialCritic(network.requires_grad_(False), real, 6, seed=0, flips=False) for network in networks]
    judged = torch.zeros(())
    for network, critic in zip(networks, critics, strict=True):
        maps = [map_ / map_.square().mean(dim=1, keepdim=True).sqrt() for map_ in network.features(fresh)]
        logits = [head(map_).mean() for head, map_ in zip(critic.heads, maps, strict=True)]
        judged = judged - sum(logits) / len(logits) / 2
    loss = (x - pair.image).square().mean() + 2 * judged
    loss.backward()
    norm = torch.stack([parameter.grad.norm() for parameter in network_of_student.parameters()]).norm().item()
    assert judged.item() != 0
    assert record["loss"] == pytest.approx(loss.item(), rel=1e-3)
    assert record["gradient_norm"] == pytest.approx(norm, rel=1e-3)
    finished = load_checkpoint(next((tmp_path / "run").glob("*.safetensors")))
    assert finished.stage == stage and finished.header["initial"]["stage"] == stage
    assert finished.settings.times == times and finished.header["initial_flop"] == 10**9
    assert finished.header["feature_networks"] == {sha256(paths[0]): 0, sha256(paths[1]): 5}
    assert record["training_flop"] > 10**9 + 3 * 20 * (len(times) - 1) * count_forward_flop(finished.model)


@pytest.mark.parametrize("label_dropout", [0, 1])
def test_teacher(label_dropout, first_record, training_pairs, make_teacher, tmp_path, monkeypatch):
    """Reflow on pairs whose noise, image and label are known; the times are those of the step's generator."""
    from conftest import SMALL_CONFIG

    from common import presets

    monkeypatch.setitem(presets.NETWORKS, "tiny", SMALL_CONFIG)
    arguments = ("--preset", "tiny", "--init", make_teacher(), "--label-dropout", label_dropout)
    record = first_record("teacher_rectified_flow.py", *arguments, "--batch-size", NUM_TRAINING)

    order = EpochOrder(NUM_TRAINING, NUM_TRAINING, seed=0).indices(0)
    noise, image, labels = training_pairs.noise[order], training_pairs.image[order], training_pairs.labels[order]
    generator = step_generator(0, 0, CPU)
    torch.rand(NUM_TRAINING, generator=generator)  # the flips
    t = flow.sample_times("logit-normal", NUM_TRAINING, generator, CPU)
    x = (1 - t)[:, None, None, None] * noise + t[:, None, None, None] * image
    with torch.no_grad():
        predicted = random_network()(x, t, None if label_dropout else labels)
    assert record["loss"] == pytest.approx((predicted - (image - noise)).square().mean().item(), rel=1e-4)


def test_training_flop_are_three_forward_passes(first_record, make_teacher):
    """Forward, gradient of the inputs, gradient of the weights; only the stem needs no gradient of its input."""
    record = first_record("distill_student.py", "--batch-size", NUM_TRAINING)
    three_passes = 3 * NUM_TRAINING * count_forward_flop(load_checkpoint(make_teacher()).model)
    assert 0.95 * three_passes < record["training_flop"] <= three_passes


def test_the_held_out_report_measures_the_teacher_guided_as_the_pairs(first_record, make_teacher, tmp_path):
    first_record("four_step_student.py", "--batch-size", NUM_TRAINING, "--learning-rate", 1e-12)
    held_out = PairSet(tmp_path / "pairs", CPU).held_out()
    teacher = load_checkpoint(make_teacher()).model
    report = (tmp_path / "report.txt").read_text().splitlines()[-3:]
    for line, num_steps, guidance in zip(report, (4, 4, 8), (1.0, 2.0, 2.0), strict=True):
        images = draw(teacher, held_out.noise, held_out.labels, SamplingSettings("euler", num_steps, guidance)).images
        error = (images - held_out.image).square().mean().item()
        assert f" {error:.4f} " in line + " "
