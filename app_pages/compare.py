"""Teacher, four-step student and one-step student from the same noise, the students first."""

import time
from collections.abc import Callable
from typing import NamedTuple

import streamlit as st
import torch
import torch.nn.functional as F
from streamlit.delta_generator import DeltaGenerator

from app_pages.drawing import draw
from app_pages.models import identities
from app_pages.pictures import offer_downloads, show_images
from app_pages.settings import (
    MAX_IMAGES,
    class_input,
    new_seed,
    number,
    seed_input,
    teacher_inputs,
)
from common.checkpoint import Checkpoint
from common.comparison import Column
from common.distances import share_of_variance, variance_around_class_mean
from common.sampling import SamplingSettings, Step
from common.stages import STAGES

SECONDS_BETWEEN_PICTURES = 0.25
"""While the teacher integrates: more often would only keep the browser busy."""
CONTRAST = 4


class Request(NamedTuple):
    """What the images on the page are a function of. (Streamlit makes the class anew each time: tuples stay equal.)"""

    count: int
    seed: int
    classes: list[int]
    teacher_settings: SamplingSettings
    models: list[str]
    """Their `identities`."""


def main() -> None:
    """The page, from top to bottom."""
    st.title("One call, four calls, many calls")
    st.write("A many-step teacher and its two distilled students. Each starts from the same noise.")
    models: dict[str, Checkpoint] = st.session_state.models
    if not models:
        return
    request, submitted = settings_form(models)
    if submitted or st.session_state.get("request") != request:
        st.session_state.request = request
        st.session_state.columns = {}
    columns: dict[str, Column] = st.session_state.columns  # those that are drawn already

    slots = {}
    for stage, place in zip(STAGES, st.columns(len(STAGES)), strict=True):
        with place:
            slots[stage] = st.empty(), st.empty()  # for the pictures, and for the facts, which come to be known later
    for stage in list(columns):
        show(slots[stage], request, columns, stage)
    for stage in ("one_step", "four_step", "teacher"):
        if stage in models and stage not in columns:
            settings = models[stage].settings if models[stage].is_student else request.teacher_settings
            watch = None if models[stage].is_student else progress_in(slots[stage][0], settings)
            columns[stage] = draw(models[stage], settings, request.seed, request.count, request.classes, watch)
            show(slots[stage], request, columns, stage)
            if stage == "teacher":  # now the students can be compared with it
                for student in [name for name in columns if name != "teacher"]:
                    show_facts(slots[student][1], columns, student)
    if "teacher" in columns:
        show_differences(columns)
    for stage in STAGES:
        if stage in columns:
            offer_downloads(columns[stage], request.seed, request.classes)


def settings_form(models: dict[str, Checkpoint]) -> tuple[Request, bool]:
    """What is asked for, and whether a button was pressed just now."""
    with st.form("settings"):
        left, middle, right = st.columns(3)
        with left:
            count = number("Images", 1, MAX_IMAGES, 16, "count")
        with middle:
            seed = seed_input()
        with right:
            classes = class_input(next(iter(models.values())).class_names)
        teacher_settings = teacher_inputs(models.get("teacher"))
        with st.container(horizontal=True):
            generated = st.form_submit_button("Generate", key="generate", type="primary")
            renewed = st.form_submit_button("New seed", key="new_seed", on_click=new_seed)
    return Request(count, seed, classes, teacher_settings, identities(models)), generated or renewed


def progress_in(slot: DeltaGenerator, settings: SamplingSettings) -> Callable[[Step], None]:
    """A function that shows each step that it is given: the images emerge from the noise."""
    with slot.container():
        st.subheader(STAGES["teacher"].label.capitalize())
        picture = st.empty()
        bar = st.progress(0.0, text=f"{settings.describe()}: first step")
    shown = 0.0

    def watch(step: Step) -> None:
        nonlocal shown
        if step.t == 1:  # the images are there, and take the picture's place; a browser may keep the bar otherwise
            bar.empty()
            return
        if time.monotonic() - shown < SECONDS_BETWEEN_PICTURES:
            return
        shown = time.monotonic()
        with picture:
            show_images(step.state, f"The teacher's images at time {step.t:.2f}, still partly noise")
        bar.progress(step.t, text=f"step {step.number} of {settings.num_steps}, t = {step.t:.2f}")

    return watch


