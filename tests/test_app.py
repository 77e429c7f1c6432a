"""Every page of the app through Streamlit's own test harness: what it shows, its bounds, and what goes wrong."""

import os
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import ROOT, SMALL_CONFIG, write_models
from streamlit.testing.v1 import AppTest

from app_pages.pictures import sample_command
from common.checkpoint import load_checkpoint
from common.images import to_uint8
from common.noise import sample_noise, spherical_interpolation
from common.results import read_results
from common.sampling import SamplingSettings, draw_blocks

TEACHER, FOUR_STEP, ONE_STEP = "Teacher", "Four-step student", "One-step student"


@pytest.fixture
def open_app(monkeypatch, model_folder):
    """open_app(page="compare", folder=checkpoints of tiny untrained models): the app at a page."""

    def run(page="compare", folder=model_folder) -> AppTest:
        monkeypatch.setattr(sys, "argv", ["app.py", str(folder)])
        app = AppTest.from_file(str(ROOT / "app.py"), default_timeout=60).run()
        if page != "compare":
            app.switch_page(f"app_pages/{page}.py").run()
        assert not app.exception
        return app

    return run


def submit(app: AppTest, button: str) -> AppTest:
    app.button(key=button).click().run()
    assert not app.exception
    return app


def subheaders(app: AppTest) -> list[str]:
    return [heading.value for heading in app.subheader]


def drawn(app: AppTest) -> dict:
    return app.session_state["columns"]


# Compare


def test_the_three_models_are_shown_from_the_same_noise(open_app, model_folder):
    app = open_app()
    assert not app.error and subheaders(app) == [TEACHER, FOUR_STEP, ONE_STEP]
    expected = {
        name: next(draw_blocks(load_checkpoint(model_folder / "pretrained" / f"{name}.safetensors").model, *how)).images
        for name, how in {
            "teacher": (0, 0, 16, range(10), SamplingSettings(guidance_scale=2.0)),
            "student": (0, 0, 16, range(10), SamplingSettings("euler", 1)),
        }.items()
    }
    assert torch.equal(drawn(app)["teacher"].images, expected["teacher"])
    assert torch.equal(drawn(app)["one_step"].images, expected["student"])
    facts = [text.value for text in app.markdown]
    assert any("**4** network calls" in text and "times** the teacher's speed" in text for text in facts)
    assert any("**1** network call an image" in text and "mean squared error" in text for text in facts)
    assert list(drawn(app)) == ["one_step", "four_step", "teacher"]  # in the order in which they were drawn
    assert all(image.alt for element in app.image for image in element.proto.imgs)


def test_settings_reach_the_samplers(open_app):
    app = open_app()
    app.number_input(key="count").set_value(3)
    app.number_input(key="seed").set_value(7)
    app.selectbox(key="class").set_value("star")
    app.selectbox(key="solver").set_value("midpoint")
    app.number_input(key="num_steps").set_value(4)
    app.number_input(key="guidance_scale_False").set_value(3.0)
    app.slider(key="guidance_interval").set_value((0.25, 0.5))
    assert len(drawn(app)["teacher"].images) == 16  # nothing happens before the form is sent
    submit(app, "generate")
    column = drawn(app)["teacher"]
    assert column.settings == SamplingSettings("midpoint", 4, 3.0, (0.25, 0.5))
    assert len(column.images) == 3 and set(column.labels.tolist()) == {5}
    # Midpoint asks at t = 0, 1/8 ... 7/8: of these 2/8, 3/8 and 4/8 lie in the interval.
    assert column.network_calls == 8 + 3


BOUNDS = {"count": (1, 64), "seed": (0, 2**31 - 1), "num_steps": (1, 100), "guidance_scale_False": (0.0, 8.0)}


@pytest.mark.parametrize("outside", [True, False])
@pytest.mark.parametrize("end", [0, 1])
def test_bounds_hold_on_the_server(open_app, end, outside):
    """What is set here does not go through a browser, which would not let it through."""
    app = open_app()
    defaults = {key: app.number_input(key=key).value for key in BOUNDS}
    for key, bounds in BOUNDS.items():
        assert (app.number_input(key=key).min, app.number_input(key=key).max) == bounds
        beyond = (-1, 1_000_000)[end] if outside else 0
        app.number_input(key=key).set_value(bounds[end] + beyond)
    app.selectbox(key="solver").set_value("euler")
    submit(app, "generate")
    for key, bounds in BOUNDS.items():
        assert app.number_input(key=key).value == (defaults[key] if outside else bounds[end])
    assert len(drawn(app)["teacher"].images) == (16 if outside else BOUNDS["count"][end])


