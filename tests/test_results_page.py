"""The page of results, its sections, and the README's table."""

import shutil

import pytest
from conftest import ROOT
from result_line import result

from benchmarks.guidance_section import guidance_section
from benchmarks.losses_section import losses_section
from benchmarks.results_page import headline, options_of, spread_over_seeds
from common.checkpoint import GUIDE_NAME, load_checkpoint
from common.errors import UserError
from common.results import append_result, read_results


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