def show(
    slots: tuple[DeltaGenerator, DeltaGenerator], request: Request, columns: dict[str, Column], stage: str
) -> None:
    """A model's column: name, images, facts."""
    column = columns[stage]
    names = [column.checkpoint.class_names[index] for index in request.classes]
    classes = f" of {', '.join(names)}" if names else ""
    with slots[0].container():
        st.subheader(column.name.capitalize())
        show_images(column.images, f"{request.count} images{classes} by the {column.name}, seed {request.seed}")
    show_facts(slots[1], columns, stage)


def show_facts(slot: DeltaGenerator, columns: dict[str, Column], stage: str) -> None:
    """What is known of a model's column by now."""
    slot.markdown("  \n".join(facts(columns[stage], columns.get("teacher"))))


def facts(column: Column, teacher: Column | None) -> list[str]:
    """Cost and fidelity, a line each. The seconds are those of one drawing, the first at its size left out."""
    calls, seconds = column.network_calls, column.seconds_per_image
    lines = [
        f"**{calls:g}** network call{'s' * (calls != 1)} an image (NFE)",
        f"**{seconds * len(column.images):.3g} s**, {1000 * seconds:.3g} ms an image",
    ]
    if not column.checkpoint.is_student:
        return [*lines, column.settings.describe(), *guide_facts(column.checkpoint)]
    if teacher is None:
        return lines
    lines.append(f"**{teacher.seconds_per_image / seconds:.3g} times** the teacher's speed")
    error = F.mse_loss(column.images, teacher.images).item()
    share = share_of_variance(error, variance_around_class_mean(teacher.images, teacher.labels))
    lines.append(f"mean squared error **{error:.4f}**" + (f", {share} of the variance" if share else ""))
    return [*lines, *facts_of_pairs(column.checkpoint.header, teacher)]


def facts_of_pairs(header: dict, teacher: Column) -> list[str]:
    """What a student learned from, by its header, where that is not what is on the page."""
    if header.get("teacher") != teacher.checkpoint.sha256:
        return ["It learned from another teacher."]
    pairs = header["pairs"]
    guide = teacher.checkpoint.guide.sha256 if teacher.settings.needs_guide else None
    if (SamplingSettings(**pairs["sampling"]), pairs.get("guide")) == (teacher.settings, guide):
        return []
    return [f"It learned from this teacher's images by {SamplingSettings(**pairs['sampling']).describe()}, not these."]


def guide_facts(checkpoint: Checkpoint) -> list[str]:
    """The guide's file and what it adds to the bytes, or nothing."""
    if checkpoint.guide is None:
        return []
    return [f"guide: {checkpoint.guide.path.name}, {checkpoint.guide.path.stat().st_size / 1e6:.1f} MB more"]


def show_differences(columns: dict[str, Column]) -> None:
    """Each student's images less the teacher's, on grey."""
    if not st.toggle("Differences to the teacher's images", key="differences", persist_state="session"):
        return
    for place, stage in zip(st.columns(len(STAGES)), STAGES, strict=True):
        if stage == "teacher" or stage not in columns:
            continue
        column = columns[stage]
        difference = column.images - columns["teacher"].images
        with place:
            show_images(
                torch.clamp(CONTRAST * difference / 2, -1, 1),
                f"Differences between the images of the {column.name} and the teacher's",
                caption=f"{column.name.capitalize()} less teacher, contrast times {CONTRAST}: grey is no difference",
            )


main()
