"""One image on its way from noise: many states of the teacher, four of one student, and the other's single jump."""

from typing import NamedTuple

import streamlit as st
import torch
from torch import Tensor

from app_pages.drawing import steps_in_network_thread
from app_pages.models import identities
from app_pages.pictures import picture_url, show_images, show_picture
from app_pages.settings import MAX_IMAGES, class_input, new_seed, number, seed_input, teacher_inputs
from common.checkpoint import Checkpoint
from common.noise import sample_noise
from common.sampling import SamplingSettings
from common.stages import STAGES

STRIP_LENGTH = 11
"""States in the teacher's strip at most, spread evenly over its steps."""


class Request(NamedTuple):
    """What the paths on the page are a function of. (Streamlit makes the class anew each time: tuples stay equal.)"""

    seed: int
    sample: int
    label: int | None
    teacher_settings: SamplingSettings
    models: list[str]
    """Their `identities`."""


def main() -> None:
    """The page, from top to bottom."""
    st.title("From noise to image")
    st.write("Each model goes its way from the same noise. The teacher's is curved: one step must know where it ends.")
    models: dict[str, Checkpoint] = st.session_state.models
    if not models:
        return
    request = settings_form(models)
    if st.session_state.get("path_request") != request:
        st.session_state.paths = paths_of(models, request)
        st.session_state.strips = {stage: strip_of(path) for stage, path in st.session_state.paths.items()}
        st.session_state.path_request = request
    show_paths(st.session_state.paths, st.session_state.strips)


def settings_form(models: dict[str, Checkpoint]) -> Request:
    """Which image to follow, and how."""
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
    return Request(seed, sample, classes[0] if classes else None, teacher_settings, identities(models))


def paths_of(models: dict[str, Checkpoint], request: Request) -> dict[str, list[tuple[float, Tensor]]]:
    """Times and states (1, C, H, W) of each stage, from the noise on."""
    labels = None if request.label is None else torch.tensor([request.label])
    paths = {}
    progress = st.empty()  # also where Streamlit can stop the run, when the visitor has asked for something else
    for stage, model in models.items():
        noise = sample_noise(request.seed, request.sample, 1, model.model.config.image_shape)
        settings = model.settings if model.is_student else request.teacher_settings
        paths[stage] = [(0.0, noise)]
        for step, _ in steps_in_network_thread(model, settings, noise, labels):
            paths[stage].append((step.t, step.state))
            progress.progress(step.t, text=f"Following the flow: {STAGES[stage].label}, t = {step.t:.2f}")
    progress.empty()
    return paths


@st.fragment
def show_paths(paths: dict[str, list[tuple[float, Tensor]]], strips: dict[str, tuple[str, str]]) -> None:
    """A slider over time and the states at it, then every path as a strip. A fragment: the slider draws only this."""
    times = [time for time, _ in paths.get("teacher", max(paths.values(), key=len))]
    first_shown = next(time for time in times if time > 0.74)  # where there is something to see
    time = st.select_slider("Time t", times, value=first_shown, format_func=lambda t: f"{t:.3f}", key="time")
    for place, stage in zip(st.columns(len(STAGES)), STAGES, strict=True):
        if stage in paths:
            reached, state = [point for point in paths[stage] if point[0] <= time + 1e-9][-1]
            with place:
                st.subheader(STAGES[stage].label.capitalize())
                description = f"State of the {STAGES[stage].label} at time {reached:.2f}"
                show_images(state, description, caption=f"t = {reached:.2f}")
    if "teacher" in paths:
        show_strip("teacher", *strips["teacher"])
    students = [stage for stage in STAGES if stage in paths and stage != "teacher"]
    if students:
        for place, stage in zip(st.columns([len(paths[stage]) for stage in students]), students, strict=True):
            with place:
                show_strip(stage, *strips[stage])


def show_strip(stage: str, url: str, times: str) -> None:
    """A path in one row, with its times."""
    name = STAGES[stage].label
    show_picture(url, f"Path of the {name} at t = {times}", caption=f"{name.capitalize()}, t = {times}")


def strip_of(path: list[tuple[float, Tensor]]) -> tuple[str, str]:
    """A picture of states of the path, spread evenly over its steps, and their times in words."""
    last = len(path) - 1
    count = min(len(path), STRIP_LENGTH)
    shown = [path[round(index * last / (count - 1))] for index in range(count)]
    times = ", ".join(f"{time:.2f}".rstrip("0").rstrip(".") for time, _ in shown)
    return picture_url(torch.cat([state for _, state in shown]), columns=count), times


main()
