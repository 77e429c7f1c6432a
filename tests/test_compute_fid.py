"""`compute_fid.py` as its users run it, with a small random network in the place of Inception."""

import json
import shutil

import numpy as np
import pytest
import torch
from conftest import EULER, ROOT, RandomInception, save_random_inception, save_students
from PIL import Image

from common import metrics
from common.checkpoint import load_checkpoint
from common.data import ImageData, load_images
from common.device import choose_precision
from common.errors import UserError
from common.feature_store import FeatureStore
from common.image_sets import ModelSamples, PictureFiles, load_image_set
from common.images import through_jpeg
from common.inception import Inception, fold_batch_norm
from common.reference import open_reference
from common.results import read_results
from common.sampling import SamplingSettings

CPU = torch.device("cpu")


def test_a_checkpoint_is_measured_and_its_line_tells_how(compute_fid, results, make_teacher, image_folder, tmp_path):
    teacher = make_teacher()
    outcome = compute_fid(teacher, *EULER, "--seed", 3)
    assert outcome.status == 0, outcome.err
    (line,) = results()

    # The same, by hand: 40 samples of seed 3, the folder's images, and the network's features of both.
    checkpoint, inception = load_checkpoint(teacher), Inception(tmp_path / "inception.pth", CPU)
    settings = SamplingSettings("euler", 2, 2.0)
    samples = ModelSamples(checkpoint, settings, 3, range(10), choose_precision("auto", CPU))
    generated = inception(torch.cat([images for images, _ in samples.batches(0, 40)]))
    reference = inception(PictureFiles.below(image_folder)[:])
    fid = metrics.frechet_distance(metrics.statistics(generated), metrics.statistics(reference))
    assert line["fid"] == pytest.approx(fid, rel=1e-4) and f"{fid:.2f}" in outcome.out
    assert line["kid"] == pytest.approx(metrics.kernel_inception_distance(generated, reference)[0], rel=1e-4)
    assert (line["precision"], line["recall"], 40) == metrics.precision_and_recall(generated, reference)

    assert line["checkpoint"] == checkpoint.sha256 and line["guide"] is None and line["stage"] == "teacher"
    assert (line["solver"], line["num_steps"], line["seed"], line["num_samples"]) == ("euler", 2, 3, 40)
    assert line["nfe"] == 3  # the step at t = 0.5 is guided, that at 0 is not
    assert (line["guidance_scale"], line["guidance_interval"]) == (2, [0.1, 0.8])
    assert line["reference"] == "shapes" and line["reference_count"] == 200
    # Where it said more or less than the recorded results, measuring one of these again would not be recognised.
    assert line.keys() == read_results(ROOT / "docs" / "results.jsonl")[-1].keys()
    assert 0 < line["drawing_seconds"] < line["seconds"] + 0.1
    assert str(tmp_path) not in json.dumps(line)
    assert "few" in outcome.err and "no Inception Score" in outcome.err and line["inception_score"] is None


def test_models_of_one_stage_are_told_apart(compute_fid, make_teacher):
    teachers = [make_teacher(seed=seed) for seed in (1, 2)]
    outcome = compute_fid(*teachers, *EULER)
    for path in teachers:
        name = f"`{load_checkpoint(path).sha256[:8]}`"
        assert [line.split()[-1] for line in outcome.out.splitlines() if line.startswith(name)] == [str(path)]
        assert sum(name in line and "teacher" in line.split()[0] for line in outcome.out.splitlines()) == 1


def test_the_same_images_have_no_distance(compute_fid, results, image_folder):
    assert compute_fid(image_folder, "--num-samples", 200).status == 0
    (line,) = results()
    assert abs(line["fid"]) < 1e-6 and line["precision"] == line["recall"] == 1
    assert line["stage"] is None and line["images_sha256"] == line["reference_sha256"]


@pytest.mark.parametrize("fit", ["resize", "crop"])
def test_a_reference_of_any_size_is_fitted_as_for_training(compute_fid, results, make_teacher, tmp_path, fit):
    for index in range(40):
        size = (40 + index, 64)
        picture = Image.effect_noise(size, 50).convert("RGB")
        (tmp_path / "photos" / "all").mkdir(parents=True, exist_ok=True)
        picture.save(tmp_path / "photos" / "all" / f"{index}.png")
    assert "(--fit is for those of a --ref" in compute_fid(make_teacher(), reference=tmp_path / "photos").error_line
    assert compute_fid(make_teacher(), *EULER, "--fit", fit, reference=tmp_path / "photos").status == 0
    trained_on = load_images("folder", tmp_path / "photos", 32, crop=fit == "crop").images
    np.savez(tmp_path / "fitted.npz", arr_0=trained_on.permute(0, 2, 3, 1).numpy())
    assert compute_fid(tmp_path / "fitted.npz", "--fit", fit, reference=tmp_path / "photos").status == 0
    model, same = results()
    assert abs(same["fid"]) < 1e-6 and model["reference_sha256"] == same["images_sha256"]
    assert model["reference"] == {"resize": "photos, resized", "crop": "photos, cropped"}[fit]


