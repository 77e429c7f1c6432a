"""The models that the app can show: found below one folder, chosen in the sidebar, loaded once for all visitors."""

from pathlib import Path

import streamlit as st

from common.checkpoint import Checkpoint, load_checkpoint, load_header
from common.comparison import require_comparable
from common.device import choose_device
from common.errors import UserError
from common.results import STAGE_NAMES

MADE_BY = {
    "teacher": ("teacher_rectified_flow.py", "teacher.safetensors"),
    "four_step": ("four_step_student.py", "four_step.safetensors"),
    "one_step": ("distill_student.py", "student.safetensors"),
}
"""The script that makes a model of each stage, and the name that it gives to the file."""
GUIDE = "guide.safetensors"
"""A teacher's guide, where it lies beside the teacher."""
NO_GUIDE = "none"


def choose_models(folder: Path) -> dict[str, Checkpoint]:
    """The sidebar: a file for each stage, and a guide. What is missing or damaged is said, and left out.

    The folder is read anew each time, so that what was just trained is there. Returns nothing where the chosen models
    cannot be compared.
    """
    found, problems = find_models(folder)
    models = {}
    with st.sidebar:
        st.header("Models")
        for stage, name in STAGE_NAMES.items():
            if not found[stage]:
                script, file = MADE_BY[stage]
                problems.append(f"No {name} in {from_here(folder)}: `python {script}` makes one ({file}).")
                continue
            path = choose_file(name.capitalize(), found[stage], f"model_{stage}", folder)
            try:
                models[stage] = load_file(path)
                if stage == "teacher":
                    models[stage] = with_guide(models[stage], path, found[stage], folder)
            except UserError as error:
                problems.append(f"{error}.")
        st.caption(f"Any checkpoint below {from_here(folder)}/ can be chosen, also one that was trained a moment ago.")
    for problem in problems:
        st.error(problem)
    try:
        if models:
            require_comparable(list(models.values()))
    except UserError as error:
        st.error(f"These models cannot be compared: {error}.")
        return {}
    return models


def find_models(folder: Path) -> tuple[dict[str, list[Path]], list[str]]:
    """The checkpoints below a folder by stage, the shipped ones first, and a sentence for each file that is none.

    Links that lead out of the folder are not followed.
    """
    found: dict[str, list[Path]] = {stage: [] for stage in STAGE_NAMES}
    problems = []
    for path in folder.rglob("*.safetensors"):
        if not path.is_file() or not path.resolve().is_relative_to(folder.resolve()):
            continue
        status = path.stat()
        stage, problem = stage_of(str(from_here(path)), status.st_mtime_ns, status.st_size)
        if stage:
            found[stage].append(path)
        else:
            problems.append(problem)
    for stage, paths in found.items():
        usual_name = MADE_BY[stage][1]
        paths.sort(key=lambda path: (path.parent.name != "pretrained", path.name != usual_name, path))
    return found, sorted(problems)


@st.cache_data(max_entries=10_000, show_spinner=False)
def stage_of(path: str, modified: int, size: int) -> tuple[str | None, str]:
    """The stage that a file's header names; or none, and what is wrong. A new file has a new time or size."""
    try:
        return load_header(path)["stage"], ""
    except UserError as error:
        return None, f"{error}."


@st.cache_resource(max_entries=12, show_spinner="Loading the models")
def load_model(path: str, modified: int, size: int) -> Checkpoint:
    return load_checkpoint(path, choose_device("auto"))


def load_file(path: Path) -> Checkpoint:
    status = path.stat()
    return load_model(str(from_here(path)), status.st_mtime_ns, status.st_size)


def choose_file(label: str, paths: list[Path], key: str, folder: Path) -> Path:
    """One of the files, by its name in the list: a browser cannot send a path."""
    names = {str(path.relative_to(folder)): path for path in paths}
    return names[st.selectbox(label, list(names), key=key)]


def with_guide(teacher: Checkpoint, path: Path, teachers: list[Path], folder: Path) -> Checkpoint:
    """The teacher with the weaker network that guides it, if one is chosen: by default the one beside it."""
    names = {str(other.relative_to(folder)): other for other in teachers if other != path}
    beside = str((path.parent / GUIDE).relative_to(folder))
    options = [NO_GUIDE, *names]
    name = st.selectbox(
        "Guide of the teacher",
        options,
        index=options.index(beside) if beside in names and path.name != GUIDE else 0,
        key=f"guide_of_{path}",
        help="A weaker teacher, such as an early snapshot, to be guided away from (autoguidance).",
    )
    return teacher.guided_by(load_file(names[name])) if name in names else teacher


def from_here(path: Path) -> Path:
    """The path as one would type it in the folder that the app was started from."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
