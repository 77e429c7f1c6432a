"""Result lines, their tables and figures, and the page that is made of them."""

import io
import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import ROOT
from PIL import Image

from benchmarks.guidance_section import guidance_section
from benchmarks.losses_section import losses_section
from benchmarks.results_page import headline, options_of, spread_over_seeds
from common.checkpoint import GUIDE_NAME, load_checkpoint
from common.curves import curve_series, fid_curve
from common.errors import UserError
from common.files import folder_to_oneself
from common.results import (
    append_result,
    comparable_groups,
    read_results,
    run_of,
    table_of,
)
from common.tables import markdown_table, text_table


def result(**changes) -> dict:
    """A line like those of `compute_fid.py`."""
    return {
        "name": "teacher.safetensors",
        "stage": "teacher",
        "checkpoint": "a" * 64,
        "images_sha256": None,
        "guide": None,
        "guide_scale": 1.0,
        "solver": "euler",
        "num_steps": 4,
        "guidance_scale": 2.0,
        "guidance_interval": [0.1, 0.8],
        "seed": 0,
        "classes": None,
        "batch_size": 64,
        "device": "cpu",
        "arithmetic": "fp32",
        "training_flop": 1e15,
        "images_seen": 1000,
        "fid": 31.456,
        "kid": 0.0123,
        "kid_std": 0.001,
        "precision": 0.6543,
        "recall": None,
        "precision_recall_samples": 10000,
        "inception_score": None,
        "nfe": 7.0,
        "num_samples": 10_000,
        "reference": "JPEG CIFAR-10",
        "reference_sha256": "b" * 64,
        "reference_count": 50_000,
        "inception_sha256": "c" * 64,
        "seconds": 12.0,
        "drawing_seconds": None,
        "training_runs": [],
        "init_sha256": None,
        "machine": "some machine",
        "versions": {},
    } | changes


def test_lines_are_appended_and_none_is_written_twice(tmp_path):
    path = tmp_path / "results.jsonl"
    assert append_result(path, result())
    before = path.read_text()
    assert not append_result(path, result(seconds=99.0, machine="another"))
    assert append_result(path, result(seed=1))
    assert path.read_text().startswith(before)
    assert [line["seed"] for line in read_results(path)] == [0, 1]


def test_lines_that_come_at_once_are_all_kept(tmp_path):
    path = tmp_path / "results.jsonl"
    with folder_to_oneself(tmp_path), ThreadPoolExecutor(8) as threads:  # a run that is trained there is no hindrance
        assert all(threads.map(lambda seed: append_result(path, result(seed=seed)), range(40)))
    assert {line["seed"] for line in read_results(path)} == set(range(40))


