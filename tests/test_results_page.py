"""The page of results, its sections, and the README's table."""

import shutil
import subprocess

import pytest
from conftest import ROOT
from PIL import Image
from result_line import result

from benchmarks.commands_section import commands_of, options_of
from benchmarks.guidance_section import guidance_section
from benchmarks.headline import headline
from benchmarks.losses_section import losses_section
from benchmarks.results_page import FIGURES, spread_over_seeds
from common.checkpoint import GUIDE_NAME, load_checkpoint
from common.errors import UserError
from common.results import append_result, read_results


def test_the_page_is_the_one_that_the_command_writes(run_script, tmp_path):
    """No figure on it is typed by hand, and none is older than the results or the shipped models."""
    outcome = run_script("benchmarks/results_page.py", "--out", tmp_path)
    assert outcome.status == 0, outcome.err
    for page in ("docs/results.md", "README.md", "checkpoints/pretrained/README.md"):
        assert (tmp_path / page).read_text() == (ROOT / page).read_text()
    for figure in FIGURES.values():
        ours, theirs = (Image.open(folder / figure).text["Description"] for folder in (tmp_path, ROOT))
        assert ours == theirs


def test_the_page_shows_what_was_measured_of_the_shipped_models():
    page, lines = (ROOT / "docs/results.md").read_text(), read_results(ROOT / "docs/results.jsonl")
    for path in (ROOT / "checkpoints/pretrained").glob("*.safetensors"):
        if path.name == GUIDE_NAME:
            continue
        checkpoint = load_checkpoint(path)
        measured = [line for line in lines if line["checkpoint"] == checkpoint.sha256]
        assert checkpoint.sha256[:12] in page and measured
        assert all(f"| {line['fid']:.2f} |" in page for line in measured)


def test_a_command_on_the_page_names_the_shipped_guide():
    guides = {"d" * 64: "checkpoints/pretrained/guide.safetensors"}
    guided = result(guide="d" * 64, guide_scale=2.0, guidance_scale=1.0)
    options = options_of(guided, guides)
    assert "--guide checkpoints/pretrained/guide.safetensors --guide-scale 2" in options
    assert "--guide GUIDE" in options_of(guided | {"guide": "e" * 64}, guides)
    assert "--guide " not in options_of(result(), guides)