@pytest.mark.parametrize("key", ["class", "solver", "model_teacher"])
def test_a_choice_that_is_not_in_the_list_changes_nothing(open_app, model_folder, make_teacher, key):
    outside = make_teacher(seed=9)
    os.symlink(outside, model_folder / "pretrained" / "link.safetensors")
    app = open_app()
    before = drawn(app)["teacher"]
    assert app.selectbox(key="model_teacher").options == ["pretrained/teacher.safetensors"]  # no link that leads out
    for name in (str(outside), "pretrained/link.safetensors", "../teacher.safetensors"):
        picker = app.selectbox(key=key)
        default = picker.value
        picker.options.append(name)
        picker.set_value(name).run()
        submit(app, "generate")
        assert app.selectbox(key=key).value == default
        assert drawn(app)["teacher"].checkpoint is before.checkpoint
        assert torch.equal(drawn(app)["teacher"].images, before.images)


def test_a_new_seed_is_drawn_and_a_repeated_one_gives_the_same_images(open_app):
    app = open_app()
    first = drawn(app)["one_step"].images
    submit(app, "new_seed")
    seed = app.number_input(key="seed").value
    assert seed != 0 and not torch.equal(drawn(app)["one_step"].images, first)
    app.number_input(key="seed").set_value(0)
    submit(app, "generate")
    assert torch.equal(drawn(app)["one_step"].images, first)


def test_differences_are_shown_on_request_and_nothing_is_drawn_again(open_app):
    app = open_app()
    before, pictures = drawn(app)["teacher"], len(app.image)
    app.toggle(key="differences").set_value(True).run()
    assert len(app.image) == pictures + 2 and "contrast" in app.image[-1].captions[0]
    assert drawn(app)["teacher"] is before


def test_unconditional_models_have_no_class_and_no_guidance(open_app, tmp_path):
    folder = write_models(tmp_path / "unconditional", replace(SMALL_CONFIG, num_classes=0))
    app = open_app(folder=folder)
    assert app.selectbox(key="no_class").disabled and app.number_input(key="guidance_scale_False").disabled
    assert drawn(app)["teacher"].labels is None and drawn(app)["teacher"].settings.guidance_scale == 1
    for page in ("trajectory", "explore"):
        assert not open_app(page, folder).error


# The choice of models


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


def test_a_file_that_is_trained_anew_is_loaded_anew(open_app, model_folder, make_teacher):
    app = open_app()
    before = drawn(app)["teacher"].checkpoint.sha256
    path = model_folder / "pretrained" / "teacher.safetensors"
    shutil.copy(make_teacher(seed=6), path)
    os.utime(path, ns=(1, 1))
    app.run()
    assert drawn(app)["teacher"].checkpoint.sha256 != before


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
        assert ["python teacher_rectified_flow.py" in app.error[0].value, len(app.error)] == [True, 3]


def test_models_of_other_classes_cannot_be_compared(open_app, model_folder, make_teacher):
    path = make_teacher(config=replace(SMALL_CONFIG, num_classes=3))
    shutil.copy(path, model_folder / "pretrained" / "teacher.safetensors")
    app = open_app()
    assert "cannot be compared" in app.error[0].value and not app.subheader


def test_a_guide_beside_the_teacher_is_used_and_named(open_app, model_folder, make_teacher):
    shutil.copy(make_teacher(seed=3), model_folder / "pretrained" / "guide.safetensors")
    app = open_app()
    column = drawn(app)["teacher"]
    assert column.settings.guide_scale == 2 and column.settings.guidance_scale == 1
    assert any("guide: guide.safetensors" in text.value for text in app.markdown)
    picker = next(box for box in app.selectbox if box.label == "Guide of the teacher")
    picker.set_value("none").run()
    assert drawn(app)["teacher"].settings == SamplingSettings(guidance_scale=2.0)


def test_the_command_that_is_shown_draws_the_same_images(open_app, model_folder, make_teacher, run_script, tmp_path):
    shutil.copy(make_teacher(seed=3), model_folder / "pretrained" / "guide.safetensors")
    app = open_app()
    app.number_input(key="num_steps").set_value(3)
    app.slider(key="guidance_interval").set_value((0.15, 0.7))
    app.selectbox(key="class").set_value("star")
    submit(app, "generate")
    assert len(app.code) == 3
    for column in drawn(app).values():
        out = tmp_path / "drawn.npz"
        command = sample_command(column, 0, [5], str(out)).split()
        assert run_script(*command[1:]).status == 0
        with np.load(out) as file:
            assert (file["arr_0"] == to_uint8(column.images).permute(0, 2, 3, 1).numpy()).all()


