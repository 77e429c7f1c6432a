"""Image data sets: what users' folders hold, and what is wrong with them."""

import os

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import CIFAR10

from common import data, image_folder, shapes
from common.data import load_images, split_held_out
from common.errors import UserError
from common.image_sets import PictureFiles
from common.images import through_jpeg
from common.sources import ImageSource


def write(folder, name, image):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return path


def test_every_image_mode_becomes_rgb_of_the_models_size(tmp_path):
    red = Image.new("RGB", (40, 32), (255, 0, 0))
    write(tmp_path / "set", "a/rgb.png", red)
    write(tmp_path / "set", "a/palette.png", red.convert("P"))
    write(tmp_path / "set", "a/cmyk.jpg", red.convert("CMYK"))
    write(tmp_path / "set", "b/grey.png", Image.new("L", (64, 64), 128))
    write(tmp_path / "set", "b/grey16.png", Image.fromarray(np.full((32, 32), 128 * 257, dtype=np.uint16)))
    write(tmp_path / "set", "b/grey16.pgm", Image.fromarray(np.full((32, 32), 128 * 257, dtype=np.uint16)))
    write(tmp_path / "set", "b/clear.png", Image.new("RGBA", (32, 32), (255, 0, 0, 0)))
    loaded = load_images("folder", tmp_path / "set")
    assert loaded.images.shape == (7, 3, 32, 32) and loaded.images.dtype == torch.uint8
    assert loaded.class_names == ["a", "b"] and loaded.labels.tolist() == [0, 0, 0, 1, 1, 1, 1]
    means = loaded.images.float().mean(dim=(2, 3))
    for index in range(3):  # cmyk, palette, rgb
        assert torch.allclose(means[index], torch.tensor([255.0, 0.0, 0.0]), atol=4)
    assert torch.equal(means[3], torch.full((3,), 255.0))  # transparent: on white
    assert torch.equal(means[4:], torch.full((3, 3), 128.0))


def test_resizing_keeps_the_whole_shorter_side_and_cropping_keeps_the_pixels(tmp_path):
    pixels = np.zeros((32, 96, 3), dtype=np.uint8)
    pixels[:, 32:64] = 255  # the centre square is white
    write(tmp_path / "set", "a/wide.png", Image.fromarray(pixels))
    assert load_images("folder", tmp_path / "set").images.min() == 255
    wide = np.asarray(Image.fromarray(pixels).resize((192, 64), Image.Resampling.NEAREST))
    write(tmp_path / "large", "a/wide.png", Image.fromarray(wide))
    assert torch.equal(
        load_images("folder", tmp_path / "large", crop=True).images[0],
        torch.from_numpy(wide[16:48, 80:112].transpose(2, 0, 1).copy()),
    )


def test_unreadable_files_are_named(tmp_path):
    good = write(tmp_path / "set", "a/good.png", Image.new("RGB", (32, 32)))
    bad = tmp_path / "set" / "a" / "bad.png"
    bad.write_bytes(good.read_bytes()[:40])
    with pytest.raises(UserError, match=r"1 of 2 images.*bad.png"):
        load_images("folder", tmp_path / "set")


@pytest.mark.parametrize("pixels", [np.int32, np.float32])
def test_pixels_without_a_largest_value_are_refused_rather_than_guessed(pixels, tmp_path):
    write(tmp_path / "set", "a/odd.tiff", Image.fromarray(np.ones((32, 32), dtype=pixels)))
    with pytest.raises(UserError, match=r"1 of 1 images.*odd.tiff"):
        load_images("folder", tmp_path / "set")


def test_an_image_smaller_than_the_crop_is_named(tmp_path):
    write(tmp_path / "set", "a/small.png", Image.new("RGB", (16, 16)))
    with pytest.raises(UserError, match=r"1 of 1 images are smaller than 32 x 32: .*small.png"):
        load_images("folder", tmp_path / "set", crop=True)


@pytest.mark.parametrize(
    "make", [lambda path: None, lambda path: path.mkdir(), lambda path: (path / "a").mkdir(parents=True)]
)
def test_a_folder_without_images_is_refused(tmp_path, make):
    make(tmp_path / "set")
    with pytest.raises(UserError, match=r"no image folder|not an image folder"):
        load_images("folder", tmp_path / "set")


