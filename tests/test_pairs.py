"""The pair generator through its command line, and the pair set that the students read."""

import dataclasses
import json

import pytest
import torch
from conftest import SMALL_CONFIG, folder_contents, save_model

from common.checkpoint import load_checkpoint, save_checkpoint
from common.errors import UserError
from common.files import folder_to_oneself
from common.images import to_uint8
from common.noise import sample_noise
from common.pair_shards import TRAJECTORY_TIMES, read_shard, shard_path
from common.pairs import PairSet
from common.sampling import SamplingSettings, draw
from common.solvers import time_grid
from common.training_state import STATE_FILE

CPU = torch.device("cpu")


@pytest.fixture
def generate(run_script, make_teacher, tmp_path):
    def run(out="pairs", *arguments, num_pairs=40, teacher=None):
        teacher = teacher or make_teacher()
        command = ("--teacher", teacher, "--out", tmp_path / out, "--num-pairs", num_pairs, "--precision", "fp32")
        return run_script("generate_noise_dataset.py", *command, "--num-steps", 4, *arguments)

    return run


def test_a_pair_is_the_teachers_image_of_its_noise(generate, make_teacher, tmp_path):
    assert generate().status == 0
    pairs = PairSet(tmp_path / "pairs", CPU, TRAJECTORY_TIMES)
    batch = pairs.gather(torch.tensor([3, 17]))
    assert torch.equal(batch.noise[1], sample_noise(0, 17, 1, (3, 32, 32), "pairs")[0])
    assert batch.labels.tolist() == [3, 7]
    settings = SamplingSettings("adams", 4, guidance_scale=2.0)
    expected = draw(load_checkpoint(make_teacher()).model, batch.noise, batch.labels, settings, TRAJECTORY_TIMES)
    torch.testing.assert_close(batch.image, expected.images, atol=5e-3, rtol=2e-3)
    torch.testing.assert_close(batch.states, torch.stack(expected.states, dim=1), atol=5e-3, rtol=2e-3)
    assert torch.equal(batch.trajectory[:, 0], batch.noise) and torch.equal(batch.trajectory[:, 4], batch.image)


def test_pairs_do_not_depend_on_the_batch_size(generate, tmp_path):
    generate("a")
    generate("b", "--batch-size", 7)
    first, second = read_shard(tmp_path / "a" / "pairs_00000.pt"), read_shard(tmp_path / "b" / "pairs_00000.pt")
    assert first["header"] == second["header"]
    assert torch.equal(first["noise"], second["noise"]) and torch.equal(first["labels"], second["labels"])
    for name in ("image", "states"):
        assert (to_uint8(first[name]).int() - to_uint8(second[name]).int()).abs().max() <= 1


def test_a_set_that_another_process_makes_is_left_alone(generate, tmp_path):
    with folder_to_oneself(tmp_path / "pairs"):
        assert "another process is at work in" in generate().error_line
    assert not (tmp_path / "pairs").exists()


def test_a_set_grows_and_keeps_what_it_has(generate, tmp_path):
    generate("grown", num_pairs=20)
    small = read_shard(tmp_path / "grown" / "pairs_00000.pt")["image"].clone()
    generate("grown", "--batch-size", 7, num_pairs=40)
    generate("whole", num_pairs=40)
    grown, whole = (read_shard(tmp_path / name / "pairs_00000.pt") for name in ("grown", "whole"))
    assert torch.equal(grown["image"][:20], small)
    assert grown["header"] == whole["header"]
    assert torch.equal(grown["noise"], whole["noise"]) and torch.equal(grown["labels"], whole["labels"])
    assert (to_uint8(grown["image"]).int() - to_uint8(whole["image"]).int()).abs().max() <= 1


def test_another_recipe_is_refused_and_overwrites_nothing(generate, make_teacher, tmp_path):
    generate()
    before = folder_contents(tmp_path / "pairs")
    assert "made with --seed 0, not 1: give --seed 0, or choose" in generate("pairs", "--seed", 1).error_line
    assert "not bf16: give --precision fp32, or" in generate("pairs", "--precision", "bf16").error_line
    other = generate("pairs", "--guidance-scale", 3, "--guidance-interval", 0, 1).error_line
    assert "CFG 2 for t in [0.1, 0.8], not by" in other
    assert "give --guidance-scale 2.0 --guidance-interval 0.1 0.8, or" in other
    assert "not 0.5: give --trajectory-times with these" in generate("pairs", "--trajectory-times", 0.5).error_line
    guided = generate("pairs", "--guide", make_teacher(seed=1)).error_line
    assert (
        "was made without a guide, not with the guide of SHA-256" in guided
        and "give --guidance-scale 2, and neither --guide nor --guide-scale, or" in guided
    )
    assert "made with teacher" in generate(teacher=make_teacher(seed=1)).error_line
    assert folder_contents(tmp_path / "pairs") == before
    shard_path(tmp_path / "pairs", 0).rename(shard_path(tmp_path / "pairs", 1))  # the set's first shard is lost
    assert "made with --seed 0, not 1" in generate("pairs", "--seed", 1).error_line
    assert not shard_path(tmp_path / "pairs", 0).exists()


