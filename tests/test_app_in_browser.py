"""The app in a real headless Chromium: its pixels, its files, its layout, and many visitors at once."""

import base64
import io
import shlex
from contextlib import contextmanager

import numpy as np
import pytest
from conftest import app_precision, write_models
from PIL import Image

from app_pages.pictures import SHOWN_WIDTH
from benchmarks.app_server import CHROMIUM, chromium, serve
from common.checkpoint import load_checkpoint
from common.images import image_grid, to_uint8
from common.sampling import draw_blocks

pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install -r requirements-dev.txt")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs a Chromium, such as Debian's package chromium")
PATIENCE = 60_000
"""Milliseconds to wait for what must come."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_models(tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture(scope="module")
def address(folder):
    with serve(folder) as (address, _):
        yield address


@contextmanager
def open_page(address, **context):
    """The first page, with its pictures there; on leaving, nothing may have gone wrong in the console."""
    with open_pages(address, 1, **context) as (page,):
        wait_until_done(page)
        yield page


@contextmanager
def open_pages(address, count: int, **context):
    """Pages of as many visitors, in one browser, loading."""
    problems = []
    with chromium() as browser:
        visitors = browser.new_context(**context)  # one for all: the browser keeps Streamlit's scripts
        pages = [visitors.new_page() for _ in range(count)]
        for page in pages:
            page.set_default_timeout(PATIENCE)
            page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
            page.on("pageerror", lambda error: problems.append(str(error)))
            page.goto(address)
        yield pages
    assert not problems


def wait_until_done(page, last: str | None = "Download: one-step student") -> None:
    """Until the text that comes last is there, and the script has ended."""
    if last:
        page.get_by_text(last).wait_for()
    page.locator("[data-testid=stApp][data-test-script-state=notRunning]").wait_for()


def generate(page, **fields) -> None:
    send(page, **fields)
    seed, count = (page.get_by_label(label, exact=True).input_value() for label in ("Seed", "Images"))
    page.get_by_alt_text(f"{count} images of").and_(
        page.get_by_alt_text(f"the one-step student, seed {seed}")
    ).wait_for()
    wait_until_done(page)


def send(page, **fields) -> None:
    """Fills the form in, by the labels of its fields, and sends it."""
    for label, value in fields.items():
        page.get_by_label(label, exact=True).fill(str(value))
        page.keyboard.press("Tab")
    page.get_by_role("button", name="Generate").click()


def picture(page, model: str) -> np.ndarray:
    """The pixels of a model's grid, at the size of the images themselves."""
    source = page.get_by_alt_text(f"by the {model}, seed").get_attribute("src")
    content = base64.b64decode(source.removeprefix("data:image/png;base64,"))
    shown = np.asarray(Image.open(io.BytesIO(content)))
    factor = -(-SHOWN_WIDTH // (4 * 34 + 2))
    small = shown[factor // 2 :: factor, factor // 2 :: factor]
    assert (np.kron(small, np.ones((factor, factor, 1), np.uint8)) == shown).all()  # every pixel is a sharp square
    return small


def expected(folder, file: str, seed: int, count: int = 16) -> np.ndarray:
    checkpoint = load_checkpoint(folder / file)
    how = (checkpoint.model, seed, 0, count, range(10), checkpoint.settings)
    (batch,) = draw_blocks(*how, precision=app_precision())
    return np.asarray(image_grid(to_uint8(batch.images), 4))


def test_the_pictures_are_the_models_images(address, folder):
    with open_page(address) as page:
        for model, file in (
            ("teacher", "teacher"),
            ("four-step student", "four_step"),
            ("one-step student", "student"),
        ):
            assert (picture(page, model) == expected(folder, f"{file}.safetensors", 0)).all(), model
        generate(page, Seed=12)
        assert (picture(page, "one-step student") == expected(folder, "student.safetensors", 12)).all()
        assert all(page.locator("img").evaluate_all("images => images.map(image => image.alt)"))


def test_downloads_have_the_bytes_that_the_command_writes(address, tmp_path, run_script):
    with open_page(address) as page:
        page.get_by_text("How the teacher is run").click()
        generate(page, Steps=3, Seed=4, Images=6)
        for model in ("teacher", "four-step student", "one-step student"):
            page.get_by_text(f"Download: {model}").click()
            part = page.locator("details").filter(has_text=f"Download: {model}")
            command = shlex.split(part.locator("[data-testid=stCode] code").inner_text())
            assert command.pop(-2) == "--out" and ("--num-steps 3" in " ".join(command)) == (model == "teacher")
            for label, ending, options in (
                ("PNG, pixel for pixel", ".png", ()),
                ("PNG, enlarged 8 times", "_enlarged.png", ("--enlarge", 8)),
                ("Arrays with seed and settings (.npz)", ".npz", ()),
            ):
                with page.expect_download() as download:
                    part.get_by_role("button", name=label).click()
                assert download.value.suggested_filename.endswith(f"_seed_4{ending}")
                out = tmp_path / f"command{ending}"
                assert run_script(*command[1:-1], *options, "--out", out).status == 0
                assert download.value.path().read_bytes() == out.read_bytes(), (model, ending)


def test_the_teachers_images_emerge_from_noise(address):
    with open_page(address) as page:
        page.get_by_text("How the teacher is run").click()
        send(page, Steps=100, Images=64)
        page.get_by_alt_text("the one-step student, seed 0").and_(page.get_by_alt_text("64 images")).wait_for()
        page.get_by_alt_text("still partly noise").wait_for()
        page.get_by_text("of 100, t = 0.").wait_for()
        send(page, Steps=1, Images=1)  # a visitor does not have to wait
        page.get_by_alt_text("1 images of").and_(page.get_by_alt_text("by the teacher")).wait_for()
        wait_until_done(page)


@pytest.mark.parametrize("width", [1280, 400])
def test_every_page_is_reached_and_fits(address, width):
    with open_page(address, viewport={"width": width, "height": 800}) as page:

        def go_to(title: str) -> None:
            sidebar = page.get_by_test_id("stExpandSidebarButton")
            if width == 400 and sidebar.is_visible():  # there it lists the pages, and is closed at first
                sidebar.click()
            page.get_by_role("link", name=title).click()

        def assert_fits() -> None:
            wait_until_done(page, last=None)
            for image in page.locator("img").all():
                box = image.bounding_box()
                assert image.get_attribute("alt") and box["width"] > 100
                assert box["x"] >= 0 and box["x"] + box["width"] <= width
            assert page.evaluate("document.querySelector('[data-testid=stMain]').scrollWidth") <= width

        pictures = page.get_by_alt_text("seed 0")
        pictures.nth(2).wait_for()  # a narrow page is laid out anew when its sidebar closes
        boxes = [image.bounding_box() for image in pictures.all()]
        assert len(boxes) == 3 and len({box["x"] for box in boxes}) == (3 if width > 400 else 1)
        assert_fits()
        go_to("Trajectory")
        page.get_by_alt_text("Path of the one-step student").wait_for()
        page.get_by_role("slider").last.press("End")
        page.get_by_text("t = 1.00").first.wait_for()
        assert_fits()
        go_to("Explore")
        page.get_by_alt_text("Image at 50% of the way").wait_for()
        page.get_by_role("slider").press("End")
        page.get_by_alt_text("Image at 100% of the way").wait_for()
        assert_fits()
        go_to("Results")
        page.get_by_text("Other models").first.wait_for()  # nothing was measured of these
        assert_fits()


def test_the_form_is_sent_by_keyboard_alone(address, folder):
    with open_page(address) as page:
        page.get_by_label("Seed", exact=True).focus()
        page.keyboard.press("Control+A")
        page.keyboard.type("21")
        page.keyboard.press("Enter")
        page.get_by_alt_text("the one-step student, seed 21").wait_for()
        wait_until_done(page)
        assert (picture(page, "one-step student") == expected(folder, "student.safetensors", 21)).all()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_theme_follows_the_browser(address, scheme):
    with open_page(address, color_scheme=scheme) as page:
        colour = page.locator("[data-testid=stApp]").evaluate("app => getComputedStyle(app).backgroundColor")
        brightness = sum(int(part) for part in colour.strip("rgb()").split(","))
        assert (brightness > 600) == (scheme == "light")


def test_ten_visitors_at_once_get_their_own_images(address, folder):
    with open_pages(address, 10) as pages:
        for seed, page in enumerate(pages):
            send(page, Seed=seed)  # without waiting for the others
        for seed, page in enumerate(pages):
            page.get_by_alt_text(f"the one-step student, seed {seed}").wait_for()
            assert (picture(page, "one-step student") == expected(folder, "student.safetensors", seed)).all()
        for seed, page in enumerate(pages):
            wait_until_done(page)
            assert (picture(page, "teacher") == expected(folder, "teacher.safetensors", seed)).all()
