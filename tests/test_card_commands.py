"""The model card's commands at a share of their length."""

import argparse

import pytest

from benchmarks.card_commands import CARD as SHIPPED
from benchmarks.card_commands import arguments_of, blocks_of, commands_of, shortened
from common.checkpoint import load_header

CARD = """
```bash
python feature_network.py --data folder --data-dir data/train --steps 30 --decay-steps 20 --batch-size 8 \\
    --device cpu --network '{"widths": [4, 8], "speed_run": false}' --out checkpoints/small
```
Words.
```python
from pathlib import Path
from common.stages import FEATURE_NETWORK

assert Path(f"checkpoints/small/{FEATURE_NETWORK}.safetensors").is_file()
open("seen", "x").close()
```
"""


def test_the_commands_run_in_their_order_in_a_folder_of_their_own(run_script, image_folder, tmp_path):
    (tmp_path / "card.md").write_text(CARD)
    command = ("benchmarks/card_commands.py", "--card", tmp_path / "card.md", "--data-dir", image_folder)
    assert run_script(*command, "--out", tmp_path / "run").status == 0
    header = load_header(tmp_path / "run/checkpoints/small/feature_network.safetensors")
    assert header["step"] == 3 and header["arguments"]["decay_steps"] == 2
    assert (tmp_path / "run/seen").is_file() and not (tmp_path / "checkpoints").exists()
    assert "did not come to its end" in run_script(*command, "--out", tmp_path / "run").error_line  # it was seen


def test_what_is_not_given_is_shortened_too():
    """A warm-up of 100 steps, which would not fit; the window keeps what a covariance needs."""
    given = ["--student", "student.safetensors", "--steps", "280", "--decay-steps", "140", "--critic-window", "8192"]
    expected = "--steps 28 --warmup-steps 10 --decay-steps 14 --critic-window 2048"
    assert shortened("finish_student.py", given, 0.1) == expected.split()
    assert shortened("generate_noise_dataset.py", ["--num-pairs", "53248"], 0.1) == ["--num-pairs", "5325"]


@pytest.mark.parametrize("share", [0.04, 0.077, 0.1, 0.18, 1])
def test_the_card_s_runs_fit_together_at_any_share(share):
    """A branch decays from where its trunk ends, and a critic sees its window full before the run is over."""
    runs = {}
    for language, block in blocks_of(SHIPPED.read_text()):
        for _, script, *arguments in commands_of(block) if language == "bash" else ():
            args = arguments_of(script, [*arguments, *shortened(script, arguments, share)])
            runs[str(args.out)] = args
            assert not hasattr(args, "steps") or args.warmup_steps + args.decay_steps <= args.steps
    trunk, teacher = runs["checkpoints/trunk"], runs["checkpoints/teacher"]
    assert teacher.branch_from == trunk.out and teacher.steps - teacher.decay_steps == trunk.steps
    assert all(
        fresh_images_before_the_last_step(args) >= args.critic_window for args in runs.values() if "critic" in args
    )


def fresh_images_before_the_last_step(args: argparse.Namespace) -> float:
    calls = 4 if args.student.name == "four_step.safetensors" else 1
    return (args.steps - 1) * args.critic_share * args.batch_size / calls


def test_words_are_those_of_the_shell():
    """Braces are expanded, but not those of JSON; a backslash joins lines."""
    words = ["python", "a.py", "--network", '{"widths": [4, 8]}', "x/b.d", "x/c.d"]
    assert commands_of("""python a.py --network '{"widths": [4, 8]}' \\\n    x/{b,c}.d\n""") == [words]
