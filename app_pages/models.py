"""The models that the app can show: found below one folder, chosen in the sidebar, loaded once for all visitors."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from weakref import WeakValueDictionary

import streamlit as st

from common.checkpoint import Checkpoint, guide_beside, load_checkpoint, load_header
from common.comparison import require_comparable
from common.device import choose_device
from common.errors import UserError
from common.stages import STAGES

NO_GUIDE = "none"


class File(NamedTuple):
    """A file with its content: a file that is written anew, or made readable, is another one."""

    path: str
    size: int
    modified: int
    changed: int


def choose_models(folder: Path) -> dict[str, Checkpoint]:
    """The sidebar: a file for each stage, and a guide. What is missing or damaged is said, and left out.

    The folder is read anew each time, so that what was just trained is there.
    """
    found, problems = find_models(folder)
    models = {}
    with st.sidebar:
        st.header("Models")
        for stage, about in STAGES.items():
            if not found[stage]:
                out = from_here(folder) / stage
                made = f"`python {about.script} --out {out}` makes one, on a CPU with `--preset cpu`"
                problems.append(f"No {about.label} in {from_here(folder)}: {made}.")
                continue
            file = choose_file(about.label.capitalize(), found[stage], f"model_{stage}")
            try:
                models[stage] = load_model(file)
                if stage == "teacher":
                    models[stage] = with_guide(models[stage], file, found[stage])
            except UserError as error:
                problems.append(f"{error}.")
        st.caption(f"Any checkpoint below {from_here(folder)}/ can be chosen, also one that was trained a moment ago.")
    models, unlike = comparable(models)
    for problem in problems + unlike:
        st.error(problem)
    return models


def comparable(models: dict[str, Checkpoint]) -> tuple[dict[str, Checkpoint], list[str]]:
    """The models that make the same kind of image as the first of them; and a sentence for each other one."""
    alike: dict[str, Checkpoint] = {}
    problems = []
    for stage, model in models.items():
        try:
            require_comparable([*alike.values(), model])
            alike[stage] = model
        except UserError as error:
            problems.append(f"The {STAGES[stage].label} is left out: {error}.")
    return alike, problems


def find_models(folder: Path) -> tuple[dict[str, dict[str, File]], list[str]]:
    """The checkpoints below a folder by stage and name, the shipped ones first; and a sentence for each other file.

    Links that lead out of the folder are not followed.
    """
    found: dict[str, dict[str, File]] = {stage: {} for stage in STAGES}
    problems = []
    for path, file in files_below(folder):
        try:
            stage = stage_of(file)
        except UserError as error:
            problems.append(f"{error}.")
            continue
        if stage in found:  # a feature network makes no images
            found[stage][str(path.relative_to(folder))] = file
    for stage, files in found.items():
        usual_name = STAGES[stage].weights_file

        def order(name: str, usual_name=usual_name) -> tuple:
            path = folder / name
            return path.parent.name != "pretrained", path.name != usual_name, path

        found[stage] = {name: files[name] for name in sorted(files, key=order)}
    return found, sorted(problems)


def files_below(folder: Path) -> Iterator[tuple[Path, File]]:
    """Every `.safetensors` file really below the folder. Files may come and go meanwhile."""
    for parent, _, names in os.walk(folder):
        for path in (Path(parent, name) for name in names if name.endswith(".safetensors")):
            try:
                status = path.stat()
                inside = path.resolve().is_relative_to(folder.resolve())
            except OSError:  # gone again
                continue
            if inside:
                yield path, File(str(from_here(path)), status.st_size, status.st_mtime_ns, status.st_ctime_ns)


@st.cache_data(max_entries=10_000, show_spinner=False)
def stage_of(file: File) -> str:
    """The stage that the file's header names. Raises UserError for a file that is no checkpoint."""
    return load_header(file.path)["stage"]


@st.cache_resource(max_entries=12, show_spinner="Loading the models")
def load_model(file: File) -> Checkpoint:
    """The model in a file: the one that is in memory, wherever someone still uses it."""
    models = models_in_memory()
    checkpoint = models.get(file) or load_checkpoint(file.path, choose_device("auto"))
    models[file] = checkpoint
    return checkpoint


@st.cache_resource(show_spinner=False)
def models_in_memory() -> WeakValueDictionary:
    """By file, those that the cache has given up, too, as long as a visitor has them."""
    return WeakValueDictionary()


def choose_file(label: str, files: dict[str, File], key: str) -> File:
    """One of the files, by its name in the list: a browser cannot send a path."""
    return files[st.selectbox(label, list(files), key=key)]


def with_guide(teacher: Checkpoint, file: File, teachers: dict[str, File]) -> Checkpoint:
    """The teacher with the weaker network that guides it, if one is chosen: by default the one beside it."""
    guides = {name: other for name, other in teachers.items() if other != file}
    options = [NO_GUIDE, *guides]
    beside = guide_beside(file.path)
    default = next((name for name, other in guides.items() if beside and other.path == str(beside)), NO_GUIDE)
    name = st.selectbox(
        "Guide of the teacher",
        options,
        index=options.index(default),
        key=f"guide_of_{file.path}",
        help="A weaker teacher, such as an early snapshot, to be guided away from (autoguidance).",
    )
    return teacher if name == NO_GUIDE else teacher.guided_by(load_model(guides[name]))


def identities(models: dict[str, Checkpoint]) -> list[str]:
    """What tells these models and the guide from others: their files' places and contents."""
    guides = [model.guide for model in models.values() if model.guide]
    return [f"{model.path} {model.sha256}" for model in (*models.values(), *guides)]


def from_here(path: Path) -> Path:
    """The path as one would type it in the folder that the app was started from."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
