"""FID as a curve, over what an image or a model costs."""

import io

import pytest
from PIL import Image
from result_line import result

from common.curves import GAP, curve_series, fid_curve


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
    elsewhere = result(nfe=7, num_steps=4, fid=20.5, arithmetic="bf16")  # the same samples, not a third seed
    assert curve_series([*group, *again, elsewhere])[f"teacher, euler, {guided}"] == [(1, 90.0), (7, 22.25)]
    once, twice = (result(checkpoint=letter * 64) for letter in "ab")
    assert list(curve_series([once, twice])) == [f"teacher, euler 4, {guided}", f"teacher, euler 4, {guided} [2]"]
    longer = result(checkpoint="h" * 64, training_flop=2e15, nfe=7, num_steps=4, fid=15.0)
    assert curve_series([*group, longer], "training_flop") == {
        f"teacher, euler 4, {guided}": [(1e15, 20.0), (2e15, 15.0)]
    }


def test_students_that_were_finished_are_drawn_from_where_each_began():
    """A piece for each, by its FLOP of finishing in all; pieces by the same losses are one line."""
    pixels = {"loss": "l2", "feature_weight": None, "critic": None}
    frechet = pixels | {"critic": "frechet", "critic_weight": 0.5, "critic_images": "real"}

    def student(name, fid, flop, start=None, run=frechet, **changes):
        changes = {"stage": "one_step", "init_sha256": start, "training_runs": [run], "training_flop": flop} | changes
        return result(checkpoint=name, fid=fid, **changes)

    group = [student("first", 30.0, 1e15, run=pixels), student("a", 19.0, 3e15, "first"), student("b", 16.0, 4e15, "a")]
    group += [student("a", 21.0, 3e15, "first", seed=5), student("c", 29.0, 2e15, "first", pixels)]
    group += [student("d", None, 5e15, "first"), student("e", 9.0, 3e15, "lost")]
    group += [student("f", 9.0, 3e15, "first", stage="four_step"), student("alone", 60.0, 1e15)]
    group += [result(training_runs=[]), result(), result(stage=None, checkpoint=None)]
    assert curve_series(group, "finishing_flop") == {
        "one-step student, l2 + 0.5 frechet (real images)": [(0, 30.0), (2e15, 20.0), GAP, (2e15, 20.0), (3e15, 16.0)],
    }
    assert_is_a_picture(fid_curve(group, "finishing_flop"))