def test_a_damaged_shard_is_named(generate, tmp_path):
    generate()
    path = tmp_path / "pairs" / "pairs_00000.pt"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"pairs_00000.pt is not a readable file of noise pairs"):
        PairSet(tmp_path / "pairs", CPU)
    assert "not a readable" in generate().error_line


def test_a_missing_shard_is_noticed(generate, tmp_path):
    generate()
    (tmp_path / "pairs" / "pairs_00000.pt").rename(tmp_path / "pairs" / "pairs_00001.pt")
    with pytest.raises(UserError, match=r"lacks pairs before pairs_00001.pt"):
        PairSet(tmp_path / "pairs", CPU)


def test_held_out_pairs_train_nothing(generate, tmp_path):
    generate()
    pairs = PairSet(tmp_path / "pairs", CPU)
    assert len(pairs) == 40 and pairs.held_out_count == 4 and pairs.training_count == 36
    assert pairs.are_those_of({"pairs": pairs.header | {"precision": "bf16"}}) and not pairs.are_those_of({})
    assert not pairs.are_those_of({"pairs": pairs.header | {"seed": 1}})
    training = pairs.training_batch(torch.arange(36), torch.zeros(36, dtype=torch.bool)).noise
    held_out = pairs.held_out().noise
    distances = (training[:, None] - held_out[None]).flatten(2).norm(dim=2)
    assert distances.min() > 10
    assert torch.equal(torch.cat([held_out, training]), pairs.gather(torch.arange(40)).noise)


def test_flips_mirror_the_whole_pair(generate, tmp_path):
    generate()
    pairs = PairSet(tmp_path / "pairs", CPU, TRAJECTORY_TIMES)
    plain = pairs.training_batch(torch.tensor([0, 1]), torch.tensor([False, False]))
    mirrored = pairs.training_batch(torch.tensor([0, 1]), torch.tensor([False, True]))
    assert torch.equal(mirrored.trajectory[0], plain.trajectory[0])
    assert torch.equal(mirrored.trajectory[1], plain.trajectory[1].flip(-1))


def test_unguidable_and_unconditional_teachers(generate, make_teacher, tmp_path):
    plain = make_teacher(label_dropout=0.0)
    assert "label dropout" in generate("plain", "--guidance-scale", 2, teacher=plain).error_line
    assert generate("plain", teacher=plain).status == 0
    assert PairSet(tmp_path / "plain", CPU).settings.guidance_scale == 1
    unconditional = make_teacher(config=dataclasses.replace(SMALL_CONFIG, num_classes=0))
    assert generate("unconditional", teacher=unconditional).status == 0
    assert PairSet(tmp_path / "unconditional", CPU).gather(torch.tensor([0])).labels is None


def test_states_are_kept_at_the_solvers_times_nearest_to_those_asked_for(generate, make_teacher, tmp_path):
    result = generate("pairs", "--num-steps", 6, "--trajectory-times", 0.8, 0.3)
    assert result.status == 0 and "four_step_student.py needs them at t = 0.25, 0.5, 0.75" in result.err
    kept = [time_grid("adams", 6)[index] for index in (2, 5)]
    pairs = PairSet(tmp_path / "pairs", CPU, kept)
    assert pairs.header["trajectory_times"] == kept
    batch = pairs.gather(torch.tensor([3, 17]))
    settings = SamplingSettings("adams", 6, guidance_scale=2.0)
    expected = draw(load_checkpoint(make_teacher()).model, batch.noise, batch.labels, settings, kept)
    torch.testing.assert_close(batch.states, torch.stack(expected.states, dim=1), atol=5e-3, rtol=2e-3)


def test_pairs_that_no_four_step_student_can_use_say_what_would_help(generate):
    assert "give these --trajectory-times, too" in generate("few", "--trajectory-times", 0.5).err
    assert "where --num-steps is a multiple of 4" in generate("coarse", "--num-steps", 6).err
    assert "warning" not in generate("none", "--trajectory-times").err


def test_times_that_the_solver_cannot_tell_apart_are_refused(generate, tmp_path):
    assert "2 steps do not pass through 3 times" in generate("pairs", "--num-steps", 2).error_line
    assert "1 steps do not" in generate("pairs", "--num-steps", 1).error_line
    refused = generate("pairs", "--trajectory-times", 0.5, 1).error_line
    assert "--trajectory-times: 1 is not less than 1" in refused  # which the images are the states at
    assert "too close together" in generate("pairs", "--num-steps", 5, "--trajectory-times", 0.3, 0.31).error_line
    assert not (tmp_path / "pairs").exists()


