"""The model card's commands at a share of their length."""

from benchmarks.card_commands import commands_of, shortened
from common.checkpoint import load_header

CARD = """
```bash
python feature_network.py --data folder --data-dir data/train --steps 30 --decay-steps 20 --batch-size 8 \\
    --device cpu --network '{"widths": [4, 8], "speed_run": false}' --out checkpoints/small
```
Words.
```python
from common.checkpoint import load_header

assert load_header("checkpoints/small/feature_network.safetensors")["step"] == 3
open("seen", "x").close()
```
"""


def test_the_commands_run_in_their_order_in_a_folder_of_their_own(run_script, image_folder, tmp_path):
    (tmp_path / "card.md").write_text(CARD)
    command = ("benchmarks/card_commands.py", "--card", tmp_path / "card.md", "--data-dir", image_folder)
    assert run_script(*command, "--out", tmp_path / "run").status == 0
    header = load_header(tmp_path / "run/checkpoints/small/feature_network.safetensors")
    assert header["arguments"]["decay_steps"] == 2
    assert (tmp_path / "run/seen").is_file() and not (tmp_path / "checkpoints").exists()
    assert "did not come to its end" in run_script(*command, "--out", tmp_path / "run").error_line  # it was seen


def test_what_is_not_given_is_shortened_too():
    """A warm-up of 100 steps, which would not fit; the window keeps what a covariance needs."""
    given = ["--student", "student.safetensors", "--steps", "280", "--decay-steps", "140", "--critic-window", "8192"]
    expected = "--steps 28 --warmup-steps 10 --decay-steps 14 --critic-window 2048"
    assert shortened("finish_student.py", given, 0.1) == expected.split()
    assert shortened("generate_noise_dataset.py", ["--num-pairs", "53248"], 0.1) == ["--num-pairs", "5325"]


def test_words_are_those_of_the_shell():
    """Braces are expanded, but not those of JSON; a backslash joins lines."""
    words = ["python", "a.py", "--network", '{"widths": [4, 8]}', "x/b.d", "x/c.d"]
    assert commands_of("""python a.py --network '{"widths": [4, 8]}' \\\n    x/{b,c}.d\n""") == [words]