# The other pages


def test_the_trajectory_ends_at_the_compared_image(open_app):
    app = open_app()
    images = {stage: column.images for stage, column in drawn(app).items()}
    app.switch_page("app_pages/trajectory.py").run()
    app.number_input(key="sample").set_value(3)
    app.selectbox(key="single_class").set_value(app.selectbox(key="single_class").options[3])
    submit(app, "follow")
    paths = app.session_state["paths"]
    assert [len(paths[stage]) for stage in ("teacher", "four_step", "one_step")] == [21, 5, 2]
    assert [time for time, _ in paths["four_step"]] == [0, 0.25, 0.5, 0.75, 1]
    for stage, path in paths.items():
        torch.testing.assert_close(path[-1][1][0], images[stage][3], atol=1e-4, rtol=1e-4)
        assert torch.equal(path[0][1], sample_noise(0, 3, 1, (3, 32, 32)))


def test_the_slider_over_time_shows_the_last_state_that_was_reached(open_app):
    app = open_app("trajectory")
    assert subheaders(app) == [TEACHER, FOUR_STEP, ONE_STEP]
    for time, reached in ((0.7, ["0.70", "0.50", "0.00"]), (1.0, ["1.00"] * 3), (0.0, ["0.00"] * 3)):
        app.select_slider(key="time").set_value(time).run()
        captions = [image.captions[0] for image in app.image][:3]
        assert not app.exception and captions == [f"t = {t}" for t in reached]


def test_frames_lie_between_the_seeds_and_the_slider_draws_nothing_anew(open_app, model_folder):
    app = open_app("explore")
    app.number_input(key="from_seed").set_value(4)
    app.number_input(key="frame_count").set_value(5)
    submit(app, "interpolate")
    frames, images = app.session_state["frames"]
    student = load_checkpoint(model_folder / "pretrained" / "student.safetensors").model
    noise = torch.cat([sample_noise(seed, 0, 1, (3, 32, 32)) for seed in (4, 1)])
    ends = noise + student(noise, torch.zeros(2), torch.tensor([0, 0]))
    torch.testing.assert_close(images[[0, -1]], ends.detach(), atol=1e-4, rtol=1e-4)
    app.slider(key="frame_of_5").set_value(5).run()
    assert not app.exception and app.session_state["frames"][0] is frames
    assert any("100% of the way from seed 4 to seed 1" in image.captions[0] for image in app.image)


def test_every_class_is_drawn_from_one_noise(open_app):
    app = open_app("explore")
    assert app.image[-1].captions[0].split(", ")[5] == "star"
    submit(app, "draw_classes")
    for key, low, high in (("from_seed", 0, 2**31 - 1), ("frame_count", 3, 64)):
        assert (app.number_input(key=key).min, app.number_input(key=key).max) == (low, high)


def test_spherical_interpolation_keeps_angle_and_length():
    start, end = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 3.0])
    points = spherical_interpolation(start, end, torch.tensor([0.0, 1 / 3, 1.0]))
    expected = torch.tensor([[3.0, 0.0], [3 * 3**0.5 / 2, 1.5], [0.0, 3.0]])  # 30 degrees on a circle of radius 3
    torch.testing.assert_close(points, expected, atol=1e-6, rtol=1e-6)
    same = spherical_interpolation(start, start, torch.tensor([0.0, 0.5]))
    torch.testing.assert_close(same, start.expand(2, -1))


def test_settings_outlive_a_change_of_page(open_app):
    app = open_app()
    app.number_input(key="seed").set_value(5)
    submit(app, "generate")
    app.switch_page("app_pages/results.py").run()
    app.switch_page("app_pages/trajectory.py").run()
    assert app.number_input(key="seed").value == 5


def test_results_are_those_of_the_results_file(open_app, model_folder):
    shipped = open_app("results", ROOT / "checkpoints" / "pretrained")
    assert any(heading.startswith("The chosen models: ") for heading in subheaders(shipped))
    assert any("| four-step student |" in text.value for text in shipped.markdown)
    assert shipped.image and "FID against network calls" in shipped.image[0].proto.imgs[0].alt
    assert all(heading.startswith("Other models: ") for heading in subheaders(open_app("results")))


def test_results_that_are_missing_or_damaged_are_said(open_app, tmp_path, monkeypatch):
    app = open_app("results")
    for content, kind in (("", "info"), ("damaged\n", "error")):
        path = tmp_path / "docs" / "results.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
        monkeypatch.setattr("common.results.read_results", lambda _, path=path: read_results(path))
        app.run()
        assert not app.exception and len(getattr(app, kind)) == 1