def test_batches_hold_the_states_that_were_asked_for_and_by_default_none(generate, tmp_path):
    result = generate("pairs", "--num-steps", 8, "--trajectory-times", 0.1, 0.25, 0.5, 0.6, 0.75)
    assert result.status == 0 and "warning" not in result.err
    held = PairSet(tmp_path / "pairs", CPU).header["trajectory_times"]
    everything, quarters = (PairSet(tmp_path / "pairs", CPU, times) for times in (held, TRAJECTORY_TIMES))
    rows = torch.tensor([7, 0, 3])
    assert everything.gather(rows).states.shape == (3, 5, 3, 32, 32)
    assert torch.equal(quarters.gather(rows).states, everything.gather(rows).states[:, [1, 2, 4]])
    assert PairSet(tmp_path / "pairs", CPU).gather(rows).states is None
    with pytest.raises(UserError, match=r"at t = 0.094, 0.25, 0.5, 0.612, 0.75, and those at 0.3, 0.5 are needed"):
        PairSet(tmp_path / "pairs", CPU, (0.3, 0.5))


def test_pairs_of_a_paused_teacher_come_with_a_warning(generate, tmp_path):
    arguments = {"label_dropout": 0.1, "steps": 9}
    for step, what in ((4, "run"), (9, "run"), (4, "snapshot")):
        path = tmp_path / f"{what}_{step}" / "teacher.safetensors"
        save_model(path, "teacher", 0, arguments=arguments, step=step)
        if what == "run":
            (path.parent / STATE_FILE).touch()
        result = generate(f"of_{what}_{step}", teacher=path, num_pairs=10)
        assert result.status == 0
        assert ("is paused after 4 of 9 steps" in result.err) == ((step, what) == (4, "run"))


def test_a_student_that_begins_as_one_of_fewer_pairs_is_refused(generate, run_script, make_teacher, tmp_path):
    """What is held out of more pairs may have trained it, or what it began as itself; of other noise it has not."""
    generate("fewer", num_pairs=20)
    generate("more", num_pairs=40)
    generate("finer", "--num-steps", 8, num_pairs=40)
    generate("others", "--seed", 1, num_pairs=40)
    generate("smaller", num_pairs=10)  # of which one is held out, the first of the two that were
    short = ("--teacher", make_teacher(), "--steps", 1, "--warmup-steps", 0, "--decay-steps", 0, "--batch-size", 4)
    init = ()
    for name in ("first", "second"):
        run = (*short, "--pairs", tmp_path / "fewer", "--out", tmp_path / name, *init)
        assert run_script("distill_student.py", *run).status == 0
        init = ("--init", tmp_path / name / "student.safetensors")
        for pairs in ("more", "finer"):
            larger = (*short, "--pairs", tmp_path / pairs, "--out", tmp_path / "larger", *init)
            assert "learned from 20 pairs" in run_script("distill_student.py", *larger).error_line
    for pairs in ("others", "smaller"):
        allowed = (*short, "--pairs", tmp_path / pairs, "--out", tmp_path / f"of_{pairs}", *init)
        assert run_script("distill_student.py", *allowed).status == 0


def test_a_student_does_not_begin_as_a_teacher_that_learned_from_what_is_held_out(
    generate, run_script, make_teacher, tmp_path
):
    """A teacher after reflow, whose own new pairs have the noise of those that straightened it."""
    generate("of_first", num_pairs=20)
    short = ("--steps", 1, "--warmup-steps", 0, "--decay-steps", 0, "--batch-size", 4)
    network = {name: value for name, value in SMALL_CONFIG.to_dict().items() if name != "num_classes"}
    start = ("--preset", "tiny", "--network", json.dumps(network), "--init", make_teacher())
    reflow = ("--pairs", tmp_path / "of_first", *start, "--out", tmp_path / "reflow")
    result = run_script("teacher_rectified_flow.py", *reflow, *short)
    assert result.status == 0, result.err
    straightened = tmp_path / "reflow" / "teacher.safetensors"
    generate("of_second", num_pairs=40, teacher=straightened)
    student = ("--teacher", straightened, "--pairs", tmp_path / "of_second", *short, "--out", tmp_path / "student")
    refused = run_script("distill_student.py", *student).error_line
    assert "teacher.safetensors learned from 20 pairs" in refused
    assert run_script("distill_student.py", *student, "--num-pairs", 20).status == 0


def test_images_that_are_not_finite_make_no_pairs(generate, make_teacher, tmp_path):
    teacher = make_teacher()
    checkpoint = load_checkpoint(teacher)
    checkpoint.model.final_conv.weight.data.fill_(1e6)
    save_checkpoint(teacher, checkpoint.model, checkpoint.header)
    assert "the teacher's images are not finite" in generate(teacher=teacher).error_line
    assert not list((tmp_path / "pairs").glob("*.pt"))


def test_a_student_cannot_make_pairs(generate, make_teacher, run_script, tmp_path):
    teacher = make_teacher()
    generate(teacher=teacher)
    arguments = ("--teacher", teacher, "--pairs", tmp_path / "pairs", "--out", tmp_path / "student", "--batch-size", 4)
    assert (
        run_script("distill_student.py", *arguments, "--steps", 1, "--warmup-steps", 0, "--decay-steps", 0).status == 0
    )
    assert "pairs are made by a teacher" in generate(teacher=tmp_path / "student" / "student.safetensors").error_line