def test_samples_of_some_classes_ask_for_a_reference_of_these(compute_fid, make_teacher):
    names = load_checkpoint(make_teacher()).class_names
    warned = compute_fid(make_teacher(), *EULER, "--classes", names[1]).err
    assert f"the samples are of {names[1]} alone" in warned
    for all_of_them in ((), ("--classes", *reversed(names))):
        assert "alone" not in compute_fid(make_teacher(), *EULER, *all_of_them).err


def test_an_npz_of_samples_is_measured_like_the_model_that_made_it(
    compute_fid, results, run_script, make_teacher, tmp_path
):
    teacher = make_teacher()
    run_script("sample.py", teacher, *EULER, "--num-images", 40, "--out", tmp_path / "theirs.npz")
    assert compute_fid(teacher, tmp_path / "theirs.npz", *EULER).status == 0
    model, images = results()
    assert images["fid"] == pytest.approx(model["fid"], rel=1e-5) and images["name"] == "theirs.npz"
    assert images["checkpoint"] is None and images["nfe"] == 0


def test_statistics_give_the_fid_of_the_images_that_they_are_of(compute_fid, results, make_teacher, tmp_path):
    teacher = make_teacher()
    compute_fid(teacher, *EULER)
    (statistics,) = (tmp_path / "features").glob("*/statistics.npz")
    outcome = compute_fid(teacher, *EULER, reference=statistics)
    images, saved = results()
    assert saved["fid"] == pytest.approx(images["fid"], rel=1e-9)
    assert saved["kid"] is saved["precision"] is saved["recall"] is saved["reference_count"] is None
    assert "no KID, precision or recall" in outcome.err


def test_the_inception_score_is_there_with_a_real_classifier(compute_fid, results, make_teacher, tmp_path):
    save_random_inception(tmp_path / "inception.pth", with_classifier=True)
    outcome = compute_fid(make_teacher(), *EULER)
    score = results()[0]["inception_score"]
    assert score >= 1 and "no Inception Score" not in outcome.err
    assert "Inception Score" in outcome.out and f"{score:.2f}" in outcome.out


def test_an_interrupted_run_goes_on_with_its_features(compute_fid, results, make_teacher, monkeypatch, tmp_path):
    teacher = make_teacher()
    monkeypatch.setattr("common.feature_store.PART_SIZE", 16)
    assert compute_fid(teacher, *EULER).status == 0
    unbroken = results()[0]
    shutil.rmtree(tmp_path / "features")
    (tmp_path / "results.jsonl").unlink()

    extracted, extract = [], Inception.__call__

    def extract_or_stop(self, images):
        extracted.append(len(images))
        if len(extracted) == stop_at:
            raise KeyboardInterrupt
        return extract(self, images)

    monkeypatch.setattr(Inception, "__call__", extract_or_stop)
    stop_at = 13 + 2  # the reference is 13 parts; in the second part of the samples
    stopped = compute_fid(teacher, *EULER)
    assert stopped.status == 130 and "Traceback" not in stopped.err
    before, stop_at = sum(extracted[:-1]), None
    assert compute_fid(teacher, *EULER).status == 0
    assert sum(extracted) - before - extracted[14] == 40 - 16  # everything else was on disk
    assert {key: results()[0][key] for key in ("fid", "kid", "nfe")} == {
        key: unbroken[key] for key in ("fid", "kid", "nfe")
    }


def test_a_damaged_part_is_made_again(compute_fid, results, make_teacher, tmp_path):
    teacher = make_teacher()
    compute_fid(teacher, *EULER)
    for part in (tmp_path / "features").glob("*/part_*"):
        part.write_bytes(part.read_bytes()[:-40])
    assert compute_fid(teacher, *EULER).status == 0
    assert len(results()) == 1  # to the digit the same, so it stands there once


def test_more_samples_build_on_those_that_there_are(compute_fid, make_teacher, monkeypatch):
    teacher = make_teacher()
    monkeypatch.setattr("common.feature_store.PART_SIZE", 32)
    compute_fid(teacher, *EULER, "--num-samples", 32)
    extracted, extract = [], Inception.__call__
    monkeypatch.setattr(
        Inception, "__call__", lambda self, images: (extracted.append(len(images)), extract(self, images))[1]
    )
    compute_fid(teacher, *EULER, "--num-samples", 50)
    assert sum(extracted) == 18


