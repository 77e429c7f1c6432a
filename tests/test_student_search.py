"""The comparison of ways to distil: what it trains, that the FLOP are shared, and that nothing is done twice."""

import json
import shlex
import sys

import pytest
from conftest import ROOT, SMALL_CONFIG, save_model

from benchmarks import stage_scripts, student_search
from benchmarks.search_rows import rows_to_oneself
from benchmarks.student_page import page
from benchmarks.student_variants import STARTING_OPTIONS, STUDENTS, Variant
from common import pairs, presets
from common.checkpoint import load_checkpoint
from common.errors import UserError

FLOP = 1.5e10


@pytest.fixture
def search(run_script, random_inception, image_folder, monkeypatch, tmp_path):
    """search(*variants, seed of the teacher, samples of FID): the rows, and what was run for them."""
    monkeypatch.setattr(pairs, "HELD_OUT_PAIRS", 6)
    monkeypatch.setitem(presets.NETWORKS, "cpu", SMALL_CONFIG)
    for options in STARTING_OPTIONS.values():
        monkeypatch.setitem(options, "--batch-size", 16)
    commands = []

    def in_this_process(command):
        commands.append(command)
        result = run_script(*command, *(("--features", tmp_path / "features") if "compute_fid" in command[0] else ()))
        assert result.status == 0, result.err

    for module in (student_search, stage_scripts):
        monkeypatch.setattr(module, "run_script", in_this_process)

    def run(*variants, seed=0, num_samples=40):
        teacher, folder = tmp_path / f"teacher_{seed}.safetensors", tmp_path / f"pairs_{seed}"
        if not folder.exists():
            save_model(teacher, "teacher", seed, arguments={"label_dropout": 0.1}, training_flop=10**12)
            how = ("--solver", "euler", "--num-steps", 4, "--guidance-scale", 1)
            making = ("--teacher", teacher, *how, "--num-pairs", 240, "--out", folder)
            assert run_script("generate_noise_dataset.py", *making).status == 0
        commands.clear()
        files = ("--teacher", teacher, "--pairs", folder, "--out", tmp_path / "runs", "--rows", tmp_path / "rows.jsonl")
        fid = ("--num-samples", num_samples, "--reference", image_folder, "--inception-weights", random_inception)
        arguments = (*files, *fid, "--flop", FLOP, "--variants", *variants)
        monkeypatch.setattr(sys, "argv", ["student_search.py", *map(str, arguments)])
        student_search.main()
        return [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()], list(commands)

    return run


def test_variants_are_trained_for_the_flop_asked_for_and_only_once(search, tmp_path):
    rows, _ = search("one step, a quarter of the pairs, no flips", "one step, after four", "one step, after reflow")
    names = [
        "one step, a quarter of the pairs, no flips",
        "four steps, the teacher's states, for half the FLOP",
        "one step, after four",
    ]
    names += ["reflow, for half the FLOP", "one step, after reflow"]
    assert [row["variant"] for row in rows] == names
    for row, share in zip(rows, (1, 0.5, 1, 0.5, 1), strict=True):
        assert row["training_flop"] == pytest.approx(FLOP * share, rel=0.1)
    assert "--no-flips" in shlex.split(rows[0]["command"])
    assert [row["num_pairs"] for row in rows] == [60, 240, 240, 240, 240]
    students = [load_checkpoint(path) for path in sorted(tmp_path.glob("runs/*/one_step_after*/student.safetensors"))]
    assert [student.header["initial"]["stage"] for student in students] == ["four_step", "teacher"]
    assert students[0].header["images_seen"] == rows[2]["examples"] - rows[1]["examples"] > 0

    written = (tmp_path / "rows.md").read_text()
    for row in rows[:3]:
        assert row["held_out_error"] > 0
        assert f"| {row['variant']} | {row['held_out_error']:.5f} | {row['fid']['fid']:.2f} |" in written
    assert search("one step, after four") == (rows, [])


def test_what_cannot_be_compared_is_kept_apart(search, monkeypatch, tmp_path):
    search("one step")
    rows, _ = search("one step", seed=1)  # another teacher
    assert rows[0]["teacher"] != rows[1]["teacher"]
    assert (tmp_path / "rows.md").read_text().count("| one step |") == 2
    assert (tmp_path / "rows.md").read_text().count(f"## {FLOP:.3g} training FLOP") == 2
    with pytest.raises(UserError, match="there are FIDs by"):
        search("one step, no flips", num_samples=41)
    monkeypatch.setitem(STUDENTS, "one step", Variant("one_step", {"--learning-rate": 3e-3}))
    with pytest.raises(UserError, match="give the variant another name"):
        search("one step")
    monkeypatch.setattr(pairs, "HELD_OUT_PAIRS", 200)
    with pytest.raises(UserError, match="too few pairs"):
        search("one step, a quarter of the pairs")


def test_two_searches_do_not_lose_each_other_s_rows(search, tmp_path):
    with rows_to_oneself(tmp_path / "rows.jsonl"), pytest.raises(UserError, match="another search is at work"):
        search("one step")
    assert not (tmp_path / "rows.jsonl").exists()


def test_the_recorded_rows_are_shown_and_stand_for_the_variants_of_their_names():
    """Also those of options that were taken out: they have no variant any more."""
    rows = [json.loads(line) for line in (ROOT / "docs/student_search.jsonl").read_text().splitlines()]
    assert (ROOT / "docs/student_search.md").read_text() == page(rows)
    for row in rows:
        assert row["code"] in page([row])
        if row["variant"] in STUDENTS:
            assert row["definition"] == STUDENTS[row["variant"]].definition
    assert {"four steps, the teacher's states", "one step"} < {row["variant"] for row in rows} & STUDENTS.keys()
