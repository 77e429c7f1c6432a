"""Every script through its command line: what it writes, and that bad input is one clear line and changes nothing."""

import argparse
import json
import runpy
import shutil
import sys
from dataclasses import replace

import pytest
import torch
from conftest import ROOT, folder_contents
from PIL import Image

from common.checkpoint import load_checkpoint
from common.command_line import run
from common.noise import derive_seed
from common.pairs import PairSet
from common.presets import NETWORKS
from common.sampling import draw
from common.unet import UNet

SHORT = (
    "--steps",
    6,
    "--warmup-steps",
    1,
    "--decay-steps",
    2,
    "--batch-size",
    8,
    "--evaluate-every",
    3,
    "--log-every",
    2,
)
TRAINING_SCRIPTS = ("teacher_rectified_flow.py", "distill_student.py", "four_step_student.py")
PARSERS = sorted(
    str(path.relative_to(ROOT))
    for path in (*ROOT.glob("*.py"), *ROOT.glob("benchmarks/*.py"))
    if "def parse_args" in path.read_text()
)
"""Every file with a command line."""
UNMOVED = ("--steps", 1, "--warmup-steps", 0, "--decay-steps", 0, "--learning-rate", 1e-12)
"""After SHORT: a run whose weights are still those that it began with."""


@pytest.fixture(scope="module")
def finished_pipeline():
    """The folder of the pipeline, once it has run."""
    return {}


