"""Every command in the README and in docs/training.md runs, and the README's file tree is the folder's."""

import argparse
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import ROOT, SMALL_CONFIG

from benchmarks.card_commands import arguments_of, blocks_of, commands_of
from common import presets
from common.checkpoint import load_header
from common.classifier import ClassifierConfig
from common.distillation_arguments import USUAL_FEATURE_NETWORK
from common.lineage import feature_networks, lineage
from common.presets import classifier_of, network_of
from common.stages import FEATURE_NETWORK, STAGES
from common.unet import UNetConfig, without_retired_options

README = (ROOT / "README.md").read_text(encoding="utf-8")
TRAINING = (ROOT / "docs/training.md").read_text(encoding="utf-8")  # whose commands go on from the README's
NOT_RUN = "<!-- parsed by the tests, not run -->\n"

SMOKE = {
    "generate_noise_dataset.py": ("--num-pairs", 20, "--num-steps", 4),
    "sample.py": ("--num-images", 2),
}
"""Appended to a README command, so that it takes seconds; the last value of an option counts."""

SMOKE_TRAINING = ("--warmup-steps", 0, "--batch-size", 8, "--evaluate-every", 2, "--max-minutes", 1)


def readme_commands(marked_not_run: bool) -> list[list[str]]:
    commands = []
    for marker, block in re.findall(rf"({re.escape(NOT_RUN)})?```bash\n(.*?)```", README + TRAINING, flags=re.DOTALL):
        if bool(marker) == marked_not_run:
            commands += commands_of(block)
    return commands


def smoke_arguments(script: str, arguments: list[str]) -> tuple:
    if script == "compute_fid.py":
        count = 2 if "samples/one_step.npz" in arguments else 18  # of 16 features
        few = ("--sweep", "1,2") if "--sweep" in arguments else ("--num-steps", 3) if "teacher" in arguments[0] else ()
        return ("--num-samples", count, *few, "--reference", "data/train", "--inception-weights", "inception.pth")
    if script == "finish_student.py":  # the Fréchet critic starts after thousands of images
        return (*SMOKE_TRAINING, "--steps", 2, "--decay-steps", 0, "--critic", "adversarial")
    if "dopri5" in arguments:
        return ("--num-images", 1)
    if script in SMOKE:
        return SMOKE[script]
    images = ()
    on_images = script in ("teacher_rectified_flow.py", "feature_network.py")
    if on_images and not {"--data", "--pairs"} & set(arguments):
        images = ("--data", "folder", "--data-dir", "data/train")  # nothing is downloaded
    if "--branch-from" in arguments:
        return (*images, *SMOKE_TRAINING, "--steps", 3, "--decay-steps", 1)
    return (*images, *SMOKE_TRAINING, "--steps", 2, "--decay-steps", 0)


