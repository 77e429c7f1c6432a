"""Model checkpoints: one `.safetensors` file with the fp32 weights, and in its header everything that explains them."""

import hashlib
import json
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load, save
from torch import nn

from common import __version__
from common.class_turns import class_turns
from common.classifier import Classifier, ClassifierConfig
from common.errors import UserError
from common.files import atomic_write, canonical_json, readable
from common.memory import is_lack_of_memory
from common.sampling import AUTOGUIDED, CLASSIFIER_FREE, UNGUIDED, SamplingSettings
from common.stages import FEATURE_NETWORK, STAGES
from common.unet import UNet, UNetConfig, without_retired_options

FORMAT = "rectified-flow-distillation/1"
GUIDE_NAME = "guide.safetensors"
"""The weaker network that a teacher is guided by, where it lies beside the teacher."""


@dataclass(frozen=True)
class Checkpoint:
    """A model in evaluation mode with its header. `sha256` names the file's content."""

    model: UNet
    header: dict
    path: Path
    sha256: str
    guide: "Checkpoint | None" = None
    """The weaker network of autoguidance; a file, and bytes, of its own."""

    @property
    def stage(self) -> str:
        return self.header["stage"]

    @property
    def class_names(self) -> list[str]:
        return self.header["class_names"]

    @property
    def class_turns(self) -> list[int]:
        """The classes that samples take in turn, each as often as among the training images; none without classes."""
        return class_turns(self.header.get("class_counts", [1] * len(self.class_names))) if self.class_names else []

    @property
    def is_student(self) -> bool:
        return STAGES[self.stage].num_steps is not None

    @property
    def settings(self) -> SamplingSettings:
        """How a student is run, or how a teacher is run by default.

        Without a guide, a teacher of noise pairs (reflow) is not guided: the images that it learned from are, where
        guidance was wanted. Nor is one of a single class, which would be pushed away from itself.
        """
        if self.is_student:
            return student_settings(self.stage)
        if self.guide:
            return AUTOGUIDED
        has_use = len(self.class_names) > 1 and "pairs" not in self.header
        return CLASSIFIER_FREE if self.supports_guidance and has_use else UNGUIDED

    @property
    def guide_model(self) -> UNet | None:
        return self.guide.model if self.guide else None

    def can_be_guided_by(self, guide: "Checkpoint") -> bool:
        """Whether the other one is a teacher, too, that makes the same kind of image."""
        ours, theirs = ((model.class_names, model.model.config.image_shape) for model in (self, guide))
        return not guide.is_student and ours == theirs

    def guided_by(self, guide: "Checkpoint") -> "Checkpoint":
        """This model with a guide. Raises UserError for a guide that does not make the same kind of image."""
        if not self.can_be_guided_by(guide):
            raise UserError(f"{guide.path} cannot guide {self.path}: it must be a teacher of the same classes and size")
        return replace(self, guide=guide)

    @property
    def supports_guidance(self) -> bool:
        """Classifier-free guidance needs a network that was also trained without labels."""
        return self.stage == "teacher" and bool(self.class_names) and self.header["arguments"]["label_dropout"] > 0


def guide_beside(path: str | Path) -> Path | None:
    """The guide that lies beside a teacher, if there is one."""
    guide = Path(path).with_name(GUIDE_NAME)
    return guide if guide.is_file() and Path(path).name != GUIDE_NAME else None


def student_settings(stage: str) -> SamplingSettings:
    """How a student makes images: by one step of Euler, x1 = x0 + u(x0, 0), or by four of equal length."""
    return SamplingSettings(solver="euler", num_steps=STAGES[stage].num_steps)


def save_checkpoint(path: str | Path, model: nn.Module, header: dict) -> None:
    """Writes weights and header atomically. Equal weights and headers give equal bytes.

    `header`: `stage`, `class_names`, `arguments` and `step`, and what else the stage wants to keep, as JSON values.
    """
    header = {"format": FORMAT, "config": model.config.to_dict(), **header}
    weights = {name: tensor.detach().cpu().float().contiguous() for name, tensor in model.state_dict().items()}
    with atomic_write(path) as temporary:
        temporary.write_bytes(save(weights, metadata={"header": canonical_json(header)}))


def load_checkpoint(path: str | Path, device: torch.device | str = "cpu") -> Checkpoint:
    """Rebuilds a model from its file alone, strictly, on `device`, in evaluation mode and channels-last.

    Raises UserError for a file that is missing, damaged, or not one of this project's checkpoints.
    """
    content, header = _read(path)
    if header["stage"] == FEATURE_NETWORK:
        raise UserError(f"{path} is a feature network: it looks at images, and makes none")
    model = _rebuild(path, content, lambda config: UNet(UNetConfig(**without_retired_options(config))), header)
    if not _is_consistent(header, model.config):
        raise UserError(f"the header of {path} is incomplete, or contradicts itself")
    if "step_times" in header:  # written by an earlier version: sampled in equal steps, it would be another model
        raise UserError(f"{path} is a student whose steps differ in length: this version takes equal steps only")
    return Checkpoint(prepare(model, device).eval(), header, Path(path), hashlib.sha256(content).hexdigest())


