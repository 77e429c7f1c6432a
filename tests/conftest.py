"""Small models and data that the tests share, and a way to run a stage script as its user does."""

import json
import os
import re
import runpy
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from streamlit.testing.v1 import AppTest
from torch_fidelity.feature_extractor_inceptionv3 import BasicConv2d

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from common import previews, shapes, training  # noqa: E402
from common.checkpoint import save_checkpoint  # noqa: E402
from common.classifier import Classifier, ClassifierConfig  # noqa: E402
from common.device import Precision, choose_device, choose_precision  # noqa: E402
from common.files import sha256  # noqa: E402
from common.pairs import PairSet  # noqa: E402
from common.sampling import CLASSIFIER_FREE  # noqa: E402
from common.unet import UNet, UNetConfig  # noqa: E402

pytest_plugins = ["runs"]

EULER = ("--solver", "euler", "--num-steps", 2)
"""The fewest steps that a teacher's sampler is tested with."""
SMALL_CONFIG = UNetConfig(widths=(16, 16), head_width=16, embedding_width=16, num_classes=10)
TINIEST_CONFIG = replace(SMALL_CONFIG, patch_size=4, widths=(16,), attention_levels=())
"""For the app, whose first page always draws with all of the teacher's steps."""


@dataclass
class Result:
    status: int
    out: str
    err: str

    @property
    def error_line(self) -> str:
        """What the user was told, when it was told as it should be: in one line, without a traceback."""
        lines = [line for line in re.split(r"[\r\n]+", self.err) if "error: " in line]
        assert self.status not in (0, None), "the script did not fail"
        assert len(lines) == 1, self.err
        assert "Traceback" not in self.err
        return lines[0]


@pytest.fixture
def run_script(capsys, monkeypatch):
    """run_script("sample.py", "--seed", 1): runs a script through its command line, in this process."""

    def run(name: str, *arguments) -> Result:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        capsys.readouterr()
        status = 0
        try:
            runpy.run_path(str(ROOT / name), run_name="__main__")
        except SystemExit as stop:
            status = stop.code or 0
        captured = capsys.readouterr()
        return Result(status, captured.out, captured.err)

    return run


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Small networks run faster on one thread, and the same on every machine."""
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(scope="session", autouse=True)
def plain_pictures():
    """What would be most of the time of a training run of a few steps: its preview, and the curve of its loss.

    A row of images in four steps, and a picture that holds the records but shows nothing; `runs.pipeline` has a curve.
    """
    draw_blocks = previews.draw_blocks

    def few_steps(network, seed, start, count, classes, settings, **how):
        fewer = replace(settings, num_steps=min(settings.num_steps, 4))
        return draw_blocks(network, seed, start, count, classes, fewer, **how)

    def empty_curve(records, path, title):
        text = PngInfo()
        text.add_text("Description", json.dumps([title, records]))
        Image.new("1", (1, 1)).save(path, format="PNG", pnginfo=text)

    previews.ROWS, previews.draw_blocks, training.draw_loss_curve = 1, few_steps, empty_curve


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory) -> Path:
    """200 drawn shapes as PNG files in ten class folders."""
    folder = tmp_path_factory.mktemp("data") / "shapes"
    images, labels = shapes.draw_shapes(200, 32, seed=5)
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = folder / shapes.CLASS_NAMES[label] / f"{index:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.transpose(1, 2, 0)).save(path)
    return folder


def app_precision() -> Precision:
    """In which the app draws on this machine."""
    return choose_precision("auto", choose_device("auto"))


def random_network(config: UNetConfig = SMALL_CONFIG, seed: int = 0) -> UNet:
    """A network whose output is not zero: its zero-initialised layers are made random."""
    torch.manual_seed(seed)
    model = UNet(config)
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    return model.eval()


@pytest.fixture
def make_teacher(tmp_path):
    """make_teacher(seed=0, config=..., label_dropout=0.1): writes an untrained teacher and returns its path."""

    def make(seed: int = 0, config: UNetConfig = SMALL_CONFIG, label_dropout: float = 0.1) -> Path:
        path = tmp_path / f"teacher_{seed}_{config.num_classes}_{label_dropout}" / "teacher.safetensors"
        save_model(path, "teacher", seed, config, arguments={"label_dropout": label_dropout})
        return path

    return make


def save_model(path: Path, stage: str, seed: int, config: UNetConfig = SMALL_CONFIG, **header) -> None:
    """An untrained checkpoint; `header` has what the stage adds."""
    constant = {"step": 0, "training_flop": 0, "images_seen": 0, "code_version": "test"}
    header = {"stage": stage, "class_names": shapes.CLASS_NAMES[: config.num_classes], **constant, **header}
    save_checkpoint(path, random_network(config, seed), header)


def save_feature_network(path: Path, widths: tuple[int, ...] = (8, 16, 16), training_flop: int = 0) -> Classifier:
    """An untrained feature network, also written to `path`."""
    torch.manual_seed(1)
    network = Classifier(ClassifierConfig(num_classes=10, widths=widths)).eval()
    save_checkpoint(path, network, {"stage": "feature_network", "training_flop": training_flop})
    return network


def save_students(
    folder: Path, teacher: Path, config: UNetConfig = SMALL_CONFIG, pairs: Path | None = None, seed: int = 1
) -> None:
    """Untrained students of a teacher, as if of its pairs, under the names that the stages give them.

    Where there are no pairs: as if of some that the teacher made by its default settings.
    """
    header = {"arguments": {"label_dropout": 0.1}, "teacher": sha256(teacher)}
    if pairs:
        header |= PairSet(pairs, torch.device("cpu")).description
    else:
        header |= {"pairs": {"sampling": CLASSIFIER_FREE.to_dict(), "guide": None}}
    save_model(folder / "student.safetensors", "one_step", seed, config, **header)
    save_model(folder / "four_step.safetensors", "four_step", seed + 1, config, **header)


def write_models(folder: Path, config: UNetConfig = TINIEST_CONFIG) -> Path:
    """An untrained teacher and untrained students of it."""
    teacher = folder / "teacher.safetensors"
    save_model(teacher, "teacher", 0, config, arguments={"label_dropout": 0.1})
    save_students(folder, teacher, config)
    return folder


@pytest.fixture
def model_folder(tmp_path) -> Path:
    """A folder like checkpoints/, with untrained models in pretrained/."""
    return write_models(tmp_path / "checkpoints" / "pretrained").parent


@pytest.fixture
def open_app(monkeypatch, model_folder):
    """open_app(page="compare", folder=checkpoints of tiny untrained models): the app at a page."""

    def run(page="compare", folder=model_folder) -> AppTest:
        monkeypatch.setattr(sys, "argv", ["app.py", str(folder)])
        monkeypatch.setattr("app_pages.pictures.SHOWN_WIDTH", 1)  # the tests in a browser look at enlarged ones
        app = AppTest.from_file(str(ROOT / "app.py"), default_timeout=60)
        if page != "compare":
            app.switch_page(f"app_pages/{page}.py")
        app.run()
        assert not app.exception
        return app

    return run


class RandomInception(torch.nn.Module):
    """Stands in for torch-fidelity's Inception: the same interface and layers, small, with random weights."""

    FEATURE_COUNT = 16

    def __init__(self, name, features_list, feature_extractor_weights_path):
        super().__init__()
        self.first = BasicConv2d(3, 12, kernel_size=3, stride=2)
        self.second = BasicConv2d(12, self.FEATURE_COUNT, kernel_size=3, stride=2)
        self.fc = torch.nn.Linear(self.FEATURE_COUNT, 10)
        if feature_extractor_weights_path is not None:
            self.load_state_dict(torch.load(feature_extractor_weights_path, weights_only=False))
        self.eval()

    def forward(self, images):
        assert images.dtype == torch.uint8
        return (self.second(self.first(images / 128 - 1)).amax((2, 3)),)


