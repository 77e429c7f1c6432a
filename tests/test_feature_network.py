"""The feature network: its stage through the command line, and the pieces that it brings."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import folder_contents
from PIL import Image

from common.augmentation import cutout, random_crops
from common.checkpoint import load_checkpoint, load_feature_network
from common.classifier import Classifier, ClassifierConfig
from common.data import load_images, split_held_out
from common.epoch_order import EpochOrder
from common.errors import UserError
from common.images import to_float
from common.noise import derive_seed
from common.run_log import read_metrics
from common.training import step_generator
from common.training_state import load_training_state
from feature_network import rotated

SMALL = ("--network", '{"widths": [24, 16, 16]}', "--batch-size", 50)


@pytest.fixture
def train(run_script, tmp_path):
    def run(images, *arguments, steps=40):
        data = ("--data", "folder", "--data-dir", images, "--steps", steps, "--decay-steps", steps // 2)
        result = run_script("feature_network.py", *data, *SMALL, "--out", tmp_path / "features", *arguments)
        return result, tmp_path / "features" / "feature_network.safetensors"

    return run


@pytest.fixture
def one_class(image_folder, tmp_path):
    folder = tmp_path / "things" / "all"
    folder.mkdir(parents=True)
    for index, path in enumerate(sorted(image_folder.glob("*/*"))[:40]):
        Image.open(path).save(folder / f"{index:03}.png")
    return folder.parent


def test_its_accuracy_is_that_of_its_file_on_the_held_out_images(train, image_folder, tmp_path):
    """And better than chance after a few steps: drawn shapes of ten kinds, a quarter of each held out."""
    result, path = train(image_folder, "--val-fraction", 0.25, "--precision", "fp32")
    assert result.status == 0, result.err
    network, header, _ = load_feature_network(path)
    assert header["stage"] == "feature_network" and not any(p.requires_grad for p in network.parameters())
    _, held_out = split_held_out(load_images("folder", image_folder), 0.25)
    right = (network(to_float(held_out.images)).argmax(1) == held_out.labels).double().mean().item()
    record = read_metrics(tmp_path / "features" / "metrics.jsonl")[-1]
    assert record["held_out_accuracy"] == pytest.approx(right)
    assert f"{right:.2%} of {len(held_out):,} held-out images" in result.out
    both = network(to_float(held_out.images)) + network(to_float(held_out.images.flip(3)))
    right = (both.argmax(1) == held_out.labels).double().mean().item()
    assert record["held_out_accuracy_with_mirrored"] == pytest.approx(right)
    assert record["held_out_accuracy"] > 0.3  # of guessing: 0.1


def test_its_averaged_weights_come_with_averaged_statistics(train, image_folder, tmp_path):
    train(image_folder, steps=4)
    state = load_training_state(tmp_path / "features" / "training_state.pt")
    (average,) = state["averages"].values()
    for name in ("levels.0.norms.0.running_mean", "levels.0.convolutions.0.weight"):
        assert not torch.equal(average[f"module.{name}"], state["model"][name])
    assert average["module.levels.0.norms.0.num_batches_tracked"] == 4


def test_one_class_has_nothing_to_tell_apart_but_can_be_turned(train, one_class, tmp_path):
    result, _ = train(one_class)
    assert result.status == 1 and "--task rotation" in result.error_line
    assert not (tmp_path / "features").exists()
    result, path = train(one_class, "--task", "rotation", "--val-fraction", 0.5, "--precision", "fp32", steps=10)
    assert result.status == 0, result.err
    network = load_feature_network(path)[0]
    assert network.config.num_classes == 4
    _, held_out = split_held_out(load_images("folder", one_class), 0.5)
    turned = [np.rot90(image, index % 4, axes=(1, 2)) for index, image in enumerate(held_out.images.numpy())]
    logits = network(to_float(torch.from_numpy(np.stack(turned))))
    record = read_metrics(tmp_path / "features" / "metrics.jsonl")[-1]
    expected = F.cross_entropy(logits, torch.arange(len(turned)) % 4).item()
    assert record["held_out_loss"] == pytest.approx(expected, rel=1e-4)


def test_each_image_is_rotated_by_its_own_number_of_quarter_turns():
    images, turns = torch.rand(12, 3, 6, 6), torch.arange(12).roll(5) % 4
    for image, turn, result in zip(images.numpy(), turns, rotated(images, turns).numpy(), strict=True):
        assert (result == np.rot90(image, int(turn), axes=(1, 2))).all()


def test_the_rotation_task_trains_on_turned_images_and_their_turns(train, one_class, tmp_path):
    """The loss of the first step, written out: what is shown is turned, and the targets are the turns."""
    how = (
        "--task",
        "rotation",
        "--precision",
        "fp32",
        "--crop-padding",
        0,
        "--cutout",
        0,
        "--no-flips",
        "--log-every",
        1,
    )
    result, _ = train(one_class, *how, "--val-fraction", 0, "--batch-size", 40, steps=2)
    assert result.status == 0, result.err
    torch.manual_seed(derive_seed("weights", 0))
    data, generator = load_images("folder", one_class), step_generator(0, 0, torch.device("cpu"))
    torch.rand(40, generator=generator)  # the flips
    turns = torch.randint(4, (40,), generator=generator)
    order = EpochOrder(40, 40, seed=0).indices(0)
    network = Classifier(ClassifierConfig(num_classes=4, widths=(24, 16, 16), speed_run=True)).train()
    network.whiten(to_float(data.images[order]))
    turned = [
        np.rot90(image, int(turn), axes=(1, 2)) for image, turn in zip(data.images[order].numpy(), turns, strict=True)
    ]
    expected = F.cross_entropy(network(to_float(torch.from_numpy(np.stack(turned)))), turns, label_smoothing=0.2)
    first = read_metrics(tmp_path / "features" / "metrics.jsonl")[0]
    assert first["loss"] == pytest.approx(expected.item(), rel=1e-4)


def test_a_feature_network_makes_no_images(train, image_folder, run_script, tmp_path, make_teacher):
    _, path = train(image_folder, steps=10)
    before = folder_contents(tmp_path)
    assert "looks at images, and makes none" in run_script("sample.py", path, "--out", tmp_path / "x.png").error_line
    assert folder_contents(tmp_path) == before
    with pytest.raises(UserError, match="is no feature network"):
        load_feature_network(make_teacher())
    with pytest.raises(UserError, match="feature network"):
        load_checkpoint(path)


@pytest.mark.parametrize("change", ['{"image_size": "32"}', '{"widths": [-8, 16]}', '{"widths": [24, 32.0]}'])
def test_what_is_no_network_is_refused_in_one_line(change, train, image_folder):
    result, path = train(image_folder, "--network", change)
    assert result.status == 1 and "whole numbers" in result.error_line and not path.exists()


@pytest.mark.parametrize("residual", [False, True])
def test_the_features_of_a_level_are_convolutions_pooled_and_normalised(residual):
    """The second level, written out; in evaluation, with statistics that matter."""
    torch.manual_seed(0)
    network = Classifier(ClassifierConfig(num_classes=3, widths=(8, 16, 24), residual=residual)).eval()
    level = network.levels[1]
    for norm in level.norms:
        torch.nn.init.normal_(norm.running_mean)
        torch.nn.init.uniform_(norm.running_var, 0.5, 2)
    images = torch.randn(2, 3, 32, 32)
    stem, first, second = network.features(images)
    assert [tuple(map_.shape[1:]) for map_ in (stem, first, second)] == [(8, 32, 32), (16, 16, 16), (24, 8, 8)]

    def normalised(x, norm):
        return (x - norm.running_mean[:, None, None]) / (norm.running_var[:, None, None] + norm.eps).sqrt()

    pooled = F.max_pool2d(F.conv2d(first, level.convolutions[0].weight, padding=1), 2)
    entry = F.gelu(normalised(pooled, level.norms[0]))
    out = F.gelu(normalised(F.conv2d(entry, level.convolutions[1].weight, padding=1), level.norms[1]))
    torch.testing.assert_close(second, out + entry if residual else out)
    logits = second.flatten(2).max(2).values @ network.head.weight.T + network.head.bias
    torch.testing.assert_close(network(images), logits)


def test_a_summary_is_the_means_of_the_levels_and_the_maxima_of_the_last():
    """Without the stem, whose channels hardly look beyond a pixel."""
    torch.manual_seed(0)
    network = Classifier(ClassifierConfig(num_classes=3, widths=(8, 16, 24))).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        summary = network.summary(images)
        _, first, second = (map_.numpy() for map_ in network.features(images))
    expected = np.concatenate([first.mean((2, 3)), second.mean((2, 3)), second.max((2, 3))], axis=1)
    assert summary.shape == (2, network.summary_size)
    np.testing.assert_allclose(summary, expected, rtol=1e-5, atol=1e-6)


def test_a_whitening_stem_makes_uncorrelated_channels_of_variance_one():
    """On patches of images whose pixels are alike and hardly coloured; each filter comes with its negative."""
    torch.manual_seed(0)
    grey = F.avg_pool2d(torch.randn(64, 1, 36, 36), 5, stride=1)
    images = grey + 0.05 * torch.randn(64, 3, 32, 32) + 0.3
    network = Classifier(ClassifierConfig(num_classes=3, widths=(24, 16), speed_run=True))
    network.whiten(images)
    channels = network.stem(images)
    assert channels.shape == (64, 24, 31, 31)
    covariance = np.cov(channels.detach().double().transpose(0, 1).flatten(1).numpy())
    np.testing.assert_allclose(covariance[:12, :12], np.eye(12), atol=0.05)
    np.testing.assert_allclose(covariance[:12, 12:], -covariance[:12, :12], atol=1e-4)
    assert (np.diag(covariance) < 1).all()  # by the floor, which keeps noise small


def test_in_a_speed_run_convolutions_first_pass_on_what_they_are_given():
    network = Classifier(ClassifierConfig(num_classes=3, widths=(24, 32, 32), speed_run=True))
    for level, width in zip(network.levels, (24, 32), strict=True):
        for convolution, channels in zip(level.convolutions, (width, 32), strict=True):
            x = torch.randn(2, channels, 8, 8)
            torch.testing.assert_close(convolution(x)[:, :channels], x)


def test_in_a_speed_run_logits_are_scaled_by_the_root_of_the_width():
    network = Classifier(ClassifierConfig(num_classes=3, widths=(24, 16), speed_run=True)).eval()
    images = torch.randn(2, 3, 32, 32)
    (_, last) = network.features(images)
    assert last.shape == (2, 16, 15, 15)
    expected = (last.flatten(2).max(2).values @ network.head.weight.T + network.head.bias) / 4
    torch.testing.assert_close(network(images), expected)


def test_the_stem_stays_as_it_was_whitened(train, image_folder):
    _, path = train(image_folder, "--val-fraction", 0.25, "--precision", "fp32", steps=4)
    network = load_feature_network(path)[0]
    training, _ = split_held_out(load_images("folder", image_folder), 0.25)
    expected = Classifier(network.config)
    expected.whiten(training.batch(EpochOrder(len(training), 50, seed=0).indices(0))[0])
    torch.testing.assert_close(network.stem.weight, expected.stem.weight)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ('{"widths": [48, 96]}', "width is 24"),
        ('{"speed_run": "false"}', "speed_run is true or false"),
        ('{"residual": "false"}', "residual is true or false"),
        ('{"image_size": 8}', "are no network"),
    ],
)
def test_what_is_no_network_of_a_speed_run_is_refused(change, reason, run_script, image_folder, tmp_path):
    data = ("--data", "folder", "--data-dir", image_folder)
    result = run_script("feature_network.py", *data, "--network", change, "--out", tmp_path / "features")
    assert result.status == 1 and reason in result.error_line and not (tmp_path / "features").exists()


def test_crops_are_windows_of_the_mirrored_image():
    images = torch.rand(256, 3, 8, 8)
    crops = random_crops(images, 2, torch.Generator().manual_seed(0))
    padded = F.pad(images, [2] * 4, mode="reflect")
    windows = padded.unfold(2, 8, 1).unfold(3, 8, 1)  # (n, C, 5, 5, 8, 8)
    equal = (windows == crops[:, :, None, None]).all(dim=(1, 4, 5)).flatten(1)
    assert equal.any(dim=1).all()
    assert equal.any(dim=0).all()  # every one of the 25 shifts is met
    assert random_crops(images, 0, torch.Generator()) is images


def test_cutout_hides_a_square_around_any_pixel():
    """Every row of centres, edges included, is met; the square is whole inside, and cut where it leaves the image."""
    images = torch.ones(2000, 3, 6, 9)
    hidden = cutout(images, 3, torch.Generator().manual_seed(0)) == 0
    assert (hidden == hidden[:, :1]).all()
    rows, columns = hidden[:, 0].any(dim=2), hidden[:, 0].any(dim=1)
    assert (hidden[:, 0] == rows[:, :, None] & columns[:, None, :]).all()
    for seen, length in ((rows, 6), (columns, 9)):
        met = {tuple(line) for line in seen.int().tolist()}
        expected = {tuple(int(abs(place - centre) <= 1) for place in range(length)) for centre in range(length)}
        assert met == expected
    assert cutout(images, 0, torch.Generator()) is images
