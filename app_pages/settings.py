"""The settings that pages share. Their values outlive a change of page, and their bounds hold on the server."""

import secrets
from collections.abc import Sequence

import streamlit as st

from common.checkpoint import Checkpoint
from common.noise import BLOCK_SIZE
from common.sampling import UNGUIDED, SamplingSettings
from common.solvers import FIXED_STEP_SOLVERS

MAX_SEED = 2**31 - 1
MAX_IMAGES = BLOCK_SIZE
"""One micro-batch: the images are those of `sample.py` to the bit."""
MAX_STEPS = 100
MAX_SCALE = 8.0
MIXED, UNCONDITIONAL = "mixed: each in turn", "none: the models are unconditional"


# Streamlit checks on the server: a number out of bounds or an option that is not in the list, which only a forged
# request can have, becomes the default.
def number(label: str, low: float, high: float, default: float, key: str, **options) -> float:
    """A field for a number from `low` to `high`; a whole number where these are."""
    return st.number_input(label, low, high, default, key=key, persist_state="session", **options)


def choice(label: str, options: Sequence[str], key: str, **more) -> str:
    """A field for one of the options."""
    return st.selectbox(label, options, key=key, persist_state="session", **more)


def seed_input(label: str = "Seed", key: str = "seed", default: int = 0) -> int:
    """A field for a seed."""
    return number(label, 0, MAX_SEED, default, key)


def new_seed(key: str = "seed") -> None:
    """What a "New seed" button does to the field with this key."""
    st.session_state[key] = secrets.randbelow(MAX_SEED + 1)


def class_input(class_names: Sequence[str], mixed: bool = True) -> list[int]:
    """The numbers of the classes to draw in turn; none for models without classes."""
    if not class_names:
        choice("Class", [UNCONDITIONAL], "no_class", disabled=True)
        return []
    options = [MIXED, *class_names] if mixed else list(class_names)
    name = choice("Class", options, "class" if mixed else "single_class")
    return list(range(len(class_names))) if name == MIXED else [class_names.index(name)]


def teacher_inputs(teacher: Checkpoint | None) -> SamplingSettings:
    """How the teacher is run; with the guidance that this teacher can do."""
    default = teacher.settings if teacher else UNGUIDED
    with st.expander("How the teacher is run"):
        left, middle, right = st.columns(3)
        with left:
            solver = choice("Solver", FIXED_STEP_SOLVERS, "solver", index=FIXED_STEP_SOLVERS.index(default.solver))
        with middle:
            num_steps = number("Steps", 1, MAX_STEPS, default.num_steps, "num_steps")
        with right:
            can_be_guided = teacher is not None and teacher.supports_guidance
            has_guide = teacher is not None and teacher.guide is not None
            guidance_scale = number(
                "Guidance",
                0.0,
                MAX_SCALE,
                default.guidance_scale,
                f"guidance_scale_{can_be_guided}_{has_guide}_{default.guidance_scale:g}",
                step=0.5,
                disabled=not can_be_guided,
                help="Classifier-free guidance; 1 is none. Needs a teacher that was trained with label dropout.",
            )
            guide_scale = number(
                "Guidance by the guide",
                0.0,
                MAX_SCALE,
                default.guide_scale,
                f"guide_scale_{has_guide}",
                step=0.5,
                disabled=not has_guide,
                help="Autoguidance; 1 is none. Needs a guide, to be chosen in the sidebar.",
            )
        interval = st.slider(
            "Guided at times t from, to (0 is noise, 1 the image)",
            0.0,
            1.0,
            default.guidance_interval,
            0.05,
            key="guidance_interval",
            persist_state="session",
        )
    return SamplingSettings(
        solver,
        num_steps,
        guidance_scale if can_be_guided else 1.0,
        tuple(round(time, 2) for time in interval),
        guide_scale if has_guide else 1.0,
    )
