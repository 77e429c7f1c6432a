"""Teacher and students side by side, from the same noise, in the browser.

Reads   the checkpoints in checkpoints/pretrained/, or in the folder given after `--`
Run     streamlit run app.py
        streamlit run app.py -- demo/models
"""

import sys
from pathlib import Path

import streamlit as st

from common.checkpoint import Checkpoint, load_checkpoint
from common.comparison import Column, cost_in_words, draw_column, require_comparable
from common.device import choose_device, choose_precision
from common.errors import UserError
from common.images import enlarged, image_grid
from common.sampling import SamplingSettings
from common.solvers import FIXED_STEP_SOLVERS

# File name and the script that makes it; the fast ones first, so that they are seen while the teacher integrates.
MODELS = {
    "four_step.safetensors": "four_step_student.py",
    "student.safetensors": "distill_student.py",
    "teacher.safetensors": "teacher_rectified_flow.py",
}

MAX_IMAGES = 64
ANY_CLASS = "all classes"


@st.cache_resource(max_entries=12)
def load_model(path: str, modified: float) -> Checkpoint:
    """Loaded once for all visitors; `modified` makes a new file a new entry."""
    return load_checkpoint(path, choose_device("auto"))


def load_models(folder: Path) -> dict[str, Checkpoint]:
    """The models that are there; for each of the others, a message that names the command which makes it."""
    models = {}
    for name, script in MODELS.items():
        path = folder / name
        try:
            models[name] = load_model(str(path), path.stat().st_mtime if path.is_file() else 0.0)
        except UserError as error:
            st.error(f"{error}. `python {script}` makes this model; copy its {name} into {folder}.")
    return models


def settings_form(class_names: list[str]) -> dict:
    with st.form("settings"):
        left, middle, right = st.columns(3)
        settings = {
            "count": left.number_input("Images", 1, MAX_IMAGES, 16, key="count"),
            "seed": middle.number_input("Seed", 0, 2**31 - 1, 0, key="seed"),
            "class_name": right.selectbox("Class", [ANY_CLASS, *class_names], key="class_name"),
            "num_steps": left.number_input("Teacher's steps", 1, 100, 20, key="num_steps"),
            "solver": middle.selectbox("Teacher's solver", list(FIXED_STEP_SOLVERS), key="solver"),
            "guidance_scale": right.number_input("Teacher's guidance", 1.0, 8.0, 2.0, 0.5, key="guidance_scale"),
        }
        st.form_submit_button("Generate", key="generate")
    return settings


def show(slot, column: Column, teacher_seconds: float | None) -> None:
    count = len(column.images)
    columns = 4 if count <= 16 else 8
    picture = enlarged(image_grid(column.images, min(columns, count)), 4)
    with slot.container():
        st.subheader(column.name)
        st.image(picture, caption=", ".join(cost_in_words(column, teacher_seconds)))


def main() -> None:
    st.set_page_config(page_title="Rectified-flow distillation", layout="wide")
    st.title("One call, four calls, many calls")
    st.write("A many-step teacher and its two distilled students, each starting from the same noise.")
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "checkpoints" / "pretrained"
    models = load_models(folder)
    if not models:
        return
    try:
        require_comparable(list(models.values()))
    except UserError as error:
        st.error(f"These models cannot be compared: {error}.")
        return
    class_names = next(iter(models.values())).class_names
    settings = settings_form(class_names)

    precision = choose_precision("auto", choose_device("auto"))
    class_name = settings["class_name"]
    classes = list(range(len(class_names))) if class_name == ANY_CLASS else [class_names.index(class_name)]
    slots = {name: slot.empty() for name, slot in zip(MODELS, st.columns(len(MODELS)), strict=True)}
    drawn: dict[str, Column] = {}
    for name, checkpoint in models.items():
        how = checkpoint.settings
        if not checkpoint.is_student:
            guidance = settings["guidance_scale"] if checkpoint.supports_guidance else 1.0
            how = SamplingSettings(settings["solver"], settings["num_steps"], guidance)
        with st.spinner(f"{name}: {how.describe()}"):
            drawn[name] = draw_column(checkpoint, how, settings["seed"], settings["count"], classes, precision)
        show(slots[name], drawn[name], None)

    teacher = drawn.get("teacher.safetensors")
    for name, column in drawn.items():
        if teacher and column is not teacher:
            show(slots[name], column, teacher.seconds_per_image)


main()