def load_feature_network(path: str | Path, device: torch.device | str = "cpu") -> tuple[Classifier, dict, str]:
    """The network, rebuilt as by `load_checkpoint` and frozen, its header, and the SHA-256 of the file."""
    content, header = _read(path)
    if header["stage"] != FEATURE_NETWORK:
        raise UserError(f"{path} is no feature network: feature_network.py trains one")
    model = _rebuild(path, content, lambda config: Classifier(ClassifierConfig(**config)), header)
    return prepare(model, device).eval().requires_grad_(False), header, hashlib.sha256(content).hexdigest()


def _read(path: str | Path) -> tuple[bytes, dict]:
    """A whole checkpoint and its header, read once: a run that saves puts another file in its place."""
    scripts = {stage.weights_file: stage.script for stage in STAGES.values()}
    scripts[f"{FEATURE_NETWORK}.safetensors"] = f"{FEATURE_NETWORK}.py"
    script = scripts.get(Path(path).name)
    if script and not Path(path).exists():
        raise UserError(f"there is no checkpoint at {path}: {script} makes one")
    with readable(path, "checkpoint") as path:
        content = path.read_bytes()
        header = _header_in(content)
    return content, _known(path, header)


def _rebuild(path: str | Path, content: bytes, network_of: Callable[[dict], nn.Module], header: dict) -> nn.Module:
    with readable(path, "checkpoint"):
        weights = load(content)
    try:
        model = network_of(header["config"])
        model.load_state_dict(weights, strict=True)
    except (KeyError, TypeError, ValueError, RuntimeError, ArithmeticError, AttributeError) as error:
        if is_lack_of_memory(error):
            raise
        raise UserError(f"the weights in {path} do not fit the network that its header describes") from None
    return model


def _is_consistent(header: dict, config: UNetConfig) -> bool:
    """Whether the header names the network's classes, and a teacher's says how often it was trained without them."""
    names, arguments = header.get("class_names"), header.get("arguments")
    if not isinstance(names, list) or not isinstance(arguments, dict):
        return False
    if len(names) != config.num_classes or not all(isinstance(name, str) for name in names):
        return False
    return header["stage"] != "teacher" or isinstance(arguments.get("label_dropout"), (int, float))


def load_header(path: str | Path) -> dict:
    """What a checkpoint says of itself, without its weights. Raises UserError as `load_checkpoint` does."""
    with readable(path, "checkpoint"), safe_open(path, framework="pt") as file:  # which refuses one that was cut short
        header = json.loads((file.metadata() or {}).get("header", "{}"))
    return _known(path, header)


def _known(path: str | Path, header: dict) -> dict:
    known = (*STAGES, FEATURE_NETWORK)
    if not isinstance(header, dict) or header.get("format") != FORMAT or header.get("stage") not in known:
        raise UserError(f"{path} is not a checkpoint of this project (its header does not say {FORMAT})")
    return header


def load_initial_weights(model: UNet, path: str | Path) -> dict:
    """Starts `model` from the weights of a checkpoint. Returns what the new header keeps of them.

    Raises UserError where their architectures differ.
    """
    initial = load_checkpoint(path)
    if initial.model.config != model.config:
        raise UserError(f"the weights in {path} are of another network: {initial.model.config}, not {model.config}")
    model.load_state_dict(initial.model.state_dict())
    return initial_header(initial)


def initial_header(initial: Checkpoint) -> dict:
    """What the header of a model keeps of the weights that it started from: all that they say."""
    return {"initial": {"sha256": initial.sha256, **initial.header}, "initial_flop": initial.header["training_flop"]}


def _header_in(content: bytes) -> dict:
    """Of the safetensors format: eight bytes that are the length of a JSON text, then this text."""
    length = int.from_bytes(content[:8], "little")
    metadata = json.loads(content[8 : 8 + length]).get("__metadata__", {})
    return json.loads(metadata.get("header", "{}"))


def prepare(model: nn.Module, device: torch.device | str) -> nn.Module:
    return model.to(device=device, memory_format=torch.channels_last)


@cache
def code_version() -> str:
    """The package's version and, where the code runs from a repository, the git commit, and whether it was changed."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        commit = git("rev-parse", "--short", "HEAD")
        changes = git("--no-optional-locks", "status", "--porcelain", "--untracked-files=no", "--", ":/*.py")
    except (OSError, subprocess.SubprocessError):
        return __version__
    return f"{__version__}+{commit}{'.changed' * bool(changes)}"