def test_images_without_sub_folders_are_refused_with_advice(tmp_path):
    write(tmp_path, "set/one.png", Image.new("RGB", (32, 32)))
    with pytest.raises(UserError, match=r"a single one for images without classes"):
        load_images("folder", tmp_path / "set")


def test_hidden_folders_are_no_classes_and_hidden_pictures_none(tmp_path):
    """Such as the cache of a folder that is itself a class here."""
    write(tmp_path / "photos", "cats/young/1.png", Image.new("RGB", (32, 32)))
    load_images("folder", tmp_path / "photos" / "cats")
    assert (tmp_path / "photos" / ".cache").is_dir()
    assert load_images("folder", tmp_path / "photos").class_names == ["cats"]
    write(tmp_path / "photos", "cats/.ipynb_checkpoints/1.png", Image.new("RGB", (32, 32)))
    write(tmp_path / "photos", "cats/young/._1.png", Image.new("RGB", (32, 32)))
    assert len(load_images("folder", tmp_path / "photos")) == len(PictureFiles.below(tmp_path / "photos")) == 1
    (tmp_path / "empty" / ".hidden").mkdir(parents=True)
    with pytest.raises(UserError, match=r"empty is not an image folder.*find any class folder"):
        load_images("folder", tmp_path / "empty")


def test_the_cache_is_used_and_never_stale(tmp_path, monkeypatch):
    path = write(tmp_path / "set", "a/one.png", Image.new("RGB", (32, 32), (10, 10, 10)))
    assert load_images("folder", tmp_path / "set").images.max() == 10
    with monkeypatch.context() as patch:
        patch.setattr(image_folder, "_decode", None)
        assert load_images("folder", tmp_path / "set").images.max() == 10  # nothing was decoded
    Image.new("RGB", (32, 32), (99, 99, 99)).save(path)
    os.utime(path, ns=(1, 1))
    assert load_images("folder", tmp_path / "set").images.max() == 99


def test_linked_class_folders_train_and_are_measured_alike(tmp_path):
    write(tmp_path / "set", "a/one.png", Image.new("RGB", (32, 32)))
    write(tmp_path / "elsewhere", "two.png", Image.new("RGB", (32, 32)))
    (tmp_path / "set" / "b").symlink_to(tmp_path / "elsewhere")
    assert len(load_images("folder", tmp_path / "set")) == len(PictureFiles.below(tmp_path / "set")) == 2


def test_a_linked_folder_has_the_cache_of_the_folder_itself(tmp_path, monkeypatch):
    write(tmp_path / "set", "a/one.png", Image.new("RGB", (32, 32), (10, 10, 10)))
    load_images("folder", tmp_path / "set")
    (tmp_path / "elsewhere" / "deep").mkdir(parents=True)
    (tmp_path / "elsewhere" / "deep" / "link").symlink_to(tmp_path / "set")
    monkeypatch.setattr(image_folder, "_decode", None)
    assert load_images("folder", tmp_path / "elsewhere" / "deep" / "link").images.max() == 10


def test_cifar10_without_a_network_says_which_file_to_put_where(tmp_path, monkeypatch):
    def no_network(*arguments, **options):
        raise OSError("Name or service not known")

    monkeypatch.setattr("torchvision.datasets.utils._urlretrieve", no_network)
    with pytest.raises(UserError, match=r"cifar-10-python.tar.gz") as caught:
        load_images("cifar10", tmp_path / "here")
    assert str(tmp_path / "here") in str(caught.value)


def test_cifar10_is_torchvisions_in_the_projects_layout(tmp_path, monkeypatch):
    """Torchvision's loader is replaced by one with the same attributes: the archive is 170 MB."""
    pixels = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)

    class FewImages:
        base_folder, filename = CIFAR10.base_folder, CIFAR10.filename
        data, targets, classes = pixels, [3, 1, 0, 9], ["airplane", "automobile"]

        def __init__(self, root, train, download):
            assert root == tmp_path and train and download

    monkeypatch.setattr(data, "CIFAR10", FewImages)
    loaded = load_images("cifar10", tmp_path)
    assert loaded.images.shape == (4, 3, 32, 32) and loaded.labels.tolist() == [3, 1, 0, 9]
    assert np.array_equal(loaded.images[2, 1].numpy(), pixels[2, :, :, 1])
    with pytest.raises(UserError, match="32 x 32"):
        load_images("cifar10", tmp_path, image_size=64)


