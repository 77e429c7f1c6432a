"""`compute_fid.py` as its users run it, with a small random network in the place of Inception."""

import json
import shutil

import numpy as np
import pytest
import torch
from conftest import RandomInception, folder_contents, random_network, save_random_inception
from PIL import Image

from common import metrics
from common.checkpoint import load_checkpoint
from common.data import ImageData
from common.device import choose_precision
from common.errors import UserError
from common.feature_store import FeatureStore
from common.image_sets import ModelSamples, PictureFiles, load_image_set, through_jpeg
from common.inception import Inception, fold_batch_norm
from common.reference import open_reference
from common.sampling import SamplingSettings

CPU = torch.device("cpu")
EULER = ("--solver", "euler", "--num-steps", 2)


@pytest.fixture
def compute_fid(run_script, random_inception, image_folder, tmp_path):
    """compute_fid(inputs and options ...): against the folder of drawn shapes, results in results.jsonl."""

    def run(*arguments, reference=image_folder):
        defaults = ("--num-samples", 40, "--reference", reference, "--inception-weights", random_inception)
        files = ("--features", tmp_path / "features", "--output", tmp_path / "results.jsonl")
        return run_script("compute_fid.py", *defaults, *files, *arguments)

    return run


@pytest.fixture
def results(tmp_path):
    return lambda: [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]


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
    fid = metrics.frechet_inception_distance(metrics.statistics(generated), metrics.statistics(reference))
    assert line["fid"] == pytest.approx(fid, rel=1e-4) and f"{fid:.2f}" in outcome.out
    assert line["kid"] == pytest.approx(metrics.kernel_inception_distance(generated, reference)[0], rel=1e-4)
    assert (line["precision"], line["recall"], 40) == metrics.precision_and_recall(generated, reference)

    assert line["checkpoint"] == checkpoint.sha256 and line["guide"] is None and line["stage"] == "teacher"
    assert (line["solver"], line["num_steps"], line["seed"], line["num_samples"]) == ("euler", 2, 3, 40)
    assert line["nfe"] == 3  # the step at t = 0.5 is guided, that at 0 is not
    assert (line["guidance_scale"], line["guidance_interval"]) == (2, [0.1, 0.8])
    assert line["reference"] == "shapes" and line["reference_count"] == 200
    assert {"training_flop", "images_seen", "versions", "machine", "seconds", "inception_sha256"} <= set(line)
    assert str(tmp_path) not in json.dumps(line)
    assert "few" in outcome.err and "no Inception Score" in outcome.err and line["inception_score"] is None


def test_the_same_images_have_no_distance(compute_fid, results, image_folder):
    assert compute_fid(image_folder, "--num-samples", 200).status == 0
    (line,) = results()
    assert abs(line["fid"]) < 1e-6 and line["precision"] == line["recall"] == 1
    assert line["stage"] is None and line["images_sha256"] == line["reference_sha256"]


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
    assert results()[0]["inception_score"] >= 1 and "no Inception Score" not in outcome.err


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
    figure = tmp_path / "sweep.png"
    outcome = compute_fid(teacher, "--solver", "euler", "--sweep", "1,2,4", "--figure", figure)
    assert outcome.status == 0, outcome.err
    assert [(line["num_steps"], line["nfe"]) for line in results()] == [(1, 1), (2, 3), (4, 7)]
    assert all(f"euler {steps}, guidance 2" in outcome.out for steps in (1, 2, 4))
    assert Image.open(figure).size > (500, 300)


def test_a_cifar10_image_goes_through_a_real_jpeg_file(tmp_path):
    image = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    path = tmp_path / "image.jpg"
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(path, quality=75)  # Pillow's default is 4:2:0
    assert (through_jpeg(image) == PictureFiles([path])[:1][0]).all()


def test_cifar10_is_read_as_it_is_or_through_jpeg(monkeypatch):
    images = torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr("common.image_sets.load_images", lambda name, path: ImageData(images, torch.zeros(6), ["a"]))
    plain, compressed = (open_reference(name, None, "data") for name in ("cifar10", "cifar10-jpeg"))
    assert (plain.images.images == images).all() and plain.name == "cifar10" and plain.count == 6
    assert all((compressed.images.images[index] == through_jpeg(images[index])).all() for index in range(6))
    assert plain.sha256 != compressed.sha256 and compressed.name == "cifar10-jpeg"


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


def write_pictures(folder, sizes):
    folder.mkdir()
    for index, size in enumerate(sizes):
        Image.new("RGB", (size, size), (index, 0, 0)).save(folder / f"{index:04d}.png")
    return folder


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: write_pictures(path, []), "no pictures"),
        (lambda path: write_pictures(path, [32] * 20), "20 images, fewer than the 40"),
        (lambda path: write_pictures(path, [32] * 49 + [40]), "must have one size"),
        (lambda path: write_pictures(path, [40] * 40), "are 40 x 40, those of shapes 32 x 32"),
        (lambda path: path.with_suffix(".npz"), "there is no .npz of images"),
        (lambda path: path.with_suffix(".safetensors"), "there is no checkpoint"),
    ],
)
def test_images_that_cannot_be_measured_are_refused(compute_fid, tmp_path, make, reason):
    path = make(tmp_path / "images")
    before = folder_contents(tmp_path)
    assert reason in compute_fid(path).error_line
    assert folder_contents(tmp_path) == before