@pytest.fixture
def random_inception(tmp_path, monkeypatch) -> Path:
    """Makes every script use a small random network in the place of Inception; the path of its weights."""
    monkeypatch.setattr("common.inception.FeatureExtractorInceptionV3", RandomInception)
    monkeypatch.setattr("common.inception.FEATURE_COUNT", RandomInception.FEATURE_COUNT)
    monkeypatch.setattr("common.feature_store.FEATURE_COUNT", RandomInception.FEATURE_COUNT)
    return save_random_inception(tmp_path / "inception.pth")


def save_random_inception(path: Path, with_classifier: bool = False) -> Path:
    torch.manual_seed(0)
    network = RandomInception("", ["2048"], None)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # folding must matter
            torch.nn.init.uniform_(module.running_mean, -0.5, 0.5)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
            torch.nn.init.uniform_(module.bias, -0.5, 0.5)
    if not with_classifier:
        torch.nn.init.zeros_(network.fc.weight)
    torch.save(network.state_dict(), path)
    return path


def folder_contents(folder: Path) -> dict[str, bytes]:
    """Every file and folder below a folder, to show that a refused command left all of them as they were."""
    contents = {path: path.read_bytes() if path.is_file() else b"" for path in sorted(folder.rglob("*"))}
    return {str(path.relative_to(folder)): content for path, content in contents.items()}


@pytest.fixture
def compute_fid(run_script, random_inception, image_folder, tmp_path):
    """compute_fid(inputs and options ...): against the folder of drawn shapes, results in results.jsonl."""

    def run(*arguments, reference=image_folder):
        defaults = ("--num-samples", 40, "--reference", reference, "--inception-weights", random_inception)
        files = ("--features", tmp_path / "features", "--output", tmp_path / "results.jsonl")
        return run_script("compute_fid.py", *defaults, *files, *arguments)

    return run


@pytest.fixture
def results(tmp_path):
    return lambda: [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
