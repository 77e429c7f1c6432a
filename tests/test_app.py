"""The app through Streamlit's own test harness."""

import shutil
import sys

import pytest
from conftest import ROOT
from streamlit.testing.v1 import AppTest

TIMEOUT = 60


@pytest.fixture
def open_app(monkeypatch):
    def run(*folder):
        monkeypatch.setattr(sys, "argv", ["app.py", *map(str, folder)])
        return AppTest.from_file(str(ROOT / "app.py"), default_timeout=TIMEOUT).run()

    return run


@pytest.fixture
def models(make_teacher, run_script, tmp_path):
    teacher = make_teacher()
    pairs, out = tmp_path / "pairs", tmp_path / "models"
    out.mkdir()
    run_script("generate_noise_dataset.py", "--teacher", teacher, "--out", pairs, "--num-pairs", 20, "--num-steps", 4)
    short = ("--steps", 1, "--warmup-steps", 0, "--decay-steps", 0, "--batch-size", 8)
    for script, name in (("distill_student.py", "student"), ("four_step_student.py", "four_step")):
        run_script(script, "--teacher", teacher, "--pairs", pairs, "--out", tmp_path / name, *short)
        shutil.copy(tmp_path / name / f"{name}.safetensors", out)
    shutil.copy(teacher, out / "teacher.safetensors")
    return out


def test_the_three_models_are_shown_from_the_same_noise(open_app, models):
    app = open_app(models)
    assert not app.exception and not app.error
    assert [heading.value for heading in app.subheader] == ["four-step student", "one-step student", "teacher"]
    assert len(app.markdown) == 1  # the introduction, and no string of the program's own
    app.number_input(key="count").set_value(4)
    app.selectbox(key="class_name").set_value("star")
    app.button[0].click()
    app.run()
    assert not app.exception and len(app.subheader) == 3


def test_without_checkpoints_it_says_how_to_make_them(open_app, tmp_path):
    app = open_app(tmp_path)
    assert not app.exception
    assert ["python four_step_student.py" in app.error[0].value, len(app.error)] == [True, 3]


def test_a_damaged_checkpoint_does_not_stop_the_others(open_app, models):
    (models / "student.safetensors").write_bytes(b"damaged")
    app = open_app(models)
    assert not app.exception
    assert len(app.error) == 1 and "not a readable checkpoint" in app.error[0].value
    assert [heading.value for heading in app.subheader] == ["four-step student", "teacher"]
