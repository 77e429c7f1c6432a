"""The comparison of ways to distil: what it trains, that the FLOP are shared, and that nothing is done twice."""

import json
import shlex
import sys
from dataclasses import asdict

import pytest

from benchmarks import student_search
from common.checkpoint import load_checkpoint
from common.errors import UserError

FLOP = 2e11


@pytest.fixture
def search(run_script, make_teacher, random_inception, image_folder, monkeypatch, tmp_path):
    """search(*variants): the rows, and what was run for them."""
    pairs = ("--teacher", make_teacher(), "--num-steps", 4, "--num-pairs", 2100, "--solver", "euler")
    assert run_script("generate_noise_dataset.py", *pairs, "--out", tmp_path / "pairs").status == 0
    commands = []

    def in_this_process(command):
        commands.append(command)
        result = run_script(*command, *(("--features", tmp_path / "features") if "compute_fid" in command[0] else ()))
        assert result.status == 0, result.err

    monkeypatch.setattr(student_search, "run_script", in_this_process)

    def run(*variants):
        commands.clear()
        files = ("--teacher", make_teacher(), "--pairs", tmp_path / "pairs", "--out", tmp_path / "runs")
        fid = ("--num-samples", 40, "--reference", image_folder, "--inception-weights", random_inception)
        arguments = (*files, *fid, "--rows", tmp_path / "rows.jsonl", "--flop", FLOP, "--variants", *variants)
        monkeypatch.setattr(sys, "argv", ["student_search.py", *map(str, arguments)])
        student_search.main()
        return [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()], list(commands)

    return run


def test_variants_are_trained_for_the_flop_asked_for_and_only_once(search, tmp_path):
    rows, _ = search("one step, a quarter of the pairs, no flips", "one step, after four")
    quarter, _, after = rows
    assert [row["variant"] for row in rows[1:]] == ["four steps, for half the FLOP", "one step, after four"]
    for row, wanted in zip(rows, (FLOP, FLOP / 2, FLOP), strict=True):
        assert row["training_flop"] == pytest.approx(wanted, rel=0.1)
    assert "--no-flips" in shlex.split(quarter["command"])
    assert (quarter["num_pairs"], after["num_pairs"]) == (1024, 2100)
    student = load_checkpoint(tmp_path / "runs" / "2e+11" / "one_step_after_four" / "student.safetensors")
    assert student.header["initial"]["stage"] == "four_step" and student.header["step"] == after["steps"]
    assert min(row["held_out_error"] for row in rows) > 0

    page = (tmp_path / "rows.md").read_text()
    for row in rows:
        assert f"| {row['variant']} | {row['held_out_error']:.5f} | {row['fid']:.2f} |" in page
    assert search("one step, after four") == (rows, [])


def test_a_variant_that_changed_is_not_taken_for_another(search, monkeypatch, tmp_path):
    (row,), _ = search("four steps")
    changed = student_search.Variant(student_search.FOUR, {"--own-share": 0.25})
    assert row["definition"] != asdict(changed)
    monkeypatch.setitem(student_search.STUDENTS, "four steps", changed)
    with pytest.raises(UserError, match="give the variant another name"):
        search("four steps")