def test_the_commands_on_the_page_run_each_model_with_each_seed(tmp_path):
    """In a shell, in which `python` says what it was asked."""
    files = {"a" * 64: "teacher.safetensors", "b" * 64: "four_step.safetensors", "c" * 64: "student.safetensors"}
    students = [
        result(stage=stage, checkpoint=letter * 64) for stage, letter in (("four_step", "b"), ("one_step", "c"))
    ]
    group = [result(), result(seed=1), result(seed=1, num_steps=2), *students]
    script = 'python() { echo "$@"; }\n' + commands_of(group, files)
    calls = subprocess.run(
        ["bash", "-eu"], input=script, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    drawn, shared = "--batch-size 64 --precision fp32", "--num-samples 10000 --reference FOLDER --reference-name JPEG"
    teacher = f"compute_fid.py teacher.safetensors {drawn} --solver euler --num-steps"
    cfg = "--guidance-scale 2 --guidance-interval 0.1 0.8"
    assert [call.replace(" CIFAR-10", "").replace(f" {shared}", "") for call in calls] == [
        f"{teacher} 4 {cfg} --seed 0",
        f"{teacher} 4 {cfg} --seed 1",
        f"{teacher} 2 {cfg} --seed 1",
        f"compute_fid.py four_step.safetensors student.safetensors {drawn} --seed 0",
    ]
    assert all(shared in call for call in calls)


def test_the_commands_on_the_page_name_what_all_share():
    line = result(reference_count=None, reference="all", classes=["cat", "dog"], fid=None)
    shared = "--num-samples 10000 --classes cat dog --kid-only --reference STATISTICS.npz --reference-name all; }"
    assert commands_of([line], {"a" * 64: "teacher.safetensors"}).splitlines()[0].endswith(shared)
    assert "--reference cifar10; }" in commands_of([result(reference="cifar10")], {"a" * 64: "teacher.safetensors"})


def test_the_readme_compares_all_of_the_shipped_models_and_says_which_seed_chose():
    stages = {"teacher": 10.0, "four_step": 12.0, "one_step": 14.0}
    files = {letter * 64: "checkpoints/pretrained/teacher.safetensors" for letter in "abc"}
    chosen = [
        result(stage=stage, fid=fid, checkpoint=letter * 64, seed=1000, num_samples=5000)
        for (stage, fid), letter in zip(stages.items(), "abc", strict=True)
    ]
    alone = result(fid=7.0, num_samples=50_000)  # of more samples, but of the teacher only
    text = headline([*chosen, alone], files, None)
    assert all(f"| {fid:.2f} |" in text for fid in stages.values()) and "7.00" not in text
    assert "5,000 samples against JPEG CIFAR-10 (50,000 images)" in text and "were chosen by some" in text
    some_fresh = headline([*chosen, chosen[0] | {"seed": 5, "fid": 11.0}], files, None)
    assert "were chosen by some" in some_fresh and "| 10.50 |" in some_fresh
    all_fresh = headline([*chosen, *(line | {"seed": 5, "fid": line["fid"] + 1} for line in chosen)], files, None)
    assert "were chosen by some" not in all_fresh and "| 11.00 |" in all_fresh
    by_five = [line | {"seed": 5} for line in chosen]
    rival = by_five[2] | {"checkpoint": "d" * 64, "fid": 14.5}  # measured beside, and not shipped: seed 5 chose
    assert "were chosen by some" in headline(by_five, files, None, [rival])
    one_fresh = headline([*by_five, by_five[2] | {"seed": 6, "fid": 15.0}], files, None, [rival])
    assert "were chosen by some" not in one_fresh and "| 15.00 |" in one_fresh and "| 14.00 |" not in one_fresh
    with pytest.raises(UserError, match="no results compare all of the shipped models"):
        headline([alone], files, None)


def test_the_readme_s_table_says_what_else_was_measured():
    names = dict(zip("abc", ("teacher", "four_step", "one_step"), strict=True))
    files = {letter * 64: "checkpoints/pretrained/teacher.safetensors" for letter in names}
    lines = [result(stage=stage, checkpoint=letter * 64, recall=0.5) for letter, stage in names.items()]
    lines.append(lines[2] | {"seed": 1, "recall": 0.6})
    models = [line | {"milliseconds_in_a_batch": 12.34} for line in lines]
    cost = {"models": models, "batch_size": 64, "machine": "a machine", "arithmetic": "fp32"}
    text = headline(lines, files, cost)
    assert "| one-step student | 7 | 11.9 | 12.3 | 31.46 | 12.30 | 0.550 | 0, 1 |" in text
    assert "each of 64 images drawn together, a machine, fp32" in text
    assert "ms an image" not in headline(lines, files, None)
    otherwise = cost | {"models": [model | {"num_steps": 3} for model in models]}
    assert "ms an image" not in headline(lines, files, otherwise)


def test_the_spread_over_sampling_seeds_is_of_one_model_run_in_one_way():
    group = [result(fid=10.0, seed=1), result(fid=12.0, seed=2), result(fid=50.0, num_steps=2, seed=1)]
    group += [result(fid=12.5, seed=2, arithmetic="bf16")]  # the same seed, and no third one
    group += [result(fid=None, seed=3), result(fid=9.0, seed=1, checkpoint="f" * 64, stage="one_step")]
    (paragraph,) = spread_over_seeds(group)
    expected = "- teacher, euler 4, CFG 2 for t in [0.1, 0.8], fp32: 11.00, standard deviation 1.41 of 2 seeds"
    assert paragraph.splitlines()[2:] == [expected]
    assert spread_over_seeds(group[:1]) == []
    (paragraph,) = spread_over_seeds([result(recall=0.5), result(recall=0.6, seed=1)])
    assert paragraph.endswith("of 2 seeds; recall 0.550")


def test_results_of_models_that_were_replaced_stand_apart(run_script, tmp_path, monkeypatch):
    shutil.copy(ROOT / "README.md", tmp_path)
    for name in ("docs", "checkpoints/pretrained"):
        shutil.copytree(ROOT / name, tmp_path / name)
    append_result(tmp_path / "docs/results.jsonl", result(fid=987.5))
    monkeypatch.setattr("common.files.ROOT", tmp_path)
    outcome = run_script("benchmarks/results_page.py", "--out", tmp_path)
    assert outcome.status == 0, outcome.err
    page = (tmp_path / "docs/results.md").read_text()
    earlier = page[page.index("## Not shipped") :]
    assert "| 987.50 |" in earlier and "987.50" not in page[: page.index("## Not shipped")]


def test_the_settings_that_were_tried_are_shown_best_first():
    tried = [result(fid=14.0), result(fid=12.0, guide="d" * 64, guide_scale=2.0, guidance_scale=1.0)]
    tried[1] |= {"guide_training_flop": 2e14, "guide_parameters": 750_000}
    section = guidance_section(tried)
    first, second = section.splitlines()[-2:]
    assert "autoguidance 2 for t in" in first and "| 2e+14, 750,000 | 7 | 12.00 |" in first and "| 14.00 |" in second
    assert "2 settings" in section and "10,000 samples" in section and "some machine, fp32" in section
    with pytest.raises(UserError, match="differ in one of"):
        guidance_section([*tried, result(seed=1)])
    with pytest.raises(UserError, match="of teachers alone"):
        guidance_section([*tried, result(stage="one_step")])


PIXELS = {"loss": "l2", "feature_weight": None, "critic": None, "critic_images": None, "critic_weight": None}
FEATURES = PIXELS | {"loss": "features", "feature_weight": 0.2}
FINISHED = FEATURES | {
    "critic": "frechet",
    "critic_weight": 0.01,
    "critic_images": "real",
    "num_networks": 2,
    "flop": 1e14,
}
DRAWN = {"stage": "one_step", "checkpoint": "1" * 64, "num_steps": 1, "guidance_scale": 1.0}


def opinion(**changes) -> dict:
    """A line like those of `second_opinion.py`."""
    judged = {"frechet_distance": 3.25, "closer_than_real": 0.41, "held_out_error": 0.0213, "judge": "e" * 64}
    real = {"count": 9000, "frechet_distance": 0.5, "closer_than_real": 0.45}
    judged |= {"real": real, "feature_networks_flop": 2e14, "training_runs": [PIXELS, FINISHED]}
    return result(**DRAWN) | judged | changes


OF_TEACHER = result() | {"held_out_error": None, "training_runs": [], "feature_networks_flop": 0}


def rows_of(section: str) -> list[dict[str, str]]:
    header, _, *lines = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("|")]
    return [dict(zip(header, line, strict=True)) for line in lines]