def test_features_of_changed_images_are_never_reused(image_folder, random_inception, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(image_folder, folder)
    store = FeatureStore(tmp_path / "features", Inception(random_inception, CPU))
    before = load_image_set(folder)
    changed = sorted(folder.rglob("*.png"))[7]
    Image.open(changed).rotate(90).save(changed)
    after = load_image_set(folder)
    assert before.sha256 != after.sha256 and store.place(before) != store.place(after)
    save_random_inception(random_inception, with_classifier=True)  # other weights, other features
    assert FeatureStore(tmp_path / "features", Inception(random_inception, CPU)).place(after) != store.place(after)


def test_features_say_where_they_were_made_whoever_reads_them(image_folder, random_inception, tmp_path, monkeypatch):
    images, inception = load_image_set(image_folder), Inception(random_inception, CPU)
    monkeypatch.setattr("common.feature_store.PART_SIZE", 8)
    for machine, count in (("first", 8), ("second", 16), ("third", 16)):
        monkeypatch.setattr("common.feature_store.describe_machine", lambda device, machine=machine: machine)
        features = FeatureStore(tmp_path / "features", inception).features(images, count)
    assert features.machines == {"first", "second"} and len(features.code_versions) == 1


def test_images_that_change_while_they_are_measured_are_refused(image_folder, random_inception, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(image_folder, folder)
    store, images = FeatureStore(tmp_path / "features", Inception(random_inception, CPU)), load_image_set(folder)
    changed = sorted(folder.rglob("*.png"))[150]
    Image.open(changed).rotate(90).save(changed)
    with pytest.raises(UserError, match="have changed"):
        store.features(images, images.count)
    assert not (tmp_path / "features").exists()


def test_a_sweep_draws_teacher_and_students(compute_fid, results, make_teacher, tmp_path):
    teacher = make_teacher()
    save_students(teacher.parent, teacher)
    figure = tmp_path / "sweep.png"
    models = (teacher, teacher.parent / "four_step.safetensors")
    outcome = compute_fid(*models, "--solver", "euler", "--sweep", "1,2,4", "--figure", figure)
    assert outcome.status == 0, outcome.err
    measured = [(line["stage"], line["num_steps"], line["nfe"]) for line in results()]
    assert measured == [("teacher", 1, 1), ("teacher", 2, 3), ("teacher", 4, 7), ("four_step", 4, 4)]
    assert all(f"euler {steps}, CFG 2" in outcome.out for steps in (1, 2, 4))
    assert Image.open(figure).size > (500, 300)


def test_a_cifar10_image_goes_through_a_real_jpeg_file(tmp_path):
    image = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    path = tmp_path / "image.jpg"
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(path, quality=75)  # Pillow's default is 4:2:0
    assert (through_jpeg(image) == PictureFiles([path])[:1][0]).all()


def test_cifar10_compressed_in_memory_is_the_reference_that_a_folder_of_its_jpeg_files_is(monkeypatch, tmp_path):
    images = torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([1, 0, 1, 1, 0, 0])
    cifar10 = ImageData(images, labels, ["airplane", "automobile"])
    monkeypatch.setattr("common.data._load_cifar10", lambda path, image_size: cifar10)
    for index, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
        folder = tmp_path / cifar10.class_names[label]
        folder.mkdir(exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{index:04}.jpg", quality=75)
    plain, compressed = (open_reference(name, None, "data") for name in ("cifar10", "cifar10-jpeg"))
    assert (plain.images.images == images).all() and plain.name == "cifar10" and plain.count == 6
    assert compressed.name == "cifar10-jpeg"
    assert compressed.sha256 == open_reference(str(tmp_path), None, "data").sha256 != plain.sha256
    trained_on = [load_images(name, tmp_path).sha256() for name in ("cifar10-jpeg", "folder")]
    assert trained_on[0] == trained_on[1]


def test_a_subset_of_a_folder_is_random_and_repeatable(image_folder):
    once, again, other = (load_image_set(image_folder, 20, seed) for seed in (0, 0, 1))
    assert once.sha256 == again.sha256 != other.sha256
    assert len({file.parent.name for file in once.images.files}) > 4


def test_folding_leaves_the_features_as_they_are(random_inception):
    plain = RandomInception("", ["2048"], random_inception)
    folded = fold_batch_norm(RandomInception("", ["2048"], random_inception))
    images = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        assert torch.allclose(plain(images)[0], folded(images)[0], atol=1e-5)


def test_memory_holds_a_batch_of_images_at_a_time(random_inception, make_teacher, tmp_path, monkeypatch):
    largest, extract = [], Inception.__call__
    monkeypatch.setattr(
        Inception, "__call__", lambda self, images: (largest.append(len(images)), extract(self, images))[1]
    )
    samples = ModelSamples(
        load_checkpoint(make_teacher()), SamplingSettings("euler", 1), 0, range(10), choose_precision("fp32", CPU), 8
    )
    features = FeatureStore(tmp_path / "features", Inception(random_inception, CPU)).features(samples, 100)
    assert max(largest) == 8 and features.values.shape == (100, RandomInception.FEATURE_COUNT)
