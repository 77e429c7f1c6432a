"""The app's first page through Streamlit's own test harness: what it shows, its bounds, and who waits for whom."""

import os
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from app_harness import FOUR_STEP, ONE_STEP, TEACHER, drawn, subheaders, submit
from conftest import TINIEST_CONFIG, app_precision, write_models

from app_pages.drawing import NetworkThread
from app_pages.pictures import sample_command
from common.checkpoint import load_checkpoint
from common.images import to_uint8
from common.sampling import SamplingSettings, draw_blocks


def test_the_three_models_are_shown_from_the_same_noise(open_app, model_folder):
    app = open_app()
    assert not app.error and subheaders(app) == [TEACHER, FOUR_STEP, ONE_STEP]
    expected = {
        name: next(
            draw_blocks(
                load_checkpoint(model_folder / "pretrained" / f"{name}.safetensors").model,
                *how,
                precision=app_precision(),
            )
        ).images
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
    app.number_input(key="guidance_scale_True_False_2").set_value(3.0)
    app.slider(key="guidance_interval").set_value((0.25, 0.5))
    assert len(drawn(app)["teacher"].images) == 16  # nothing happens before the form is sent
    submit(app, "generate")
    column = drawn(app)["teacher"]
    assert column.settings == SamplingSettings("midpoint", 4, 3.0, (0.25, 0.5))
    assert len(column.images) == 3 and set(column.labels.tolist()) == {5}
    # Midpoint asks at t = 0, 1/8 ... 7/8: of these 2/8, 3/8 and 4/8 lie in the interval.
    assert column.network_calls == 8 + 3


BOUNDS = {"count": (1, 64), "seed": (0, 2**31 - 1), "num_steps": (1, 100), "guidance_scale_True_False_2": (0.0, 8.0)}


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
    os.symlink(outside.parent, model_folder / "pretrained" / "linked")
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
    folder = write_models(tmp_path / "unconditional", replace(TINIEST_CONFIG, num_classes=0))
    app = open_app(folder=folder)
    assert app.selectbox(key="no_class").disabled and app.number_input(key="guidance_scale_False_False_1").disabled
    assert drawn(app)["teacher"].labels is None and drawn(app)["teacher"].settings.guidance_scale == 1
    for page in ("trajectory", "explore"):
        assert not open_app(page, folder).error


@pytest.mark.parametrize("guide_scale", [2, 1])
def test_the_command_that_is_shown_draws_the_same_images(
    guide_scale, open_app, model_folder, make_teacher, run_script, tmp_path
):
    """Also where the guide is there, and not asked."""
    shutil.copy(make_teacher(seed=3), model_folder / "pretrained" / "guide.safetensors")
    app = open_app()
    app.number_input(key="num_steps").set_value(3)
    app.number_input(key="guide_scale_True").set_value(guide_scale)
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


def test_students_go_before_teachers_in_the_networks_thread():
    thread, order, started, go_on = NetworkThread(), [], threading.Event(), threading.Event()

    def first() -> None:
        started.set()
        go_on.wait(10)

    with ThreadPoolExecutor(5) as visitors:
        visitors.submit(thread.call, 1, first)
        started.wait(10)
        calls = [
            visitors.submit(thread.call, rank, lambda name=name: order.append(name))
            for rank, name in ((1, "teacher"), (0, "student"), (1, "teacher"), (0, "student"))
        ]
        while thread._waiting.qsize() < 4:
            time.sleep(0.01)
        go_on.set()
        for call in calls:
            call.result(10)
    assert order == ["student", "student", "teacher", "teacher"]
    with pytest.raises(ZeroDivisionError):
        thread.call(0, lambda: 1 / 0)
    assert thread.call(0, lambda: "goes on") == "goes on"
