"""The app's choice of models: what it finds, loads and refuses."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from app_harness import FOUR_STEP, ONE_STEP, TEACHER, drawn, subheaders, submit
from conftest import SMALL_CONFIG
from safetensors.torch import load_file, save
from streamlit.testing.v1 import AppTest

from app_pages import models
from common.checkpoint import load_header, save_checkpoint
from common.classifier import Classifier, ClassifierConfig
from common.sampling import SamplingSettings


def test_the_shipped_models_are_the_first_choice_and_new_ones_are_found(open_app, model_folder, make_teacher):
    app = open_app()
    options = app.selectbox(key="model_teacher").options
    assert options == ["pretrained/teacher.safetensors"]
    (model_folder / "mine").mkdir()
    shutil.copy(make_teacher(seed=5), model_folder / "mine" / "teacher.safetensors")
    app.run()
    assert app.selectbox(key="model_teacher").options == [*options, "mine/teacher.safetensors"]
    app.selectbox(key="model_teacher").set_value("mine/teacher.safetensors").run()
    assert drawn(app)["teacher"].checkpoint.path.parent.name == "mine"
    assert any("another teacher" in text.value for text in app.markdown)


def test_a_feature_network_is_passed_over(open_app, model_folder):
    network = Classifier(ClassifierConfig(num_classes=10, widths=(4, 8)))
    save_checkpoint(model_folder / "features.safetensors", network, {"stage": "feature_network"})
    app = open_app()
    assert not app.error
    assert "features.safetensors" not in app.selectbox(key="model_teacher").options


def test_a_file_that_is_trained_anew_is_loaded_anew(open_app, model_folder, make_teacher):
    app = open_app()
    before = drawn(app)["teacher"].checkpoint.sha256
    path = model_folder / "pretrained" / "teacher.safetensors"
    shutil.copy(make_teacher(seed=6), path)
    os.utime(path, ns=(1, 1))
    app.run()
    assert drawn(app)["teacher"].checkpoint.sha256 != before


def test_a_student_of_an_earlier_version_with_unequal_steps_is_refused_and_the_rest_goes_on(open_app, model_folder):
    path = model_folder / "pretrained" / "four_step.safetensors"
    header = load_header(path) | {"step_times": [0, 0.2, 0.5, 0.8]}
    path.write_bytes(save(load_file(path), metadata={"header": json.dumps(header)}))
    app = open_app()
    assert len(app.error) == 1 and "is a student whose steps differ in length" in app.error[0].value
    assert subheaders(app) == [TEACHER, ONE_STEP]


@pytest.mark.parametrize(
    "change",
    [
        {"class_names": None},
        {"class_names": ["cat"] * 11},
        {"class_names": [1] * 10},
        {"arguments": {}},
        {"arguments": None},
        {"config": {**SMALL_CONFIG.to_dict(), "patch_size": 0}},
        {"config": {**SMALL_CONFIG.to_dict(), "widths": []}},
        {"config": None},
    ],
)
def test_a_header_that_contradicts_itself_is_named_and_the_rest_goes_on(open_app, model_folder, change):
    path = model_folder / "pretrained" / "teacher.safetensors"
    header = load_header(path) | change
    path.write_bytes(save(load_file(path), metadata={"header": json.dumps(header)}))
    app = open_app()
    assert len(app.error) == 1 and "teacher.safetensors" in app.error[0].value
    assert subheaders(app) == [FOUR_STEP, ONE_STEP]


def test_a_file_that_goes_while_the_folder_is_read_is_left_out(open_app, model_folder, monkeypatch):
    def gone(self, **options):
        if self.name == "student.safetensors":
            raise FileNotFoundError(self)
        return stat(self, **options)

    stat = Path.stat
    monkeypatch.setattr(Path, "stat", gone)
    assert subheaders(open_app()) == [TEACHER, FOUR_STEP]


def test_models_are_loaded_once_for_all_visitors(open_app, monkeypatch):
    loaded = []
    real = models.load_checkpoint
    monkeypatch.setattr(models, "load_checkpoint", lambda path, device: loaded.append(path) or real(path, device))
    visitors = [open_app() for _ in range(3)]
    assert len(loaded) == 3
    models.load_model.clear()  # as the cache does with the eldest, when there are many
    visitors[0].run()
    assert len(loaded) == 3 and not visitors[0].exception


@pytest.mark.parametrize("content", [b"damaged", b"", b"\x08\x00\x00\x00\x00\x00\x00\x00{}      "])
def test_a_damaged_or_foreign_file_is_named_and_the_rest_goes_on(open_app, model_folder, content):
    (model_folder / "pretrained" / "student.safetensors").write_bytes(content)
    app = open_app()
    messages = [error.value for error in app.error]
    assert len(messages) == 2 and "student.safetensors is not a" in " ".join(messages)
    assert any("python distill_student.py" in message for message in messages)
    assert subheaders(app) == [TEACHER, FOUR_STEP]
    app.switch_page("app_pages/explore.py").run()
    assert "needs a one-step student" in app.info[0].value and not app.exception


def test_without_checkpoints_it_says_how_to_make_them(open_app, tmp_path):
    for page in ("compare", "trajectory", "explore"):
        app = open_app(page, tmp_path / "nothing")
        command = f"python teacher_rectified_flow.py --out {tmp_path / 'nothing' / 'teacher'}"
        assert [command in app.error[0].value, len(app.error)] == [True, 3]


def test_students_of_other_classes_than_the_teachers_are_left_out(open_app, model_folder, make_teacher):
    path = make_teacher(config=replace(SMALL_CONFIG, num_classes=3))
    shutil.copy(path, model_folder / "pretrained" / "teacher.safetensors")
    app = open_app()
    assert subheaders(app) == [TEACHER] and len(app.error) == 2
    assert "The four-step student is left out" in app.error[0].value and "different classes" in app.error[1].value


def test_a_guide_beside_the_teacher_is_used_and_named(open_app, model_folder, make_teacher):
    shutil.copy(make_teacher(seed=3), model_folder / "pretrained" / "guide.safetensors")
    app = open_app()
    column = drawn(app)["teacher"]
    assert column.settings.guide_scale == 2 and column.settings.guidance_scale == 1
    assert any("guide: guide.safetensors" in text.value for text in app.markdown)
    picker = next(box for box in app.selectbox if box.label == "Guide of the teacher")
    assert other_recipes(app) == 2  # the students' pairs had no guide
    picker.set_value("none").run()
    assert drawn(app)["teacher"].settings == SamplingSettings(guidance_scale=2.0)
    assert other_recipes(app) == 0
    app.number_input(key="num_steps").set_value(3)
    submit(app, "generate")
    assert other_recipes(app) == 2


def other_recipes(app: AppTest) -> int:
    """How many students say that they learned from other images of their teacher than those on the page."""
    return sum("this teacher's images by adams 20, CFG 2" in text.value for text in app.markdown)