@pytest.mark.parametrize(
    ("pixels", "reason"),
    [
        (np.zeros((50, 3, 32, 32), np.uint8), "must be uint8"),
        (np.zeros((50, 32, 32, 3), np.float32), "must be uint8"),
        (np.array([None]), "not a readable .npz"),
    ],
)
def test_an_npz_of_something_else_is_refused(compute_fid, tmp_path, pixels, reason):
    np.savez(tmp_path / "theirs.npz", arr_0=pixels)
    before = folder_contents(tmp_path)
    assert reason in compute_fid(tmp_path / "theirs.npz").error_line
    assert folder_contents(tmp_path) == before


def test_references_that_cannot_serve_are_refused(compute_fid, make_teacher, tmp_path):
    teacher = make_teacher()
    small = write_pictures(tmp_path / "small", [32] * 16)
    damaged = tmp_path / "damaged.npz"
    np.savez(damaged, mu=np.zeros(16), sigma=np.zeros((16, 16)))
    damaged.write_bytes(damaged.read_bytes()[:200])
    random_noise = tmp_path / "noise.npz"
    random_noise.write_bytes(b"PK not an archive")
    before = folder_contents(tmp_path)
    assert "16 images leave the covariance" in compute_fid(teacher, reference=small).error_line
    assert "not a readable .npz of statistics" in compute_fid(teacher, reference=damaged).error_line
    assert "not a readable .npz of statistics" in compute_fid(teacher, reference=random_noise).error_line
    assert "no reference 'nowhere'" in compute_fid(teacher, reference="nowhere").error_line
    np.savez(tmp_path / "narrow.npz", mu=np.zeros(3), sigma=np.eye(3))
    assert "of 3 features, not 16" in compute_fid(teacher, reference=tmp_path / "narrow.npz").error_line
    (tmp_path / "narrow.npz").unlink()
    assert "KID needs images" in compute_fid(teacher, "--kid-only", reference=save_zeros(tmp_path)).error_line
    (tmp_path / "zeros.npz").unlink()
    assert folder_contents(tmp_path) == before


def save_zeros(folder):
    metrics.save_statistics(folder / "zeros.npz", metrics.Statistics(np.zeros(16), np.eye(16)))
    return folder / "zeros.npz"


def test_few_samples_are_refused_unless_kid_alone_is_asked_for(compute_fid, results, make_teacher, tmp_path):
    teacher = make_teacher()
    assert "covariance of 16 features singular" in compute_fid(teacher, "--num-samples", 16).error_line
    assert compute_fid(teacher, *EULER, "--num-samples", 16, "--kid-only").status == 0
    (line,) = results()
    assert line["fid"] is line["precision"] is None and line["kid"] > 0
    single = write_pictures(tmp_path / "single", [32])
    assert "KID needs two or more" in compute_fid(teacher, "--kid-only", reference=single).error_line


def test_settings_that_contradict_each_other_are_refused(compute_fid, make_teacher, image_folder):
    teacher = make_teacher()
    for arguments in (("--num-steps", 4), ("--classes", "heart")):
        assert "none among the inputs" in compute_fid(image_folder, *arguments).error_line
    for arguments in ((image_folder,), (teacher, "--num-steps", 3), (teacher, "--kid-only")):
        assert "--sweep is of checkpoints" in compute_fid(*arguments, "--sweep", "1,2").error_line
    assert "dopri5 chooses" in compute_fid(teacher, "--sweep", "1,2", "--solver", "dopri5").error_line
    assert "another --reference-name" in compute_fid(teacher, "--reference-name", "cifar10").error_line
    assert "'x' is not a whole number" in compute_fid(teacher, "--sweep", "1,x").error_line


def test_inception_weights_that_are_none_are_refused(compute_fid, make_teacher, tmp_path):
    teacher, weights = make_teacher(), tmp_path / "weights.pth"
    assert "no file of Inception weights" in compute_fid(teacher, "--inception-weights", weights).error_line
    torch.save({"conv": torch.zeros(3)}, weights)
    assert "not those of torch-fidelity's Inception" in compute_fid(teacher, "--inception-weights", weights).error_line
    torch.save(random_network(), weights)  # a pickled module: never unpickled
    assert "not a readable file of Inception" in compute_fid(teacher, "--inception-weights", weights).error_line


def test_weights_that_cannot_be_downloaded_are_asked_for(run_script, make_teacher, image_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", fail_to_download)
    outcome = run_script(
        "compute_fid.py", make_teacher(), "--num-samples", 8, "--kid-only", "--reference", image_folder
    )
    assert "give the file with --inception-weights" in outcome.error_line


def fail_to_download(*_, **__):
    raise OSError("no route to host")


def test_a_damaged_results_file_is_found_before_anything_is_computed(compute_fid, make_teacher, tmp_path):
    (tmp_path / "results.jsonl").write_text('{"fid": 3')
    outcome = compute_fid(make_teacher())
    assert "line 1 of" in outcome.error_line and not (tmp_path / "features").exists()
    assert (tmp_path / "results.jsonl").read_text() == '{"fid": 3'