def test_students_are_compared_by_the_losses_of_their_last_run():
    teacher, student = opinion(**OF_TEACHER), opinion(init_sha256="9" * 64)
    section = losses_section([result(), result(**DRAWN, fid=20.0)], [student, teacher], ["1" * 64])
    rows = rows_of(section)
    assert [row["model"].split(",")[0] for row in rows] == ["teacher", "**one-step student**"]  # which is shipped
    assert "recall" not in rows[1] and rows[0]["MSE"] == ""  # measured of nobody; of one
    assert rows[1]["id"] == "`11111111`" and rows[1]["began as"] == "`99999999`"
    assert rows[1]["losses"] == "pseudo-huber + 0.2 features + 0.01 frechet (real images) by 2 networks"
    assert rows[1]["FID"] == "20.00" and rows[1]["MSE"] == "0.0213" and rows[1]["closer than real"] == "41.0%"
    assert "10,000 samples against JPEG CIFAR-10" in section and "(45.0% of the" in section
    assert "equal FLOP" not in section


def test_students_are_compared_by_results_of_one_protocol_that_there_are_of_the_most():
    results = [result(), result(**DRAWN, fid=20.0), result(**DRAWN, fid=12.5, num_samples=50_000)]
    results.append(result(**DRAWN | {"checkpoint": "2" * 64}, fid=11.0, num_samples=50_000))
    results += [result(**DRAWN, fid=8.0, reference_sha256="d" * 64), result(**DRAWN, fid=7.0, seed=5)]
    results.append(result(**DRAWN, fid=None, num_samples=60_000))
    results.append(result(**DRAWN, fid=9.0, classes=["cat"], num_samples=70_000))
    teacher = opinion(**OF_TEACHER)
    assert rows_of(losses_section(results, [opinion(), teacher]))[1]["FID"] == "20.00"
    of_students = [line for line in results if line["stage"] != "teacher"]
    assert rows_of(losses_section(of_students, [opinion()]))[0]["FID"] == "12.50"


def test_of_a_student_that_was_judged_twice_the_last_opinion_counts():
    (row,) = rows_of(losses_section([], [opinion(), opinion(held_out_error=0.02, arithmetic="bf16")]))
    assert row["MSE"] == "0.0200"


def test_students_of_one_start_and_equal_flop_have_a_table_of_their_own():
    student = opinion(training_runs=[PIXELS])
    alike = [
        opinion(
            init_sha256=student["checkpoint"],
            checkpoint=digit * 64,
            training_runs=[PIXELS, {**FEATURES, "flop": flop}],
        )
        for digit, flop in (("4", 2.0e14), ("5", 2.01e14), ("6", 3e14))
    ]
    section = losses_section([], [student, *alike])
    before, title, after = section.partition("### From one start, for equal FLOP")
    assert title and "for 2e+14 FLOP" in after
    assert [row["id"] for row in rows_of(before)] == ["`11111111`", "`66666666`"]
    assert [row["id"] for row in rows_of(after)] == ["`11111111`", "`44444444`", "`55555555`"]


@pytest.mark.parametrize("other", [{"seed": 1}, {"num_samples": 5}, {"judge": "f" * 64}])
def test_opinions_that_do_not_compare_are_refused(other):
    with pytest.raises(UserError, match="make no table"):
        losses_section([], [opinion(), opinion(checkpoint="3" * 64, **other)])
