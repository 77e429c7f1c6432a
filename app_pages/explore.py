"""What lies between two seeds, and the ten classes of one noise: drawn by the one-step student."""

import streamlit as st
import torch

from app_pages.drawing import steps_in_network_thread
from app_pages.models import identities
from app_pages.pictures import picture_url, show_picture
from app_pages.settings import MAX_IMAGES, class_input, new_seed, number, seed_input
from common.checkpoint import Checkpoint
from common.noise import sample_noise, spherical_interpolation


def main() -> None:
    """The page, from top to bottom."""
    st.title("Explore the noise")
    st.write("One network call an image: many images in the time of one. All are by the one-step student.")
    student: Checkpoint | None = st.session_state.models.get("one_step")
    if student is None:
        st.info("This page needs a one-step student.")
        return
    between_two_seeds(student)
    classes_of_one_noise(student)


def between_two_seeds(student: Checkpoint) -> None:
    """A walk through the noise from one seed's first sample to another's."""
    st.header("Between two seeds")
    with st.form("interpolation_settings"):
        places = st.columns(4)
        with places[0]:
            first = seed_input("From seed", "from_seed", default=0)
        with places[1]:
            last = seed_input("To seed", "to_seed", default=1)
        with places[2]:
            classes = class_input(student.class_names, mixed=False)
        with places[3]:
            count = number("Images on the way", 3, MAX_IMAGES, 33, "frame_count")
        with st.container(horizontal=True):
            st.form_submit_button("Interpolate", key="interpolate", type="primary")
            st.form_submit_button("New seeds", key="new_seeds", on_click=new_seeds)
    request = (*identities({"one_step": student}), first, last, tuple(classes), count)
    if st.session_state.get("frames_request") != request:
        shape = student.model.config.image_shape
        start, end = (sample_noise(seed, 0, 1, shape)[0] for seed in (first, last))
        noise = spherical_interpolation(start, end, torch.linspace(0, 1, count))
        images = one_step(student, noise, classes * count)
        st.session_state.frames = [picture_url(image[None]) for image in images], picture_url(images, columns=11)
        st.session_state.frames_request = request
    show_frames(first, last, *st.session_state.frames)


def new_seeds() -> None:
    """What the button of this name does."""
    new_seed("from_seed")
    new_seed("to_seed")


@st.fragment
def show_frames(first: int, last: int, frames: list[str], overview: str) -> None:
    """A slider over pictures that are all there already."""
    left, right = st.columns([1, 2])
    with right:
        position = st.slider("Image on the way", 1, len(frames), len(frames) // 2 + 1, key=f"frame_of_{len(frames)}")
        share = (position - 1) / (len(frames) - 1)
        where = f"{share:.0%} of the way from seed {first} to seed {last}"
        show_picture(overview, f"All {len(frames)} images between seeds {first} and {last}, row by row")
    with left:
        show_picture(frames[position - 1], f"Image at {where}", caption=where)


def classes_of_one_noise(student: Checkpoint) -> None:
    """What the class alone changes."""
    st.header("Every class from one noise")
    names = student.class_names
    if not names:
        st.info("This student is unconditional: it has no classes.")
        return
    with st.form("classes_settings"):
        seed = seed_input()
        with st.container(horizontal=True):
            st.form_submit_button("Draw", key="draw_classes", type="primary")
            st.form_submit_button("New seed", key="new_seed", on_click=new_seed)
    request = (*identities({"one_step": student}), seed)
    if st.session_state.get("classes_request") != request:
        noise = sample_noise(seed, 0, 1, student.model.config.image_shape).expand(len(names), -1, -1, -1)
        st.session_state.classes = picture_url(one_step(student, noise, list(range(len(names)))), columns=5)
        st.session_state.classes_request = request
    caption = ", ".join(names)
    show_picture(st.session_state.classes, f"The classes {caption}, from the same noise", caption)


def one_step(student: Checkpoint, noise: torch.Tensor, labels: list[int]) -> torch.Tensor:
    """The student's images (N, C, H, W) of this noise; `labels` is empty for a student without classes."""
    steps = steps_in_network_thread(student, student.settings, noise, torch.tensor(labels) if labels else None)
    return [step.state for step, _ in steps][-1]


main()
