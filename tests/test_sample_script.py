"""sample.py: what it writes, by every solver, and how it leaves when it is interrupted."""

import json
import signal
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from common.checkpoint import load_checkpoint
from common.images import to_uint8


def test_sampling_writes_what_was_asked_for(make_teacher, run_script, tmp_path):
    teacher = make_teacher()
    arguments = (
        teacher,
        "--num-images",
        6,
        "--seed",
        4,
        "--classes",
        "heart",
        2,
        "--num-steps",
        3,
        "--precision",
        "fp32",
    )
    assert run_script("sample.py", *arguments, "--out", tmp_path / "a.npz").status == 0
    assert run_script("sample.py", *arguments, "--out", tmp_path / "b.npz").status == 0
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    saved = np.load(tmp_path / "a.npz")
    assert saved["arr_0"].shape == (6, 32, 32, 3) and saved["arr_0"].dtype == np.uint8
    assert saved["labels"].tolist() == [8, 2, 8, 2, 8, 2]
    settings = json.loads(str(saved["settings"]))
    assert settings["seed"] == 4 and settings["guidance_scale"] == 2.0 and settings["num_steps"] == 3

    grid = run_script("sample.py", *arguments, "--out", tmp_path / "grid.png", "--columns", 3, "--enlarge", 2)
    assert "6 images, seed 4" in grid.out
    pixels = np.asarray(Image.open(tmp_path / "grid.png"))
    assert pixels.shape == (2 * (2 * 34 + 2), 2 * (3 * 34 + 2), 3)
    assert np.array_equal(pixels[4:68:2, 4:68:2], saved["arr_0"][0])


def test_a_figure_of_few_images_is_no_wider_than_they_are(make_teacher, run_script, tmp_path):
    models = ("sample.py", "--compare", make_teacher(), "--num-steps", 2, "--num-images", 4)
    for name, columns in (("default.png", ()), ("four.png", ("--columns", 4))):
        assert run_script(*models, *columns, "--out", tmp_path / name).status == 0
    assert Image.open(tmp_path / "default.png").size == Image.open(tmp_path / "four.png").size


@pytest.mark.parametrize("solver", ["adams", "edm-heun", "heun", "euler", "midpoint", "rk4", "dopri5"])
def test_every_solver_samples_an_unconditional_model(solver, make_teacher, run_script, tmp_path):
    from dataclasses import replace

    from conftest import SMALL_CONFIG

    teacher = make_teacher(config=replace(SMALL_CONFIG, num_classes=0))
    out = tmp_path / "samples.npz"
    steps = () if solver == "dopri5" else ("--num-steps", 2)
    assert run_script("sample.py", teacher, "--num-images", 2, "--solver", solver, *steps, "--out", out).status == 0
    assert np.load(out)["labels"].tolist() == [-1, -1]


def test_an_interrupted_sampler_leaves_in_order(make_teacher, tmp_path):
    command = [
        sys.executable,
        ROOT / "sample.py",
        make_teacher(),
        "--num-images",
        "100000",
        "--out",
        tmp_path / "many.npz",
    ]
    # A test suite that was started in the background passes on that SIGINT is ignored.
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=tmp_path, preexec_fn=heed)
    while "sampling" not in process.stderr.readline(200):
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    rest = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and "Traceback" not in rest
    assert not (tmp_path / "many.npz").exists()


def test_samples_are_the_same_in_uint8_by_every_way(make_teacher, run_script, tmp_path):
    """`sample.py` draws what the library draws: the same noise, labels and rounding."""
    from common.sampling import draw_blocks

    teacher = load_checkpoint(make_teacher())
    run_script("sample.py", teacher.path, "--num-images", 5, "--precision", "fp32", "--out", tmp_path / "a.npz")
    (batch,) = draw_blocks(teacher.model, 0, 0, 5, range(10), teacher.settings)
    expected = to_uint8(batch.images).permute(0, 2, 3, 1).numpy()
    assert np.array_equal(np.load(tmp_path / "a.npz")["arr_0"], expected)
