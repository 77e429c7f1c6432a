"""Critics: which images they compare with, and that they learn to tell."""

import shutil
from types import SimpleNamespace

import pytest
import torch
from conftest import SMALL_CONFIG, save_feature_network, save_students
from torch.utils.flop_counter import FlopCounterMode

from common.adversarial_critic import AdversarialCritic, discriminator_loss, generator_loss
from common.checkpoint import load_checkpoint
from common.data import load_images, split_held_out
from common.frechet import ReferenceDistribution
from common.images import to_float
from common.target_images import draw_labels
from common.training_state import load_training_state

SHORT = ("--steps", 3, "--warmup-steps", 0, "--decay-steps", 0, "--batch-size", 64, "--precision", "fp32")


@pytest.fixture
def network(tmp_path):
    return save_feature_network(tmp_path / "features.safetensors")


@pytest.fixture
def finish(network, image_folder, run_script, tmp_path, monkeypatch):
    """finish(...): three steps with a student of a teacher of drawn shapes; the result."""
    from common import presets

    monkeypatch.setitem(presets.NETWORKS, "tiny", SMALL_CONFIG)
    teacher = tmp_path / "teacher"
    data = ("--data", "folder", "--data-dir", image_folder, "--val-fraction", 0.25)
    assert run_script("teacher_rectified_flow.py", "--preset", "tiny", *data, *SHORT, "--out", teacher).status == 0
    pairs = ("--teacher", teacher / "teacher.safetensors", "--num-steps", 4, "--num-pairs", 20, "--precision", "fp32")
    assert run_script("generate_noise_dataset.py", *pairs, "--out", tmp_path / "pairs").status == 0

    save_students(tmp_path, teacher / "teacher.safetensors", pairs=tmp_path / "pairs")

    shutil.copy(tmp_path / "student.safetensors", tmp_path / "another.safetensors")
    save_students(tmp_path, teacher / "teacher.safetensors", pairs=tmp_path / "pairs", seed=5)

    def run(*arguments):
        files = ("--pairs", tmp_path / "pairs", "--feature-network", tmp_path / "features.safetensors")
        files += ("--teacher", teacher / "teacher.safetensors", "--student", tmp_path / "student.safetensors")
        return run_script("finish_student.py", *files, *SHORT, "--out", tmp_path / "finished", *arguments)

    return run


def test_the_real_images_are_those_that_trained_the_teacher(finish, network, image_folder, tmp_path, monkeypatch):
    """And their mirror images; not those that it never saw. The students' features go into the moments."""
    references = []
    create = ReferenceDistribution.__init__

    def spy(reference, features, num_samples):
        create(reference, features, num_samples)
        references.append(features)

    monkeypatch.setattr(ReferenceDistribution, "__init__", spy)
    assert finish("--critic-window", 48).status == 0
    training, _ = split_held_out(load_images("folder", image_folder), 0.25)
    with torch.no_grad():
        features = network.summary(to_float(torch.cat([training.images, training.images.flip(-1)])))
    (reference,) = references
    assert len(reference) == len(features)
    torch.testing.assert_close(reference.mean(0), features.double().mean(0), rtol=1e-4, atol=1e-5)
    state = load_training_state(tmp_path / "finished" / "training_state.pt")["critic"]
    assert state["critics.0.running.seen"] == 96  # 32 fresh images in each of three steps
    header = load_checkpoint(tmp_path / "finished" / "student.safetensors").header
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.summary(features.new_zeros(len(features), 3, 32, 32))
    assert header["setup_flop"] == counter.get_total_flops()
    steps_flop = header["training_flop"] - header["initial_flop"] - header["setup_flop"]
    assert steps_flop > 0 and steps_flop % 3 == 0
    assert header["images_seen"] == 3 * 64

    assert "is finished" in finish("--critic-window", 48).out
    assert len(references) == 1  # a finished run needs none


def test_what_cannot_be_finished_is_refused(finish, run_script, image_folder, make_teacher, tmp_path):
    (tmp_path / "fewer").mkdir()
    for path in sorted(image_folder.iterdir())[:3]:
        (tmp_path / "fewer" / path.name).symlink_to(path)
    assert "are not those that trained" in finish("--data-dir", tmp_path / "fewer").error_line
    assert "no checkpoint at" in finish("--critic-window", 48, "--feature-network", "nowhere").error_line
    assert "must leave something" in finish("--critic-share", 1).error_line
    assert "must leave something" in finish("--critic-share", 0.001).error_line
    assert "must be 48 or more" in finish("--critic-window", 47).error_line
    assert "after 65 images of fresh noise, and before the last of 3 steps" in finish("--critic-window", 65).error_line
    few = finish("--critic-window", 48, "--critic-images", "teacher").error_line
    assert "18 images and their mirror images are too few for the covariance of 48 features" in few
    twice = (tmp_path / "features.safetensors", tmp_path / "features.safetensors")
    assert "is the same network as another" in finish("--critic-window", 48, "--feature-network", *twice).error_line
    assert "--feature-weight needs" in finish("--feature-weight", 0.5).error_line
    assert "is a teacher" in finish("--student", make_teacher()).error_line
    save_students(tmp_path / "elsewhere", make_teacher())
    assert "is no student of" in finish("--student", tmp_path / "elsewhere" / "student.safetensors").error_line
    assert (
        "--data-dir needs --critic-images real"
        in finish("--critic-images", "teacher", "--data-dir", image_folder).error_line
    )
    assert "leave out --guide" in finish("--guide", make_teacher()).error_line
    assert "needs --critic frechet" in finish("--critic", "adversarial", "--critic-window", 48).error_line

    pairs = ("--teacher", tmp_path / "teacher" / "teacher.safetensors", "--num-steps", 4)
    assert run_script("generate_noise_dataset.py", *pairs, "--num-pairs", 40, "--out", tmp_path / "more").status == 0
    assert (
        "perhaps from some that are held out of these 40: give --num-pairs 20"
        in finish("--pairs", tmp_path / "more").error_line
    )
    others = (*pairs, "--num-pairs", 20, "--seed", 1, "--out", tmp_path / "others")
    assert run_script("generate_noise_dataset.py", *others).status == 0
    assert "did not learn from pairs like" in finish("--pairs", tmp_path / "others").error_line
    assert not (tmp_path / "finished").exists()