def test_a_file_without_its_last_newline_loses_nothing(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text(json.dumps(result()))
    append_result(path, result(seed=1))
    assert [line["seed"] for line in read_results(path)] == [0, 1]


def test_a_line_that_is_no_result_is_named(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text(json.dumps(result()) + '\n{"loss": 1}\n')
    with pytest.raises(UserError, match="line 2 of"):
        append_result(path, result(seed=1))
    assert len(path.read_text().splitlines()) == 2


def test_only_what_compares_stands_in_one_table():
    lines = [
        result(),
        result(num_samples=5000),
        result(reference_sha256="d"),
        result(inception_sha256="e"),
        result(seed=2),
    ]
    assert [len(group) for group in comparable_groups(lines)] == [2, 1, 1, 1]


def test_classes_stand_apart_and_kid_alone_is_not_drawn():
    assert len(comparable_groups([result(), result(classes=["cat"])])) == 2
    assert fid_curve([result(), result(num_steps=1, nfe=1, fid=None)])


def test_a_row_shows_the_figures_and_leaves_out_what_there_is_not():
    on_two_machines = [result(drawing_seconds=25.0), result(drawing_seconds=5.0, machine="another")]
    header, _ = table_of(on_two_machines, with_times=True)
    assert "ms an image" not in header and "FID" in header
    assert "ms an image" not in table_of([result(drawing_seconds=25.0)])[0]  # the machine may have done more
    header, (row,) = table_of([result(drawing_seconds=25.0)], with_times=True)
    shown = dict(zip(header, row, strict=True))
    assert shown["FID"] == "31.46" and shown["KID x 1000"] == "12.30" and shown["precision"] == "0.654"
    assert shown["training FLOP"] == f"{result()['training_flop']:.3g}"
    assert "recall" not in shown and shown["NFE"] == "7" and shown["seed"] == "0"
    assert shown["ms an image"] == "2.5"
    of_another_model = result(stage=None, solver=None, recall=0.5, drawing_seconds=25.0)
    header, rows = table_of([result(), of_another_model], with_times=True)
    assert "ms an image" not in header  # of the first it is not known, the second was drawn elsewhere
    assert [row[header.index("recall")] for row in rows] == ["", "0.500"]
    assert shown["run"] == "euler 4, CFG 2 for t in [0.1, 0.8]"
    assert run_of(result(stage=None, solver=None)) == ""
    run = {"loss": "l2", "feature_weight": None, "critic": None}
    finished = result(stage="one_step", training_runs=[run, run | {"loss": "pseudo-huber"}])
    header, rows = table_of([result(), finished], with_losses=True)
    assert [row[header.index("losses of its last run")] for row in rows] == ["", "pseudo-huber"]
    assert "losses of its last run" not in table_of([finished])[0]


def test_tables_line_up():
    lines = text_table(("a", "long name"), [("b", "1"), ("longer", "22")]).splitlines()
    assert len({len(line) for line in lines}) == 1 and lines[-1] == "longer         22"
    assert markdown_table(("a", "b", "c"), [("c", "1", "")]) == "| a | b | c |\n| --- | ---: | --- |\n| c | 1 |  |"


def assert_is_a_picture(content: bytes) -> None:
    width, height = Image.open(io.BytesIO(content)).size
    assert width > 500 and height > 300


@pytest.mark.parametrize("axis", ["nfe", "training_flop"])
def test_a_curve_is_drawn(axis):
    group = [
        result(nfe=nfe, num_steps=steps, fid=100 / nfe, training_flop=1e15 * nfe) for nfe, steps in ((1, 1), (7, 4))
    ]
    group.append(result(stage="one_step", checkpoint="f" * 64, nfe=1, num_steps=1, guidance_scale=1.0))
    group.append(result(training_flop=3e15, fid=50.0))
    assert_is_a_picture(fid_curve(group, axis))


def test_a_curve_has_a_line_for_each_model_or_way_of_running_it():
    group = [result(nfe=7, num_steps=4, fid=20.0), result(nfe=1, num_steps=1, fid=90.0)]
    group += [result(nfe=47, num_steps=14, solver="edm-heun", fid=10.0), result(fid=None, nfe=3, num_steps=3)]
    students = [result(stage="one_step", checkpoint=letter * 64, nfe=1, num_steps=1, fid=30.0) for letter in "fg"]
    guided = "CFG 2 for t in [0.1, 0.8]"
    assert curve_series([*group, *students]) == {
        f"teacher, euler, {guided}": [(1, 90.0), (7, 20.0)],
        f"teacher, edm-heun 14, {guided}": [(47, 10.0)],
        "one-step student": [(1, 30.0)],
        "one-step student [2]": [(1, 30.0)],
    }
    again = [result(nfe=7, num_steps=4, fid=24.0, seed=1), result(nfe=7, num_steps=4, fid=26.0, checkpoint="i" * 64)]
    seeds = curve_series([*group, *again])
    assert seeds[f"teacher, euler, {guided}"] == [(1, 90.0), (7, 22.0)]  # the mean of two seeds
    assert seeds[f"teacher, euler 4, {guided}"] == [(7, 26.0)]
    once, twice = (result(checkpoint=letter * 64) for letter in "ab")
    assert list(curve_series([once, twice])) == [f"teacher, euler 4, {guided}", f"teacher, euler 4, {guided} [2]"]
    longer = result(checkpoint="h" * 64, training_flop=2e15, nfe=7, num_steps=4, fid=15.0)
    assert curve_series([*group, longer], "training_flop") == {
        f"teacher, euler 4, {guided}": [(1e15, 20.0), (2e15, 15.0)]
    }


def test_what_a_last_training_run_costs_is_drawn_from_where_it_began():
    """A line for each start and each loss, which the start's own FID begins; of other stages and seeds none."""
    pixels = {"loss": "l2", "feature_weight": None, "critic": None}
    frechet = pixels | {"critic": "frechet", "critic_weight": 0.5, "critic_images": "real"}

    def student(name, fid, run=pixels, flop=1e15, start=None, **changes):
        changes = {"stage": "one_step", "init_sha256": start, "training_runs": [run | {"flop": flop}]} | changes
        return result(checkpoint=name, fid=fid, **changes)

    group = [student("first", 30.0), student("second", 60.0), student("a", 20.0, frechet, 4e14, "first")]
    group += [student("b", 25.0, frechet, 2e14, "first"), student("c", 29.0, pixels, 2e14, "first")]
    group += [student("d", 50.0, frechet, 2e14, "second"), student("e", 10.0, frechet, 3e14, "first", seed=5)]
    group += [student("a", 21.0, frechet, 4e14, "first", arithmetic="bf16"), student("f", None, frechet, 5e14, "first")]
    group += [student("g", 9.0, frechet, 3e14, "first", stage="four_step"), student("h", 9.0, frechet, 3e14, "lost")]
    group += [result(training_runs=[]), result(), result(stage=None, checkpoint=None)]
    assert curve_series(group, "last_run_flop") == {
        "one-step student, l2 + 0.5 frechet (real images)": [(0, 30.0), (2e14, 25.0), (4e14, 20.0)],
        "one-step student, l2": [(0, 30.0), (2e14, 29.0)],
        "one-step student, l2 + 0.5 frechet (real images) [2]": [(0, 60.0), (2e14, 50.0)],
    }
    assert_is_a_picture(fid_curve(group, "last_run_flop"))


def test_the_page_is_the_one_that_the_command_writes(run_script, tmp_path):
    """No figure on it is typed by hand, and none is older than the results or the shipped models."""
    outcome = run_script("benchmarks/results_page.py", "--out", tmp_path)
    assert outcome.status == 0, outcome.err
    for page in ("docs/results.md", "README.md"):
        assert (tmp_path / page).read_text() == (ROOT / page).read_text()


def test_the_page_shows_what_was_measured_of_the_shipped_models():
    page, lines = (ROOT / "docs/results.md").read_text(), read_results(ROOT / "docs/results.jsonl")
    for path in (ROOT / "checkpoints/pretrained").glob("*.safetensors"):
        if path.name == GUIDE_NAME:
            continue
        checkpoint = load_checkpoint(path)
        measured = [line for line in lines if line["checkpoint"] == checkpoint.sha256]
        assert checkpoint.sha256[:12] in page and measured
        assert all(f"| {line['fid']:.2f} |" in page for line in measured)


def test_a_command_on_the_page_names_the_shipped_guide_and_what_kind_of_reference():
    guides = {"d" * 64: "checkpoints/pretrained/guide.safetensors"}
    guided = result(guide="d" * 64, guide_scale=2.0, guidance_scale=1.0, reference_count=None, reference="all")
    options = options_of(guided, guides)
    assert "--guide checkpoints/pretrained/guide.safetensors --guide-scale 2" in options
    assert '--reference STATISTICS.npz --reference-name "all"' in options
    assert "--guide GUIDE" in options_of(guided | {"guide": "e" * 64}, guides)
    plain = options_of(result(), guides)
    assert "--guide " not in plain and '--reference FOLDER --reference-name "JPEG CIFAR-10"' in plain


def test_the_readme_compares_all_of_the_shipped_models_and_says_which_seed_chose():
    stages = {"teacher": 10.0, "four_step": 12.0, "one_step": 14.0}
    files = {letter * 64: "checkpoints/pretrained/teacher.safetensors" for letter in "abc"}
    chosen = [
        result(stage=stage, fid=fid, checkpoint=letter * 64, seed=1000, num_samples=5000)
        for (stage, fid), letter in zip(stages.items(), "abc", strict=True)
    ]
    alone = result(fid=7.0, num_samples=50_000)  # of more samples, but of the teacher only
    text = headline([*chosen, alone], files)
    assert all(f"| {fid:.2f} |" in text for fid in stages.values()) and "7.00" not in text
    assert "5,000 samples against JPEG CIFAR-10 (50,000 images)" in text and "seed chose the settings" in text
    some_fresh = headline([*chosen, chosen[0] | {"seed": 5, "fid": 11.0}], files)
    assert "seed chose the settings" in some_fresh and "| 10.50 |" in some_fresh
    all_fresh = headline([*chosen, *(line | {"seed": 5, "fid": line["fid"] + 1} for line in chosen)], files)
    assert "seed chose the settings" not in all_fresh and "| 11.00 |" in all_fresh
    with pytest.raises(UserError, match="no results compare all of the shipped models"):
        headline([alone], files)


def test_the_spread_over_sampling_seeds_is_of_one_model_run_in_one_way():
    group = [result(fid=10.0, seed=1), result(fid=12.0, seed=2), result(fid=50.0, num_steps=2, seed=1)]
    group += [result(fid=12.5, seed=2, arithmetic="bf16")]  # the same seed, and no third one
    group += [result(fid=None, seed=3), result(fid=9.0, seed=1, checkpoint="f" * 64, stage="one_step")]
    (paragraph,) = spread_over_seeds(group)
    expected = "- teacher, euler 4, CFG 2 for t in [0.1, 0.8], fp32: 11.00, standard deviation 1.41 of 2 seeds"
    assert paragraph.splitlines()[2:] == [expected]
    assert spread_over_seeds(group[:1]) == []


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


def test_students_are_compared_by_their_losses():
    """By results of one protocol that there are of all of them, and the teacher first."""
    drawn = {"stage": "one_step", "checkpoint": "1" * 64, "num_steps": 1, "guidance_scale": 1.0}
    guided = {"guide_scale": 1.0}
    pixels = {"loss": "l2", "feature_weight": None, "critic": None, "critic_images": None, "critic_weight": None}
    features = pixels | {"loss": "features", "feature_weight": 0.2}
    finished = features | {"critic": "frechet", "critic_weight": 0.01, "critic_images": "real", "num_networks": 2}
    real = {"count": 9000, "frechet_distance": 0.5, "closer_than_real": 0.45}
    judged = {"frechet_distance": 3.25, "closer_than_real": 0.41, "held_out_error": 0.0213, "judge": "e" * 64}
    judged |= {"num_samples": 10_000, "real": real, "feature_networks_flop": 2e14, "training_runs": [pixels, finished]}
    student = result(**drawn) | guided | judged
    teacher = result() | guided | judged | {"held_out_error": None, "training_runs": [], "feature_networks_flop": 0}
    results = [result(), result(**drawn, fid=20.0), result(**drawn, fid=12.5, num_samples=50_000)]
    results.append(result(**drawn | {"checkpoint": "2" * 64}, fid=11.0, num_samples=50_000))
    results += [result(**drawn, fid=8.0, reference_sha256="d" * 64), result(**drawn, fid=7.0, seed=5)]
    results.append(result(**drawn, fid=None, num_samples=60_000))
    results.append(result(**drawn, fid=9.0, classes=["cat"], num_samples=70_000))

    section = losses_section(results, [student, teacher])
    header, _, *lines = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("|")]
    rows = [dict(zip(header, line, strict=True)) for line in lines]
    assert "recall" not in header and "MSE" in header  # measured of nobody; of one
    assert [row["model"].split(",")[0] for row in rows] == ["teacher", "one-step student"]
    assert rows[1]["FID"] == "20.00" and rows[1]["samples"] == "10,000" and rows[1]["MSE"] == "0.0213"
    assert rows[1]["losses"] == "l2; then pseudo-huber + 0.2 features + 0.01 frechet (real images) by 2 networks"
    assert rows[1]["closer than real"] == "41.0%" and "(45.0% of the" in section
    again = losses_section(results, [student, teacher, student | {"held_out_error": 0.02, "arithmetic": "bf16"}])
    assert again.count("one-step student") == 1 and "0.0200" in again and "0.0213" not in again
    alone = losses_section([line for line in results if line["stage"] != "teacher"], [student])
    assert "| 50,000 | 12.50 |" in alone
    assert "equal FLOP" not in section

    begun = {"init_sha256": student["checkpoint"]}
    alike = [
        student | begun | {"checkpoint": str(digit) * 64, "training_runs": [pixels, {**features, "flop": flop}]}
        for digit, flop in ((4, 2.0e14), (5, 2.01e14), (6, 3e14))
    ]
    before, title, after = losses_section(results, [student, *alike]).partition("### From one start, for equal FLOP")
    assert title and before.count("| one-step student |") == 2 and after.count("| one-step student |") == 3
    assert before.count("l2; then pseudo-huber + 0.2 features |") == 1
    assert after.count("| pseudo-huber + 0.2 features |") == 2 and "for 2e+14 FLOP" in after
    for line in (student | {"seed": 1, "checkpoint": "3" * 64}, teacher | {"judge": "f" * 64, "checkpoint": "3" * 64}):
        with pytest.raises(UserError, match="make no table"):
            losses_section(results, [student, teacher, line])
