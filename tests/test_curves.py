"""FID as a curve, over what an image or a model costs."""

import io

import pytest
from PIL import Image
from result_line import result

from common.curves import curve_series, fid_curve


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
