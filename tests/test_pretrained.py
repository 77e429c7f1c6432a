"""The shipped models: their size, their kinship, and that they still make the images that they made."""

from dataclasses import replace

import pytest
import torch
from conftest import ROOT

from common.checkpoint import load_checkpoint
from common.distances import mean_squared, variance_around_class_mean
from common.noise import sample_noise
from common.sampling import SamplingSettings, balanced_labels, draw
from common.training_state import COMPACT_FILE, load_training_state
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


def test_the_students_are_those_of_the_teacher_and_close_to_it():
    """On noise that trained neither, each student is closer to its teacher than the teacher's own Euler steps."""
    teacher, four_step, one_step = (load_checkpoint(PRETRAINED / name) for name in NAMES)
    guide = load_checkpoint(GUIDE)
    assert four_step.header["teacher"] == one_step.header["teacher"] == teacher.sha256
    assert four_step.header["pairs"]["guide"] == one_step.header["pairs"]["guide"] == guide.sha256
    how = SamplingSettings(**one_step.header["pairs"]["sampling"])
    noise, labels = sample_noise(1, 0, 20, (3, 32, 32)), balanced_labels(range(10), 0, 20)
    images = draw(teacher.model, noise, labels, how, guide=guide.model).images
    variance = variance_around_class_mean(images, labels)
    for student, num_steps in ((one_step, 2), (four_step, 4)):
        error = mean_squared(draw(student.model, noise, labels, student.settings).images, images).item()
        euler = replace(how, solver="euler", num_steps=num_steps)
        eulers = draw(teacher.model, noise, labels, euler, guide=guide.model).images
        teachers_error = mean_squared(eulers, images).item()
        assert error < teachers_error
        assert error < 0.2 * variance
    assert torch.isfinite(images).all()


def test_what_is_kept_of_the_unfinished_teacher_is_of_one_run():
    """Its branch is a teacher of the shipped one's network and images, and the trunk's weights fit it."""
    folder = ROOT / "checkpoints" / "unfinished"
    branch, shipped = load_checkpoint(folder / "teacher_1e16.safetensors"), load_checkpoint(PRETRAINED / NAMES[0])
    assert branch.model.config == shipped.model.config
    trunk = load_training_state(folder / COMPACT_FILE)
    for name in ("images_sha256", "class_names"):
        assert branch.header[name] == shipped.header[name] == trunk["identity"][name]
    assert trunk["identity"]["network"] == branch.model.config.to_dict()
    decay_steps = branch.header["arguments"]["decay_steps"]
    assert trunk["step"] >= branch.header["step"] - decay_steps > 0  # the branch left it where its decay began
    branch.model.load_state_dict(trunk["model"], strict=True)

    guide = load_checkpoint(folder / "guide_1e16.safetensors")
    assert guide.header["images_sha256"] == branch.header["images_sha256"]
    assert branch.guided_by(guide).guide_model is guide.model