def test_every_command_runs(run_script, image_folder, random_inception, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(presets.NETWORKS, "cpu", replace(SMALL_CONFIG, skips="added"))  # what is shipped keeps its own
    shutil.copytree(image_folder, tmp_path / "data" / "train")
    shutil.copytree(ROOT / "checkpoints" / "pretrained", tmp_path / "checkpoints" / "pretrained")
    seen = set()
    for command in readme_commands(marked_not_run=False):
        if command[0] == "python":
            script, *arguments = command[1:]
            seen.add(script)
            result = run_script(script, *arguments, *smoke_arguments(script, arguments))
            assert result.status == 0, (command, result.err)
        elif command[0] == "cp":
            snapshot, guide = command[1:]
            run, snapshots = Path(guide).parent, Path(snapshot).parent
            assert snapshots == run / "snapshots"
            shutil.copy(run / "teacher.safetensors", guide)  # a run of two steps has no snapshot
        elif command[0] == "make":
            dry_run(*command[1:])
        else:
            # The app has tests of its own; the environment is the one that this runs in.
            assert command in (["streamlit", "run", "app.py"], ["source", ".venv/bin/activate"])
    assert seen == {path.name for path in ROOT.glob("*.py")} - {"app.py"}


def test_the_models_can_be_used_from_python_as_the_readme_says(monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    monkeypatch.chdir(ROOT)
    names: dict = {}
    exec(code, names)
    assert names["images"].shape == (64, 3, 32, 32) and names["images"].dtype == torch.uint8
    assert names["frogs"].labels.tolist() == [6] * 8
    assert (names["frogs"].network_calls, names["frogs"].guide_calls) == (33, 13)


def dry_run(*targets: str) -> str:
    """What make would do. Under `make test` the variables of the outer make would add lines of their own."""
    environment = {
        name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")
    }
    command = ["make", "--dry-run", "--no-print-directory", *targets]
    return subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True).stdout


def test_every_step_of_the_demo_runs(run_script, tmp_path, monkeypatch):
    """`make demo` itself takes minutes: here are its commands, in order, at smoke scale."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("common.data.SHAPES_COUNT", 200)
    recipe = dry_run("demo")
    lines = recipe[recipe.index(".venv/bin/python teacher_rectified_flow.py") :].replace("\\\n", " ").splitlines()
    results = []
    for program, *arguments in map(shlex.split, lines):
        if program == ".venv/bin/python":
            script, *arguments = arguments
            results.append(run_script(script, *arguments, *smoke_arguments(script, arguments)))
            assert results[-1].status == 0, results[-1].err
        else:
            subprocess.run([program, *arguments], check=True)
    assert [name in results[-1].out for name in ("teacher", "four-step student", "one-step student")] == [True] * 3
    assert (tmp_path / "demo" / "comparison.png").is_file()


def test_the_model_card_s_commands_are_those_that_made_the_shipped_models():
    folder = ROOT / "checkpoints" / "pretrained"
    card = (folder / "README.md").read_text(encoding="utf-8")
    bash = [block for language, block in blocks_of(card) if language == "bash"]
    commands = [
        (script, arguments_of(script, arguments)) for block in bash for _, script, *arguments in commands_of(block)
    ]
    for path in folder.rglob("*.safetensors"):
        for header in lineage(load_header(path)):
            script = script_behind(header)
            assert any(script == name and made_by(header, args) for name, args in commands), (path.name, script)


def script_behind(header: dict) -> str:
    """Which script has trained a checkpoint."""
    if header["stage"] == FEATURE_NETWORK:
        return "feature_network.py"
    return "finish_student.py" if "critic" in header["arguments"] else STAGES[header["stage"]].script


def made_by(header: dict, args: argparse.Namespace) -> bool:
    """Whether these arguments, but for paths, are those that a checkpoint's header says it was trained with."""
    said = header["arguments"]
    # What --preset and --network chose is compared by the other arguments, and by the network.
    given = {name: value for name, value in vars(args).items() if not isinstance(value, Path)}
    names = given.keys() & said.keys() - {"preset", "network", "feature_network"}
    if any(said[name] != given[name] for name in names) or header["step"] != args.steps:
        return False
    if networks := feature_networks(header):
        return len(networks) == len(args.feature_network or [USUAL_FEATURE_NETWORK])
    if header["stage"] == "teacher":
        config = UNetConfig(**without_retired_options(header["config"]))
        return config == replace(network_of(args.preset, args.network), num_classes=10)
    if header["stage"] == FEATURE_NETWORK:
        return ClassifierConfig(**header["config"]) == classifier_of(10, args.network)
    return True


def test_the_comparison_shows_as_many_images_as_its_command_says():
    (command,) = [
        command for command in readme_commands(marked_not_run=False) if {"--compare", "--num-images"} <= set(command)
    ]
    assert f": {command[command.index('--num-images') + 1]} images of each model" in README


def test_commands_that_want_a_gpu_or_the_shipped_models_images_parse(monkeypatch):
    commands = readme_commands(marked_not_run=True)
    assert len(commands) == 6 and commands[1][0] == "cp"
    for python, script, *arguments in (command for command in commands if command[0] != "cp"):
        assert python == "python"
        if script == "-m":
            module, *arguments = arguments
            script = f"{module.replace('.', '/')}.py"
        monkeypatch.setattr(sys, "argv", [script, *arguments])
        args = runpy.run_path(str(ROOT / script))["parse_args"]()
        assert args.device == "auto"


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="the tree is that of what git tracks")
def test_the_file_tree_is_that_of_the_folder():
    tree = re.search(r"## Files\n\n```\n(.*?)```", README, flags=re.DOTALL)[1]
    top = {line.split()[0].rstrip("/") for line in tree.splitlines() if not line.startswith(" ")}
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    folders = {name.split("/")[0] for name in tracked if "/" in name} - {".ci", ".streamlit", "checkpoints"}
    files = {name for name in tracked if "/" not in name} - {"README.md", ".gitignore"}
    assert top == files | folders | {"checkpoints/pretrained"}


PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), ROOT / "checkpoints/pretrained/README.md"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_pictures_and_local_links_exist(page):
    for link, anchor in re.findall(r"\]\((?!http)([^)#]*)#?([^)]*)\)", page.read_text(encoding="utf-8")):
        target = page.parent / link if link else page
        assert target.is_file(), link
        assert not anchor or anchor in anchors_of(target), f"{link}#{anchor}"


def anchors_of(page: Path) -> set[str]:
    """Those of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_readme_has_pictures_and_leads_to_the_other_pages():
    linked = set(re.findall(r"\]\((?!http)([^)#]+)", README))
    pages = {str(page.relative_to(ROOT)) for page in PAGES} - {"README.md"}
    assert pages <= linked and len([link for link in linked if link.endswith(".png")]) > 2
