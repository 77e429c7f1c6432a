"""Command lines: every default is shown, and bad input is one clear line and changes nothing."""

import argparse
import runpy
import sys

import pytest
import torch
from conftest import ROOT, folder_contents
from runs import MODELS, SHORT

from common.command_line import run

TRAINING_SCRIPTS = ("teacher_rectified_flow.py", "distill_student.py", "four_step_student.py")
PARSERS = sorted(
    str(path.relative_to(ROOT))
    for path in (*ROOT.glob("*.py"), *ROOT.glob("benchmarks/*.py"))
    if "def parse_args" in path.read_text()
)
"""Every file with a command line."""


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
    unguided = ("--guidance-scale", 1, "--guidance-interval", 0.2, 0.5)
    cases = [
        (("sample.py", "missing.safetensors"), "there is no checkpoint at missing.safetensors"),
        (("sample.py", "cut.safetensors"), "not a readable checkpoint"),
        (("sample.py", "noise_pairs/pairs_00000.pt"), "not a readable checkpoint"),
        (("sample.py", MODELS[0], "--classes", "unicorn"), "no class 'unicorn': choose from circle"),
        (("sample.py", MODELS[0], "--classes", 10), "no class '10'"),
        (("sample.py", MODELS[0], "--out", "picture.jpg"), "must end in .png or .npz"),
        (("sample.py", MODELS[0], "--out", "many.npz", "--enlarge", 4), "--enlarge works on a PNG grid only"),
        (("sample.py", "--compare", *MODELS, "--enlarge", 4), "--enlarge works on a PNG grid only"),
        (("sample.py", MODELS[0], "--out", "cut.safetensors/picture.png"), "cannot write"),
        (("sample.py", MODELS[0], "--out", "folder.png"), "cannot write folder.png"),
        (("sample.py", MODELS[0], "--guidance-interval", 0.9, 0.1), "guidance interval"),
        (("sample.py", MODELS[0], *unguided), "--guidance-interval needs"),
        (("sample.py", MODELS[0], "--device", "cuda:99"), "no device"),
        (("sample.py", MODELS[2], "--num-steps", 9), "is a one_step student"),
        (("sample.py", "--compare", MODELS[0], "missing"), "there is no checkpoint"),
        (("sample.py", "--compare", *MODELS[1:], "--num-steps", 9), "is a four_step student"),
        (("sample.py", "--compare", *MODELS, "of_finer/student.safetensors"), "in another way"),
        (("benchmarks/second_opinion.py", MODELS[0], "--judge", "x", *unguided), "--guidance-interval needs"),
        (("benchmarks/model_cost.py", MODELS[0], *unguided), "--guidance-interval needs"),
        (("compute_fid.py", MODELS[0], "--sweep", "1,2", "--num-steps", 3), "leave out --num-steps"),
        (("compute_fid.py", *MODELS[1:], "--sweep", "1,2"), "--sweep needs a teacher"),
        (("compute_fid.py", MODELS[0], "--figure", "sweep.png"), "--figure needs --sweep"),
        (("generate_noise_dataset.py", "--teacher", "missing"), "there is no checkpoint"),
        (("distill_student.py", "--teacher", other, *SHORT), "are of another teacher"),
        (("distill_student.py", "--pairs", "nowhere", *SHORT), "no noise pairs in nowhere"),
        (("distill_student.py", "--pairs", "few", "--out", "s", *SHORT), "make 10 or more"),
        (("distill_student.py", "--init", other, "--out", "s", *SHORT), "another network"),
        (("four_step_student.py", "--pairs", "short", "--out", "s", *SHORT), "states at t = (none), and"),
        (("four_step_student.py", "--pairs", "finer", "--out", "s", *SHORT), "0.25, 0.5, 0.75 are needed"),
        (("four_step_student.py", "--out", "s", *SHORT, "--batch-size", 3), "--batch-size 3 is too small"),
        (("feature_network.py", "--data", "shapes", "--batch-size", 1), "give a --batch-size of 2 or more"),
        (("distill_student.py", "--out", "s", *SHORT, "--feature-network", "x"), "--feature-network is for --loss"),
        (("sample.py", MODELS[0], "--solver", "dopri5", "--num-steps", 9), "dopri5 chooses its own steps"),
        (("sample.py", MODELS[0], "--solver", "dopri5", "--precision", "bf16"), "dopri5 needs --precision fp32"),
        (
            ("teacher_rectified_flow.py", "--pairs", "noise_pairs", "--data", "shapes", *SHORT),
            "--data is for training on images",
        ),
        (("teacher_rectified_flow.py", "--data-dir", image_folder, *SHORT), "holds pictures, and CIFAR-10"),
        (("teacher_rectified_flow.py", *data, "nowhere", *SHORT), "no image folder at nowhere"),
        (("teacher_rectified_flow.py", "--data", "shapes", "--crop", "--out", "s", *SHORT), "--crop needs an image"),
        (
            ("teacher_rectified_flow.py", *data, image_folder, "--out", "s", *SHORT, "--val-fraction", 1),
            "no images to train",
        ),
        (("teacher_rectified_flow.py", *SHORT, "--unconditional", "--label-dropout", 0.3), "--label-dropout needs"),
        (
            ("distill_student.py", "--out", "s", *SHORT, "--optimizer", "adamw", "--muon-momentum", 0.5),
            "--muon-momentum needs --optimizer muon",
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


@pytest.mark.parametrize("script", ["sample.py", "generate_noise_dataset.py", "teacher_rectified_flow.py"])
def test_a_seed_that_would_repeat_the_noise_of_a_smaller_one_is_refused(script, run_script):
    """Sample 0 of seed 2**32 would have the noise of sample 64 of seed 0."""
    model = ["student.safetensors"] if script == "sample.py" else []
    refused = run_script(script, *model, "--seed", 2**32)
    assert refused.status != 0 and "between 0 and 4294967295" in refused.err