@pytest.fixture
def pipeline(finished_pipeline, run_script, image_folder, tmp_path, tmp_path_factory, monkeypatch):
    """All four stages in a row, connected by the default paths, with the test's folder as the working folder."""
    if not finished_pipeline:
        folder = tmp_path_factory.mktemp("pipeline")
        monkeypatch.chdir(folder)
        data = ("--preset", "tiny", "--data", "folder", "--data-dir", image_folder)
        results = [
            run_script("teacher_rectified_flow.py", *data, *SHORT),
            run_script("generate_noise_dataset.py", "--num-pairs", 40, "--num-steps", 4),
            run_script("distill_student.py", *SHORT),
            run_script("four_step_student.py", *SHORT),
        ]
        for result in results:
            assert result.status == 0, result.err
        finished_pipeline["folder"] = folder
    shutil.copytree(finished_pipeline["folder"], tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def assert_same_weights(first: UNet, second: UNet) -> None:
    for name, value in second.state_dict().items():
        torch.testing.assert_close(first.state_dict()[name], value, atol=1e-9, rtol=0)


def weights_differ(first: UNet, second: UNet) -> bool:
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    return any(not torch.allclose(one, other, atol=1e-6) for one, other in pairs)


MODELS = (
    "checkpoints/teacher/teacher.safetensors",
    "checkpoints/four_step/four_step.safetensors",
    "checkpoints/one_step/student.safetensors",
)


def test_the_four_stages_and_the_comparison(pipeline, run_script):
    for folder in ("teacher", "one_step", "four_step"):
        run = pipeline / "checkpoints" / folder
        records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert [record["step"] for record in records if "loss" in record] == [2, 4, 6]
        assert {"held_out_loss", "held_out_error"} & set().union(*records)
        assert records[-1]["training_flop"] > 0 and records[-1]["seconds"] > 0
        for picture in ("loss.png", "previews/step_0000003.png", "previews/step_0000006.png"):
            assert Image.open(run / picture).size[0] > 100
        assert list((run / "tensorboard").iterdir())

    teacher, four_step, one_step = (load_checkpoint(path) for path in MODELS)
    assert (teacher.stage, four_step.stage, one_step.stage) == ("teacher", "four_step", "one_step")
    assert one_step.header["teacher"] == four_step.header["teacher"] == teacher.sha256
    assert one_step.header["pairs"]["sampling"]["num_steps"] == 4
    for checkpoint in (teacher, four_step, one_step):
        header = checkpoint.header
        assert header["step"] == 6 and header["images_seen"] == 48 and header["training_flop"] > 1e9
        assert header["class_names"][0] == "circle" and header["code_version"]

    result = run_script("sample.py", "--compare", *MODELS, "--out", "figure.png", "--num-images", 20)
    assert result.status == 0
    table = [line.split() for line in result.out.splitlines()[2:5]]
    assert [row[0] for row in table] == ["teacher", "four-step", "one-step"]
    # Four evaluations of Adams, three of them guided.
    assert "7" in table[0] and "4" in table[1] and "1" in table[2]
    assert Image.open("figure.png").size[0] > 1000


def test_the_held_out_report_is_that_of_its_definition(pipeline, run_script):
    report = run_script("distill_student.py", *SHORT).out
    student = load_checkpoint(MODELS[2])
    pairs = PairSet(pipeline / "noise_pairs", torch.device("cpu")).held_out()
    images = draw(student.model, pairs.noise, pairs.labels, student.settings).images
    zero = torch.zeros(len(pairs))
    with torch.no_grad():
        expected = pairs.noise + student.model(pairs.noise, zero, pairs.labels)
    torch.testing.assert_close(images, expected, atol=1e-5, rtol=1e-4)
    error = (expected - pairs.image).square().mean().item()
    printed = next(line for line in report.splitlines() if "student, 1 step" in line)
    assert float(printed.split()[3]) == pytest.approx(error, rel=0.02)
    assert "teacher, euler 2, CFG 2" in report


def test_unconditional_training(run_script, image_folder, tmp_path):
    data = ("--preset", "tiny", "--data", "folder", "--data-dir", image_folder, "--unconditional")
    assert run_script("teacher_rectified_flow.py", *data, *SHORT, "--out", tmp_path / "run").status == 0
    assert load_checkpoint(tmp_path / "run" / "teacher.safetensors").class_names == []


def test_reflow_starts_from_the_teacher(pipeline, run_script):
    arguments = ("--preset", "tiny", "--pairs", "noise_pairs", "--time-distribution", "u-shaped", "--init", MODELS[0])
    assert run_script("teacher_rectified_flow.py", *arguments, *SHORT, "--out", "reflow").status == 0
    first = load_checkpoint("reflow/teacher.safetensors")
    teacher = load_checkpoint(MODELS[0])
    assert first.header["class_names"] == teacher.class_names
    # Both made as many steps of the same network: what the first cost is part of what the second did.
    assert first.header["training_flop"] == 2 * teacher.header["training_flop"]
    assert first.header["initial"]["sha256"] == teacher.sha256
    assert (teacher.settings.guidance_scale, first.settings.guidance_scale) == (2, 1)  # its images are guided already
    assert first.supports_guidance


def test_a_student_of_another_network_begins_with_new_weights(pipeline, run_script, monkeypatch):
    """Of a network of the same shapes, into which the teacher's weights would fit."""
    other = replace(NETWORKS["tiny"], head_width=8)
    monkeypatch.setitem(NETWORKS, "cpu", other)
    network = ("--student-network", "cpu")
    assert run_script("distill_student.py", *SHORT, *UNMOVED, *network, "--out", "s").status == 0
    student, teacher = load_checkpoint("s/student.safetensors").model, load_checkpoint(MODELS[0]).model
    assert student.config == replace(other, num_classes=10) != teacher.config
    torch.manual_seed(derive_seed("weights", 0))
    assert_same_weights(student, UNet(student.config))
    assert weights_differ(student, teacher)


def test_a_student_can_start_from_a_checkpoint(pipeline, run_script):
    assert run_script("distill_student.py", *SHORT, "--loss", "pseudo-huber", "--out", "s").status == 0
    start = ("--init", "s/student.safetensors")
    assert run_script("four_step_student.py", *SHORT, *UNMOVED, *start, "--out", "f").status == 0
    first, second = load_checkpoint("s/student.safetensors"), load_checkpoint("f/four_step.safetensors")
    assert second.header["initial"]["sha256"] == first.sha256
    assert_same_weights(second.model, first.model)
    assert weights_differ(second.model, load_checkpoint(MODELS[0]).model)


def test_what_was_spent_on_a_student_s_first_weights_counts(pipeline, run_script):
    """Also where the run goes on without them. A teacher's weights, with which students start anyway, do not count."""

    def flop_of(*arguments) -> int:
        assert run_script("distill_student.py", *arguments, "--out", "s").status == 0
        return load_checkpoint("s/student.safetensors").header["training_flop"]

    one_step, four_step = (load_checkpoint(path).header["training_flop"] for path in (MODELS[2], MODELS[1]))
    half = ("--steps", 3, *SHORT[2:4], "--decay-steps", 0, *SHORT[6:])
    assert flop_of(*half, "--init", MODELS[1]) == four_step + one_step / 2
    assert flop_of(*SHORT) == four_step + one_step
    shutil.rmtree("s")
    assert flop_of(*SHORT, "--init", MODELS[0]) == one_step

    # After reflow the weights are a teacher's, too, and what it had cost before reflow is not the student's.
    reflow = ("--preset", "tiny", "--pairs", "noise_pairs", "--init", MODELS[0], "--out", "reflow", *SHORT)
    assert run_script("teacher_rectified_flow.py", *reflow).status == 0
    header = load_checkpoint("reflow/teacher.safetensors").header
    shutil.rmtree("s")
    spent = header["training_flop"] - header["initial_flop"]
    assert flop_of(*SHORT, "--init", "reflow/teacher.safetensors") == spent + one_step > one_step


def test_a_student_that_starts_from_its_teacher_keeps_its_weights_at_first(pipeline, run_script):
    assert run_script("distill_student.py", *SHORT, *UNMOVED, "--out", "s").status == 0
    assert_same_weights(load_checkpoint("s/student.safetensors").model, load_checkpoint(MODELS[0]).model)


@pytest.mark.parametrize("script", PARSERS)
def test_help_shows_every_default(script, monkeypatch):
    parsers = []
    monkeypatch.setattr(argparse.ArgumentParser, "print_help", lambda parser, file=None: parsers.append(parser))
    monkeypatch.setattr(sys, "argv", [script, "--help"])
    monkeypatch.setenv("COLUMNS", "1000")  # no default is broken over two lines
    with pytest.raises(SystemExit):
        runpy.run_path(str(ROOT / script))["parse_args"]()
    (parser,) = parsers
    assert "None" not in parser.format_help()
    for action in parser._actions:
        default = action.default
        if default is None or default is False or default in (argparse.SUPPRESS, [], {}):
            continue
        formatter = parser.formatter_class(parser.prog)
        formatter.add_argument(action)
        shown = " ".join(map(str, default)) if isinstance(default, list | tuple) else str(default)
        assert f"(default: {shown})" in formatter.format_help(), action.dest


BAD_NUMBERS = [
    *(
        (script, option, value)
        for script in TRAINING_SCRIPTS
        for option in ("--steps", "--batch-size")
        for value in (0, -3)
    ),
    *((script, "--learning-rate", value) for script in TRAINING_SCRIPTS for value in (0, -1, "nan", "inf", "fast")),
    ("teacher_rectified_flow.py", "--label-dropout", 1.5),
    ("teacher_rectified_flow.py", "--preset", "huge"),
    ("teacher_rectified_flow.py", "--val-fraction", -0.1),
    ("teacher_rectified_flow.py", "--network", "skips"),
    ("teacher_rectified_flow.py", "--network", "[]"),
    ("teacher_rectified_flow.py", "--network", '{"depth": 3}'),
    ("generate_noise_dataset.py", "--num-pairs", 0),
    ("generate_noise_dataset.py", "--num-steps", -4),
    ("generate_noise_dataset.py", "--seed", -1),
    ("sample.py", "--num-images", 0),
    ("sample.py", "--solver", "magic"),
]


@pytest.mark.parametrize(("script", "option", "value"), BAD_NUMBERS)
def test_impossible_values_are_refused_in_one_line(script, option, value, run_script, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run_script(script, *(["model.safetensors"] if script == "sample.py" else []), option, value)
    assert result.status == 2 and option in result.error_line
    assert not folder_contents(tmp_path)


def test_bad_input_is_one_line_and_changes_nothing(pipeline, run_script, make_teacher, image_folder):
    other = make_teacher(seed=9)
    (pipeline / "cut.safetensors").write_bytes((pipeline / MODELS[0]).read_bytes()[:2000])
    run_script("generate_noise_dataset.py", "--out", "short", "--num-pairs", 20, "--num-steps", 4, "--trajectory-times")
    run_script("generate_noise_dataset.py", "--out", "few", "--num-pairs", 5, "--num-steps", 4)
    run_script("generate_noise_dataset.py", "--out", "finer", "--num-pairs", 20, "--num-steps", 5)
    run_script("distill_student.py", "--pairs", "finer", "--out", "of_finer", *SHORT)
    (pipeline / "folder.png").mkdir()
    data = ("--preset", "tiny", "--data", "folder", "--data-dir")
    cases = [
        (("sample.py", "missing.safetensors"), "there is no checkpoint at missing.safetensors"),
        (("sample.py", "cut.safetensors"), "not a readable checkpoint"),
        (("sample.py", "noise_pairs/pairs_00000.pt"), "not a readable checkpoint"),
        (("sample.py", MODELS[0], "--classes", "unicorn"), "no class 'unicorn': choose from circle"),
        (("sample.py", MODELS[0], "--classes", 10), "no class '10'"),
        (("sample.py", MODELS[0], "--out", "picture.jpg"), "must end in .png or .npz"),
        (("sample.py", MODELS[0], "--out", "many.npz", "--enlarge", 4), "--enlarge is of a PNG grid"),
        (("sample.py", "--compare", *MODELS, "--enlarge", 4), "--enlarge is of a PNG grid"),
        (("sample.py", MODELS[0], "--out", "cut.safetensors/picture.png"), "cannot write"),
        (("sample.py", MODELS[0], "--out", "folder.png"), "cannot write folder.png"),
        (("sample.py", MODELS[0], "--guidance-interval", 0.9, 0.1), "guidance interval"),
        (("sample.py", MODELS[0], "--device", "cuda:99"), "no device"),
        (("sample.py", MODELS[2], "--num-steps", 9), "is a one_step student"),
        (("sample.py", "--compare", MODELS[0], "missing"), "there is no checkpoint"),
        (("sample.py", "--compare", *MODELS[1:], "--num-steps", 9), "is a four_step student"),
        (("sample.py", "--compare", *MODELS, "of_finer/student.safetensors"), "in another way"),
        (("compute_fid.py", *MODELS[1:], "--sweep", "1,2"), "--sweep needs a teacher"),
        (("compute_fid.py", MODELS[0], "--figure", "sweep.png"), "--figure is of --sweep"),
        (("generate_noise_dataset.py", "--teacher", "missing"), "there is no checkpoint"),
        (("distill_student.py", "--teacher", other, *SHORT), "are of another teacher"),
        (("distill_student.py", "--pairs", "nowhere", *SHORT), "no noise pairs in nowhere"),
        (("distill_student.py", "--pairs", "few", "--out", "s", *SHORT), "make 10 or more"),
        (("distill_student.py", "--init", other, "--out", "s", *SHORT), "another network"),
        (("four_step_student.py", "--pairs", "short", "--out", "s", *SHORT), "states at t = (none), and"),
        (("four_step_student.py", "--pairs", "finer", "--out", "s", *SHORT), "0.25, 0.5, 0.75 are needed"),
        (("four_step_student.py", "--out", "s", *SHORT, "--batch-size", 3), "--batch-size 3 is too small"),
        (("distill_student.py", "--out", "s", *SHORT, "--feature-network", "x"), "--feature-network is for --loss"),
        (("sample.py", MODELS[0], "--solver", "dopri5", "--num-steps", 9), "dopri5 chooses its own steps"),
        (("sample.py", MODELS[0], "--solver", "dopri5", "--precision", "bf16"), "dopri5 needs --precision fp32"),
        (("teacher_rectified_flow.py", "--pairs", "noise_pairs", "--data", "shapes", *SHORT), "--data is of images"),
        (("teacher_rectified_flow.py", *data, "nowhere", *SHORT), "no image folder at nowhere"),
        (
            ("teacher_rectified_flow.py", *data, image_folder, "--out", "s", *SHORT, "--val-fraction", 1),
            "no images to train",
        ),
        (("teacher_rectified_flow.py", "--pairs", "nowhere", *SHORT), "no noise pairs in nowhere"),
        *(
            (("teacher_rectified_flow.py", *data, image_folder, "--out", "s", *SHORT, "--network", change), message)
            for change, message in (
                ('{"attention_levels": [3]}', "preset tiny: attention_levels (3,) are not levels"),
                ('{"blocks_per_level": [1]}', "preset tiny: blocks_per_level"),
                ('{"widths": 16}', "preset tiny: "),
                ('{"patch_size": 0}', "preset tiny: sizes"),
                ('{"head_width": 0}', "preset tiny: sizes"),
                ('{"blocks_per_level": 0}', "preset tiny: sizes"),
                ('{"embedding_width": 97}', "preset tiny: embedding_width 97 is not even"),
                ('{"image_channels": 1}', "images have 3 channels"),
                ('{"widths": [20, 32, 32]}', "preset tiny: every width"),
                ('{"skips": "none"}', "preset tiny: skips must be one of concatenated, added"),
            )
        ),
        (("teacher_rectified_flow.py", *data, image_folder, *SHORT, "--steps", 2), "do not fit into 2 steps"),
        (
            ("teacher_rectified_flow.py", *data, image_folder, "--out", "s", *SHORT, "--more-ema-decays", 0.9, 0.9),
            "each only once",
        ),
        (
            ("teacher_rectified_flow.py", *data, image_folder, "--out", "s", *SHORT, "--branch-from", "x"),
            "no training state",
        ),
    ]
    before = folder_contents(pipeline)
    for command, message in cases:
        result = run_script(*command)
        assert result.status == 1 and message in result.error_line, (command, result.err)
        after = folder_contents(pipeline)
        assert after == before, command


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_network_learns_the_same(run_script, image_folder, tmp_path):
    network = ("--preset", "tiny", "--network", '{"widths": [16], "attention_levels": []}')  # compiled soon
    data = (*network, "--data", "folder", "--data-dir", image_folder, "--precision", "fp32", *SHORT)
    for name, options in (("eager", ()), ("compiled", ("--compile",))):
        assert run_script("teacher_rectified_flow.py", *data, *options, "--out", tmp_path / name).status == 0
    eager, compiled = (load_checkpoint(tmp_path / name / "teacher.safetensors") for name in ("eager", "compiled"))
    for name, value in eager.model.state_dict().items():
        torch.testing.assert_close(compiled.model.state_dict()[name], value, atol=2e-3, rtol=1e-2)


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory")])
def test_lack_of_memory_is_one_line(error, capsys):
    def fail():
        raise error

    for main in (fail, lambda: torch.empty(10**15)):  # the CPU's allocator has no exception of its own
        with pytest.raises(SystemExit):
            run(main)
        assert (
            capsys.readouterr().err
            == "error: not enough memory: ask for less at once (--batch-size, where there is one)\n"
        )
    with pytest.raises(RuntimeError, match="inconsistent"):
        run(lambda: torch.zeros(2) @ torch.zeros(3))
