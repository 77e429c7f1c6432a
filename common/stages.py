"""The stages whose models make images: what each is called, and which script makes it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """One of `STAGES`."""

    label: str
    """In tables and on pages."""
    script: str
    weights_file: str
    """What the script calls its model."""
    num_steps: int | None = None
    """Of Euler's steps that a student makes; None for a teacher, which takes as many as it is asked for."""


STAGES = {
    "teacher": Stage("teacher", "teacher_rectified_flow.py", "teacher.safetensors"),
    "four_step": Stage("four-step student", "four_step_student.py", "four_step.safetensors", num_steps=4),
    "one_step": Stage("one-step student", "distill_student.py", "student.safetensors", num_steps=1),
}
"""By the name that a checkpoint's header has for them; in the order in which they are shown."""
FEATURE_NETWORK = "feature_network"
"""The stage of a network that looks at images and makes none."""
