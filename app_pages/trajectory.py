"""One image on its way from noise: many states of the teacher, four of one student, and the other's single jump."""

from typing import NamedTuple

import streamlit as st
import torch
from torch import Tensor

from app_pages.drawing import path_of
from app_pages.pictures import show_images
from app_pages.settings import MAX_IMAGES, class_input, new_seed, number, seed_input, teacher_inputs
from common.checkpoint import Checkpoint
from common.noise import sample_noise
from common.results import STAGE_NAMES
from common.sampling import SamplingSettings

STRIP_LENGTH = 11
"""States in the teacher's strip at most, spread evenly over its steps."""


class Request(NamedTuple):
    """What the paths on the page are a function of. (Streamlit makes the class anew each time: tuples stay equal.)"""

    seed: int
    sample: int
    label: int | None
    teacher_settings: SamplingSettings
    models: list[str]
    """The files' SHA-256."""


def main() -> None:
    st.title("From noise to image")
    st.write("Each model goes its way from the same noise. The teacher's is curved: one step must know where it ends.")
    models: dict[str, Checkpoint] = st.session_state.models
    if not models:
        return
    request = settings_form(models)
    if st.session_state.get("path_request") != request:
        with st.spinner("Following the flow"):
            st.session_state.paths = paths_of(models, request)
        st.session_state.path_request = request
    show_paths(st.session_state.paths)


def settings_form(models: dict[str, Checkpoint]) -> Request:
    first = next(iter(models.values()))
    with st.form("path_settings"):
        left, middle, right = st.columns(3)
        with left:
            seed = seed_input()
        with middle:
            sample = number("Sample of the seed", 0, MAX_IMAGES - 1, 0, "sample")
        with right:
            classes = class_input(first.class_names, mixed=False)
        teacher_settings = teacher_inputs(models.get("teacher"))
        with st.container(horizontal=True):
            st.form_submit_button("Follow", key="follow", type="primary")
            st.form_submit_button("New seed", key="new_seed", on_click=new_seed)
    guides = [model.guide for model in models.values() if model.guide]
    hashes = [model.sha256 for model in (*models.values(), *guides)]
    return Request(seed, sample, classes[0] if classes else None, teacher_settings, hashes)


def paths_of(models: dict[str, Checkpoint], request: Request) -> dict[str, list[tuple[float, Tensor]]]:
    """Times and states (1, C, H, W) of each stage."""
    labels = None if request.label is None else torch.tensor([request.label])
    paths = {}
    for stage, model in models.items():
        noise = sample_noise(request.seed, request.sample, 1, model.model.config.image_shape)
        settings = model.settings if model.is_student else request.teacher_settings
        paths[stage] = path_of(model, settings, noise, labels)
    return paths


@st.fragment
def show_paths(paths: dict[str, list[tuple[float, Tensor]]]) -> None:
    """A slider over time and the states at it, then every path as a strip. A fragment: the slider draws only this."""
    times = [time for time, _ in paths.get("teacher", max(paths.values(), key=len))]
    time = st.select_slider("Time t", times, value=times[len(times) // 2], format_func=lambda t: f"{t:.2f}", key="time")
    for place, stage in zip(st.columns(len(STAGE_NAMES)), STAGE_NAMES, strict=True):
        if stage in paths:
            reached, state = [point for point in paths[stage] if point[0] <= time + 1e-9][-1]
            with place:
                st.subheader(STAGE_NAMES[stage].capitalize())
                description = f"State of the {STAGE_NAMES[stage]} at time {reached:.2f}"
                show_images(state, description, caption=f"t = {reached:.2f}")
    if "teacher" in paths:
        show_strip("teacher", paths["teacher"])
    students = [stage for stage in STAGE_NAMES if stage in paths and stage != "teacher"]
    if students:
        for place, stage in zip(st.columns([len(paths[stage]) for stage in students]), students, strict=True):
            with place:
                show_strip(stage, paths[stage])


def show_strip(stage: str, path: list[tuple[float, Tensor]]) -> None:
    last = len(path) - 1
    count = min(len(path), STRIP_LENGTH)
    shown = [path[round(index * last / (count - 1))] for index in range(count)]
    times = ", ".join(f"{time:.2f}".rstrip("0").rstrip(".") for time, _ in shown)
    states = torch.cat([state for _, state in shown])
    name = STAGE_NAMES[stage]
    caption = f"{name.capitalize()}, t = {times}"
    show_images(states, f"Path of the {name} at t = {times}", columns=count, caption=caption)


main()
