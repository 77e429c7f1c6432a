"""What compute_fid.py refuses to measure, each with one line that says why."""

import numpy as np
import pytest
import torch
from conftest import EULER, folder_contents, random_network
from PIL import Image

from common import metrics


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
    pictures = compute_fid(teacher, "--data-dir", tmp_path / "small", reference="cifar10").error_line
    assert "small holds pictures, and CIFAR-10 is not to be unpacked there" in pictures
    np.savez(tmp_path / "narrow.npz", mu=np.zeros(3), sigma=np.eye(3))
    assert "of 3 features, not 16" in compute_fid(teacher, reference=tmp_path / "narrow.npz").error_line
    (tmp_path / "narrow.npz").unlink()
    assert "KID needs images" in compute_fid(teacher, "--kid-only", reference=save_zeros(tmp_path)).error_line
    (tmp_path / "zeros.npz").unlink()
    assert folder_contents(tmp_path) == before


def test_only_the_pictures_of_a_folder_are_fitted(compute_fid, make_teacher, tmp_path):
    assert (
        "--fit is for the pictures of a folder"
        in compute_fid(make_teacher(), "--fit", "crop", reference=save_zeros(tmp_path)).error_line
    )


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
    cases = {"needs checkpoints": (image_folder,), "--num-steps": (teacher, "--num-steps", 3)}
    for message, arguments in (cases | {"leave out --kid-only": (teacher, "--kid-only")}).items():
        assert message in compute_fid(*arguments, "--sweep", "1,2").error_line
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
