"""The app's other pages through Streamlit's own test harness: trajectory, explore, results."""

import base64
import io

import numpy as np
import pytest
import torch
from app_harness import FOUR_STEP, ONE_STEP, TEACHER, drawn, subheaders, submit
from conftest import ROOT, app_precision
from PIL import Image

from common.checkpoint import load_checkpoint
from common.images import image_grid, to_uint8
from common.noise import sample_noise, spherical_interpolation
from common.results import read_results


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
    for t, reached in ((0.75, ["0.75", "0.75", "0.00"]), (1.0, ["1.00"] * 3), (0.0, ["0.00"] * 3)):
        app.select_slider(key="time").set_value(t).run()
        captions = [image.captions[0] for image in app.image][:3]
        assert not app.exception and captions == [f"t = {text}" for text in reached]


def test_every_time_of_a_long_path_can_be_chosen(open_app):
    """Times that look the same would be one option, and the noise could not be reached."""
    app = open_app("trajectory")
    app.number_input(key="num_steps").set_value(100)
    submit(app, "follow")
    options = app.select_slider(key="time").options
    assert len(options) == len(set(options)) == 101


def test_frames_lie_between_the_seeds_and_the_slider_draws_nothing_anew(open_app, model_folder):
    app = open_app("explore")
    app.number_input(key="from_seed").set_value(4)
    app.number_input(key="frame_count").set_value(5)
    submit(app, "interpolate")
    frames, _ = app.session_state["frames"]
    student = load_checkpoint(model_folder / "pretrained" / "student.safetensors").model
    noise = torch.cat([sample_noise(seed, 0, 1, (3, 32, 32)) for seed in (4, 1)])
    precision = app_precision()
    with torch.no_grad(), precision.autocast():
        ends = to_uint8(noise + student(noise, torch.zeros(2), torch.tensor([0, 0])))
    tolerance = 1 if precision.name == "fp32" else 4  # drawn in a batch of another size
    for frame, end in ((frames[0], ends[0]), (frames[-1], ends[1])):
        shown = np.asarray(picture_of(frame).resize((32, 32), Image.Resampling.NEAREST)).astype(int)
        assert abs(shown - end.permute(1, 2, 0).numpy()).max() <= tolerance
    app.slider(key="frame_of_5").set_value(5).run()
    assert not app.exception and app.session_state["frames"][0] is frames
    assert any("100% of the way from seed 4 to seed 1" in image.captions[0] for image in app.image)


def test_every_class_is_drawn_from_one_noise(open_app, model_folder):
    app = open_app("explore")
    app.number_input(key="seed").set_value(7)
    submit(app, "draw_classes")
    assert app.image[-1].captions[0].split(", ")[5] == "star"
    student = load_checkpoint(model_folder / "pretrained" / "student.safetensors").model
    noise = sample_noise(7, 0, 1, (3, 32, 32)).expand(10, -1, -1, -1)
    precision = app_precision()
    with torch.no_grad(), precision.autocast():
        expected = image_grid(to_uint8(noise + student(noise, torch.zeros(10), torch.arange(10))), columns=5)
    shown = picture_of(app.session_state["classes"]).resize(expected.size, Image.Resampling.NEAREST)
    difference = np.asarray(shown).astype(int) - np.asarray(expected).astype(int)
    assert abs(difference).max() <= (1 if precision.name == "fp32" else 4)


def picture_of(url: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))


@pytest.mark.parametrize(
    ("page", "key", "low", "high", "default", "button"),
    [
        ("explore", "from_seed", 0, 2**31 - 1, 0, "interpolate"),
        ("explore", "to_seed", 0, 2**31 - 1, 1, "interpolate"),
        ("explore", "frame_count", 3, 64, 33, "interpolate"),
        ("trajectory", "sample", 0, 63, 0, "follow"),
    ],
)
def test_bounds_of_the_other_pages_hold_on_the_server(open_app, page, key, low, high, default, button):
    app = open_app(page)
    for value, becomes in ((high, high), (high + 1, default), (low, low), (low - 1, default)):
        app.number_input(key=key).set_value(value)
        submit(app, button)
        assert app.number_input(key=key).value == becomes


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
    assert "four-step student" in shipped.table[0].value["model"].tolist()
    assert shipped.image and "FID against network calls" in shipped.image[0].proto.imgs[0].alt
    headings = subheaders(open_app("results"))
    assert headings and all(heading.startswith("Other models: ") for heading in headings)


def test_results_that_are_missing_or_damaged_are_said(open_app, tmp_path, monkeypatch):
    app = open_app("results")
    for content, kind in (("", "info"), ("damaged\n", "error")):
        path = tmp_path / "docs" / "results.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
        monkeypatch.setattr("common.results.read_results", lambda _, path=path: read_results(path))
        app.run()
        assert not app.exception and len(getattr(app, kind)) == 1
