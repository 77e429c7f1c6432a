"""The runs that several tests share: each stage that takes time, to be stopped and resumed, and all stages in a row."""

import shutil
from pathlib import Path

import pytest
from conftest import save_feature_network, save_students

from common import run_log, training

RESUMED_STEPS = ("--steps", "12", "--warmup-steps", "4", "--decay-steps", "4", "--batch-size", "8", "--log-every", "1")
RESUMED_STEPS += ("--evaluate-every", "1000", "--ema-decay", "0.9")
"""Of every stage that the tests stop and run again: warm-up, constant rate, in which they stop, and decay."""
FEW_IMAGES = ("--val-fraction", "0.6")
"""Are trained on, so that an epoch ends after the stop."""


def training_commands(teacher: Path, pairs: Path, images: Path) -> dict[str, tuple]:
    distillation = ("--teacher", teacher, "--pairs", pairs, *RESUMED_STEPS)
    training = ("--preset", "tiny", *RESUMED_STEPS)
    data = ("--data", "folder", "--data-dir", images, *FEW_IMAGES)
    folder = pairs.parent
    networks = (folder / "features.safetensors", folder / "more_features.safetensors")
    finishing = ("finish_student.py", *distillation, "--feature-network", *networks, "--critic-images", "teacher")
    frechet = ("--critic", "frechet", "--critic-window", "48", "--batch-size", "16", "--loss", "features")
    small = ("--network", '{"widths": [24, 16]}')
    features = ("feature_network.py", *data, *small, *RESUMED_STEPS)
    return {
        "teacher": ("teacher_rectified_flow.py", *data, *training),
        "muon": ("teacher_rectified_flow.py", *data, *training, "--optimizer", "muon", "--more-ema-decays", "0.5"),
        "reflow": ("teacher_rectified_flow.py", "--pairs", pairs, "--time-distribution", "u-shaped", *training),
        "one_step": ("distill_student.py", *distillation, "--loss", "features", "--feature-network", networks[0]),
        "four_step": ("four_step_student.py", *distillation),
        "one_step_frechet": (*finishing, "--student", folder / "student.safetensors", *frechet),
        "four_step_adversarial": (
            *(*finishing, "--student", folder / "four_step.safetensors"),
            *("--critic", "adversarial"),
        ),
        "features": features,
        "rotation": (*features, "--task", "rotation"),
    }


@pytest.fixture
def commands(make_teacher, run_script, image_folder, tmp_path, monkeypatch):
    teacher, pairs = make_teacher(), tmp_path / "pairs"
    run_script("generate_noise_dataset.py", "--teacher", teacher, "--out", pairs, "--num-pairs", 50, "--num-steps", 4)
    save_feature_network(tmp_path / "features.safetensors")
    save_feature_network(tmp_path / "more_features.safetensors", widths=(8, 24))
    save_students(tmp_path, teacher, pairs=pairs)
    return training_commands(teacher, pairs, image_folder)


SHORT = ("--steps", 6, "--warmup-steps", 1, "--decay-steps", 2, "--batch-size", 8)
SHORT += ("--evaluate-every", 3, "--log-every", 2)
"""A training run of a second."""
MODELS = (
    "checkpoints/teacher/teacher.safetensors",
    "checkpoints/four_step/four_step.safetensors",
    "checkpoints/one_step/student.safetensors",
)
"""Where the stages put them by default."""


@pytest.fixture(scope="module")
def finished_pipeline():
    """The folder of the pipeline, once it has run."""
    return {}


@pytest.fixture
def pipeline(finished_pipeline, run_script, image_folder, tmp_path, tmp_path_factory, monkeypatch):
    """All four stages in a row, connected by the default paths, with the test's folder as the working folder."""
    if not finished_pipeline:
        folder = tmp_path_factory.mktemp("pipeline")
        monkeypatch.chdir(folder)
        monkeypatch.setattr(training, "draw_loss_curve", run_log.draw_loss_curve)
        data = ("--preset", "tiny", "--data", "folder", "--data-dir", image_folder)
        results = [
            run_script("teacher_rectified_flow.py", *data, *SHORT),
            run_script("generate_noise_dataset.py", "--num-pairs", 40, "--num-steps", 4),
            run_script("distill_student.py", *SHORT),
            run_script("four_step_student.py", *SHORT),
        ]
        for result in results:
            assert result.status == 0, result.err
        finished_pipeline["folder"] = folder
    shutil.copytree(finished_pipeline["folder"], tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path