def test_the_images_behind_a_checkpoint_of_jpeg_files_can_come_from_cifar10(tmp_path, monkeypatch):
    pixels = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([1, 0, 1, 0, 0, 1, 1, 0])
    monkeypatch.setattr(data, "_load_cifar10", lambda path, size: data.ImageData(pixels, labels, ["a", "b"]))
    (tmp_path / "cifar-10-batches-py").mkdir()
    expected = load_images("cifar10-jpeg", tmp_path)
    arguments = {"data": "folder", "data_dir": "gone", "crop": False, "val_fraction": 0.25}
    header = {"arguments": arguments, "config": {"image_size": 32}, "images_sha256": expected.sha256()}
    training, held_out = data.images_behind(tmp_path / "teacher.safetensors", header, tmp_path)
    assert (len(training), len(held_out)) == (6, 2) and torch.equal(held_out.images[0], expected.images[3])
    with pytest.raises(UserError, match=r"are not those that trained [^:]*$"):
        data.images_behind(tmp_path / "teacher.safetensors", header | {"images_sha256": "other"}, tmp_path)
    with pytest.raises(UserError, match=r"that trained .* are not in gone: give --data-dir"):
        data.images_behind(tmp_path / "teacher.safetensors", header)


def test_the_images_behind_a_checkpoint_of_compressed_cifar10_can_come_from_jpeg_files(tmp_path):
    pixels = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for number, image in enumerate(pixels):
        write(tmp_path / "set", f"{'ab'[number // 2]}/{number}.jpg", Image.fromarray(image.permute(1, 2, 0).numpy()))
    compressed = data.ImageData(torch.stack([through_jpeg(image) for image in pixels]), torch.tensor([0, 0, 1, 1]), [])
    arguments = {"data": "cifar10-jpeg", "data_dir": "data", "crop": False, "val_fraction": 0.5}
    header = {"arguments": arguments, "config": {"image_size": 32}, "images_sha256": compressed.sha256()}
    _, held_out = data.images_behind(tmp_path / "teacher.safetensors", header, tmp_path / "set")
    assert torch.equal(held_out.images, compressed.images[[1, 3]])


def test_held_out_images_are_the_last_of_each_class():
    images = torch.arange(40, dtype=torch.uint8).reshape(40, 1, 1, 1)
    labels = torch.tensor([0] * 30 + [1] * 10)
    training, held_out = split_held_out(data.ImageData(images, labels, ["a", "b"]), 0.1)
    assert held_out.images.flatten().tolist() == [27, 28, 29, 39]
    assert len(training) == 36 and not set(training.images.flatten().tolist()) & {27, 28, 29, 39}
    assert len(split_held_out(data.ImageData(images, labels, ["a", "b"]), 0.0)[0]) == 40


def test_the_held_out_loss_is_of_all_classes_alike_in_whatever_order_they_come(monkeypatch):
    monkeypatch.setattr("common.sources.HELD_OUT_LIMIT", 20)
    images = torch.zeros(400, 3, 1, 1, dtype=torch.uint8)
    in_turn = torch.arange(400) % 10
    for labels in (in_turn, in_turn.sort().values):
        source = ImageSource(data.ImageData(images, labels, list("abcdefghij")), 0.5, torch.device("cpu"))
        assert source.held_out.labels.bincount().tolist() == [2] * 10


def test_a_batch_is_a_gather_and_a_flip():
    images = torch.randint(0, 256, (5, 3, 4, 4), dtype=torch.uint8)
    batch, labels = data.ImageData(images, torch.arange(5), list("abcde")).batch(
        torch.tensor([4, 1]), torch.tensor([True, False])
    )
    torch.testing.assert_close(batch[0], images[4].flip(-1) / 127.5 - 1)
    torch.testing.assert_close(batch[1], images[1] / 127.5 - 1)
    assert labels.tolist() == [4, 1]


def test_shapes_are_a_function_of_their_seed_and_differ_between_classes():
    images, labels = shapes.draw_shapes(50, 32, seed=1)
    assert np.array_equal(shapes.draw_shapes(50, 32, seed=1)[0], images)
    assert not np.array_equal(shapes.draw_shapes(50, 32, seed=2)[0], images)
    assert np.bincount(labels).tolist() == [5] * 10
    # The shape stands out: its brightest pixels are far brighter than the frame of the picture.
    assert images.max(axis=(1, 2, 3)).min() > 200 and images[:, :, 0].mean() < 100