def test_an_image_of_several_network_calls_is_seen_once(finish, tmp_path):
    student = tmp_path / "four_step.safetensors"
    assert finish("--critic-window", 48, "--student", student, "--batch-size", 256).status == 0
    assert load_checkpoint(tmp_path / "finished" / "four_step.safetensors").header["images_seen"] == 3 * 256 // 4


def test_pairs_of_another_arithmetic_or_with_other_states_are_the_same_pairs(finish, run_script, tmp_path):
    """A student of bf16's can be finished on a machine without it; what was held out must stay so there, too."""
    recipe = ("--teacher", tmp_path / "teacher" / "teacher.safetensors", "--num-steps", 4, "--precision", "bf16")
    for count, folder in ((20, "alike"), (40, "more")):
        pairs = ("--trajectory-times", 0.5, "--num-pairs", count, "--out", tmp_path / folder)
        made = run_script("generate_noise_dataset.py", *recipe, *pairs)
        assert made.status == 0, made.err
    assert finish("--critic-window", 48, "--pairs", tmp_path / "alike").status == 0
    assert "perhaps from some that are held out" in finish("--pairs", tmp_path / "more").error_line


def test_another_student_is_not_taken_for_the_one_that_is_being_finished(finish, tmp_path):
    assert finish("--critic-window", 48, "--max-minutes", 1e-5).status == 0
    another = finish("--critic-window", 48, "--student", tmp_path / "another.safetensors")
    assert "was made with another student" in another.error_line


def test_the_order_of_the_feature_networks_does_not_matter(finish, tmp_path):
    """Also not where a run that was stopped goes on."""
    networks = [tmp_path / "features.safetensors", tmp_path / "more_features.safetensors"]
    save_feature_network(networks[1], widths=(8, 24))
    critic = ("--critic", "adversarial", "--feature-network")
    assert finish(*critic, *networks, "--max-minutes", 1e-5).status == 0
    assert finish(*critic, *reversed(networks)).status == 0
    assert finish(*critic, *networks, "--out", tmp_path / "unbroken").status == 0
    runs = [load_checkpoint(tmp_path / name / "student.safetensors") for name in ("finished", "unbroken")]
    first, second = (run.model.state_dict() for run in runs)
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_fresh_labels_are_as_frequent_as_among_the_real_images():
    labels = torch.tensor([0] * 9 + [1])
    generator = torch.Generator().manual_seed(0)
    drawn = draw_labels(labels, 2000, generator)
    assert drawn.float().mean().item() == pytest.approx(0.1, abs=0.02)
    assert draw_labels(None, 3, generator) is None


def test_every_logit_has_a_hinge_of_its_own_and_every_map_counts_alike():
    """Confident logits elsewhere do not silence a wrong one; a map of many positions weighs no more than another."""
    real = [torch.tensor([3.0, 3.0, -2.0]).view(1, 1, 1, 3), torch.tensor(2.0).view(1, 1, 1, 1)]
    generated = [torch.tensor([-3.0, 0.5, -3.0]).view(1, 1, 1, 3), torch.tensor(-0.5).view(1, 1, 1, 1)]
    assert discriminator_loss(real, generated).item() == pytest.approx(((3 / 3 + 1.5 / 3) + 0.5) / 2)
    assert generator_loss(generated).item() == pytest.approx((5.5 / 3 + 0.5) / 2)


def test_a_discriminator_learns_to_tell(network):
    """Dark images from bright ones: what it says of both drifts apart, and its gradient makes dark ones brighter."""
    torch.manual_seed(0)
    dark, bright = torch.rand(2, 8, 3, 32, 32) * 0.5
    dark = (dark - 0.9).requires_grad_()
    real = SimpleNamespace(count=8, gather=lambda indices: bright[indices])
    critic = AdversarialCritic(network.requires_grad_(False), real, 8, seed=0, flips=True)
    before = critic(dark, None, None).item()
    for step in range(60):
        critic(dark, None, None)
        critic.zero_grad()
        critic.loss(step).backward()
        critic.update()
    loss = critic(dark, None, None)
    assert loss.item() > before + 0.5
    assert critic(bright, None, None).item() < loss.item() - 1
    loss.backward()
    assert dark.grad.mean() < 0
