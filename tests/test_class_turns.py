"""Samples have the classes of the images that a model learned from, as often as these."""

import shutil
from argparse import Namespace
from itertools import pairwise

import pytest
import torch
from conftest import SMALL_CONFIG, save_model

from common.checkpoint import load_checkpoint
from common.class_turns import class_turns, count_classes
from common.device import choose_precision
from common.image_sets import ModelSamples
from common.pairs import PairSet
from common.sampling import UNGUIDED
from common.target_images import TargetImages

CPU = torch.device("cpu")
SHORT = ("--steps", 2, "--warmup-steps", 0, "--decay-steps", 0, "--batch-size", 8, "--precision", "fp32")


def test_equal_counts_give_each_class_in_turn():
    assert class_turns([450] * 10) == class_turns([4500] * 9 + [4499]) == list(range(10))
    assert count_classes(torch.arange(30) % 10, 10) == {}


@pytest.mark.parametrize(
    "counts", [[90, 10], [3, 0, 6], [49_999, 1, 25_000], [7, 5, 4_000], [500 + 5 * label for label in range(100)]]
)
def test_a_round_has_the_shares_of_the_images_and_spreads_each_class_over_it(counts):
    turns = class_turns(counts)
    for label, count in enumerate(counts):
        places = [place for place, turn in enumerate(turns) if turn == label]
        assert len(places) / len(turns) == pytest.approx(count / sum(counts), rel=0.01, abs=1e-4)
        assert bool(places) == bool(count)
        gaps = [second - first for first, second in pairwise(places)]
        assert not gaps or max(gaps) <= len(turns) / len(places) + len(counts)


def test_pairs_students_and_measured_samples_have_the_classes_of_the_images(
    run_script, compute_fid, results, image_folder, tmp_path, monkeypatch
):
    """From images of which the first class has nine times as many as the second."""
    from common import presets

    monkeypatch.setitem(presets.NETWORKS, "tiny", SMALL_CONFIG)
    for name, count in (("a", 18), ("b", 2)):
        (tmp_path / "images" / name).mkdir(parents=True)
        for path in sorted(image_folder.rglob("*.png"))[:count]:
            shutil.copy(path, tmp_path / "images" / name)
    data = ("--preset", "tiny", "--data", "folder", "--data-dir", tmp_path / "images", "--val-fraction", 0)
    teacher, student = tmp_path / "teacher" / "teacher.safetensors", tmp_path / "student" / "student.safetensors"
    assert run_script("teacher_rectified_flow.py", *data, *SHORT, "--out", teacher.parent).status == 0
    pairs = ("--teacher", teacher, "--num-pairs", 100, "--num-steps", 4, "--out", tmp_path / "pairs")
    assert run_script("generate_noise_dataset.py", *pairs).status == 0
    assert PairSet(tmp_path / "pairs", CPU).gather(torch.arange(100)).labels.bincount().tolist() == [90, 10]
    distill = ("--teacher", teacher, "--pairs", tmp_path / "pairs", "--out", student.parent)
    assert run_script("distill_student.py", "--preset", "tiny", *distill, *SHORT).status == 0
    for path in (teacher, student):
        checkpoint = load_checkpoint(path)
        assert checkpoint.header["class_counts"] == [18, 2] and checkpoint.class_turns.count(0) == 9
    assert compute_fid(student).status == compute_fid(student, "--classes", "a", "b").status == 0
    assert [line["classes"] for line in results()] == [None, ["a", "b"]]  # as often as in training, and in turn
    assert results()[0]["fid"] != results()[1]["fid"]
    target = TargetImages(
        Namespace(critic_images="teacher"), load_checkpoint(teacher), PairSet(tmp_path / "pairs", CPU)
    )
    assert target.labels.bincount().tolist() == [9, 1]


def test_only_chosen_classes_are_on_record(tmp_path):
    save_model(tmp_path / "a.safetensors", "teacher", 0, arguments={"label_dropout": 0.1}, class_counts=[3] + [1] * 9)
    checkpoint = load_checkpoint(tmp_path / "a.safetensors")
    every = ModelSamples(checkpoint, UNGUIDED, 0, checkpoint.class_turns, choose_precision("fp32", CPU))
    chosen = ModelSamples(checkpoint, UNGUIDED, 0, range(10), choose_precision("fp32", CPU))
    assert every.describe()["classes"] is None and chosen.describe()["classes"] == checkpoint.class_names
