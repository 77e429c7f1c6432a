"""Images on a page: sharp at any size, described for those who do not see them, and ready to download."""

import base64
import shlex

import streamlit as st
from torch import Tensor

from app_pages.models import from_here
from common.comparison import Column, describe_samples
from common.images import enlarged, image_grid, npz_bytes, png_bytes, to_uint8
from common.sampling import SamplingSettings

SHOWN_WIDTH = 1100
"""Pixels to which pictures are enlarged at least; browsers scale down to the place there is, which stays sharp."""
DOWNLOAD_FACTOR = 8


def grid_columns(count: int) -> int:
    """How many images of a grid stand side by side."""
    return min(count, 4 if count <= 16 else 8)


def show_images(images: Tensor, description: str, columns: int | None = None, caption: str | None = None) -> None:
    """A grid of images (N, 3, H, W) in [-1, 1], as wide as its place."""
    show_picture(picture_url(images, columns), description, caption)


def show_picture(url: str, description: str, caption: str | None = None) -> None:
    """What `picture_url` made, as wide as its place. `description` is for those who do not see it."""
    st.image(url, alt=description, caption=caption, width="stretch")


def picture_url(images: Tensor, columns: int | None = None) -> str:
    """The grid as a `data:` URL: no second request, and no file that is gone when the browser asks for it."""
    grid = image_grid(to_uint8(images), columns or grid_columns(len(images)))
    content = png_bytes(enlarged(grid, -(-SHOWN_WIDTH // grid.width)), compress_level=1)
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def offer_downloads(column: Column, seed: int, classes: list[int]) -> None:
    """The column's images as files, and the command that makes the same files."""
    name = f"{column.checkpoint.stage}_seed_{seed}"
    columns = grid_columns(len(column.images))

    def grid_file(factor: int) -> bytes:
        return png_bytes(enlarged(image_grid(to_uint8(column.images), columns), factor))

    def npz_file() -> bytes:
        description = describe_samples(column.checkpoint, column.settings, seed)
        return npz_bytes(to_uint8(column.images), column.labels, description)

    with st.expander(f"Download: {column.name}"):
        for label, file_name, make in (
            ("PNG, pixel for pixel", f"{name}.png", lambda: grid_file(1)),
            (f"PNG, enlarged {DOWNLOAD_FACTOR} times", f"{name}_enlarged.png", lambda: grid_file(DOWNLOAD_FACTOR)),
            ("Arrays with seed and settings (.npz)", f"{name}.npz", npz_file),
        ):
            st.download_button(label, make, file_name, key=f"download_{file_name}", on_click="ignore", width="stretch")
        st.caption(
            f"The same by command; with `--enlarge {DOWNLOAD_FACTOR}` the enlarged picture, with `.npz` the arrays:"
        )
        st.code(sample_command(column, seed, classes, f"{name}.png"), language="bash", wrap_lines=True)


def sample_command(column: Column, seed: int, classes: list[int], out: str) -> str:
    """The command line of `sample.py` that makes the same images."""
    checkpoint, settings = column.checkpoint, column.settings
    command = ["python", "sample.py", from_here(checkpoint.path)]
    command += ["--num-images", len(column.images), "--seed", seed, "--columns", grid_columns(len(column.images))]
    if len(classes) == 1:
        command += ["--classes", checkpoint.class_names[classes[0]]]
    if not checkpoint.is_student:
        command += teacher_options(settings)
        if checkpoint.guide:
            command += ["--guide", from_here(checkpoint.guide.path), "--guide-scale", settings.guide_scale]
    return shlex.join(map(str, [*command, "--out", out]))


def teacher_options(settings: SamplingSettings) -> list[str]:
    """The options of `sample.py` for these settings, without the guide's."""
    options = ["--solver", settings.solver, "--num-steps", str(settings.num_steps)]
    options += ["--guidance-scale", str(settings.guidance_scale)]
    return [*options, "--guidance-interval", *map(str, settings.guidance_interval)] if settings.is_guided else options
