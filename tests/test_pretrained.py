"""The shipped models: their size, their kinship, and that they still make the images that they made."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT

from common.checkpoint import load_checkpoint, load_feature_network
from common.distances import variance_around_class_mean
from common.noise import sample_noise
from common.sampling import SamplingSettings, draw, labels_in_turn
from common.unet import count_values

PRETRAINED = ROOT / "checkpoints" / "pretrained"
NAMES = ("teacher.safetensors", "four_step.safetensors", "student.safetensors")
GUIDE = PRETRAINED / "guide.safetensors"


@pytest.mark.parametrize("name", [*NAMES, GUIDE.name])
def test_a_shipped_model_keeps_to_its_size_and_explains_itself(name):
    checkpoint = load_checkpoint(PRETRAINED / name)
    assert count_values(checkpoint.model) <= 3_075_000
    assert checkpoint.path.stat().st_size <= 12_300_000
    assert len(checkpoint.class_names) == 10 and checkpoint.header["training_flop"] > 1e14


def test_the_judge_has_learned_from_the_images_of_the_teacher():
    _, judge, _ = load_feature_network(PRETRAINED / "classifiers" / "judge.safetensors")
    teacher = load_checkpoint(PRETRAINED / NAMES[0]).header
    assert judge["images_sha256"] == teacher["images_sha256"]
    assert judge["arguments"]["val_fraction"] == teacher["arguments"]["val_fraction"]


def test_the_students_are_those_of_the_teacher_and_close_to_it():
    """On noise that trained neither, each student is closer to its teacher than the teacher's own Euler steps."""
    teacher, four_step, one_step = (load_checkpoint(PRETRAINED / name) for name in NAMES)
    guide = load_checkpoint(GUIDE)
    assert four_step.header["teacher"] == one_step.header["teacher"] == teacher.sha256
    assert four_step.header["pairs"]["guide"] == one_step.header["pairs"]["guide"] == guide.sha256
    how = SamplingSettings(**one_step.header["pairs"]["sampling"])
    noise, labels = sample_noise(1, 0, 20, (3, 32, 32)), labels_in_turn(range(10), 0, 20)
    images = draw(teacher.model, noise, labels, how, guide=guide.model).images
    variance = variance_around_class_mean(images, labels)
    for student, num_steps in ((one_step, 2), (four_step, 4)):
        error = F.mse_loss(draw(student.model, noise, labels, student.settings).images, images).item()
        euler = replace(how, solver="euler", num_steps=num_steps)
        eulers = draw(teacher.model, noise, labels, euler, guide=guide.model).images
        teachers_error = F.mse_loss(eulers, images).item()
        assert error < teachers_error
        assert error < 0.2 * variance
    assert torch.isfinite(images).all()
