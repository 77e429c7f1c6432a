"""Every metric against an independent computation in float64, on the features of a random network."""

import numpy as np
import pytest
import scipy.linalg
import torch
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric

from common import metrics
from common.errors import UserError


def random_features(count: int, seed: int, shift: float = 0.0, width: int = 24) -> torch.Tensor:
    """Features of noise images in a random network: positive, correlated, far from Gaussian."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(48, width, generator=torch.Generator().manual_seed(99))
    images = torch.randn(count, 48, generator=generator) + shift
    return torch.relu(images @ weights / 7 + 0.2)


GENERATED, REFERENCE = random_features(1500, seed=0, shift=0.15), random_features(5000, seed=1)


def close(value: float, expected: float) -> bool:
    return abs(value - expected) <= max(1e-3 * abs(expected), 1e-6)


def fid_by_definition(first: torch.Tensor, second: torch.Tensor) -> float:
    first, second = first.double().numpy(), second.double().numpy()
    difference = first.mean(0) - second.mean(0)
    covariances = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1])
    return float(difference @ difference + np.trace(covariances[0] + covariances[1] - 2 * root.real))


def kid_by_definition(first: np.ndarray, second: np.ndarray) -> float:
    """The unbiased estimate of the squared MMD (Gretton et al. 2012, equation 3), term by term."""
    width = first.shape[1]

    def kernel(a, b):
        return (a @ b.T / width + 1) ** 3

    m, n = len(first), len(second)
    ours, theirs = kernel(first, first), kernel(second, second)
    return (
        (ours.sum() - np.trace(ours)) / (m * (m - 1))
        + (theirs.sum() - np.trace(theirs)) / (n * (n - 1))
        - 2 * kernel(first, second).mean()
    )


def test_statistics_are_those_of_numpy(monkeypatch):
    monkeypatch.setattr(metrics, "CHUNK", 700)  # the last chunk is smaller
    values = metrics.statistics(REFERENCE)
    np.testing.assert_allclose(values.mean, REFERENCE.double().numpy().mean(0), rtol=1e-12)
    np.testing.assert_allclose(
        values.covariance, np.cov(REFERENCE.double().numpy(), rowvar=False), rtol=1e-10, atol=1e-14
    )


def test_fid_is_that_of_the_matrix_square_root():
    value = metrics.frechet_distance(metrics.statistics(GENERATED), metrics.statistics(REFERENCE))
    assert close(value, fid_by_definition(GENERATED, REFERENCE))
    assert value > 0.1


def test_fid_of_close_sets_is_right_to_a_millionth():
    nudged = REFERENCE + 1e-5
    value = metrics.frechet_distance(metrics.statistics(REFERENCE), metrics.statistics(nudged))
    assert abs(value - fid_by_definition(REFERENCE, nudged)) < 1e-6
    same = metrics.frechet_distance(metrics.statistics(REFERENCE), metrics.statistics(REFERENCE))
    assert abs(same) < 1e-6


def test_kid_is_that_of_the_definition_on_the_same_subsets(monkeypatch):
    monkeypatch.setattr(metrics, "KID_SUBSETS", 10)
    mean, deviation = metrics.kernel_inception_distance(GENERATED, REFERENCE)
    random, expected = np.random.RandomState(metrics.KID_SEED), []
    for _ in range(metrics.KID_SUBSETS):
        subsets = [
            side.double().numpy()[random.choice(len(side), metrics.KID_SUBSET_SIZE, replace=False)]
            for side in (GENERATED, REFERENCE)
        ]
        expected.append(kid_by_definition(*subsets))
    assert close(mean, np.mean(expected)) and close(deviation, np.std(expected))


def test_kid_is_torch_fidelitys(monkeypatch):
    assert metrics.KID_SUBSETS == 100
    monkeypatch.setattr(metrics, "KID_SUBSETS", 10)
    theirs = kid_features_to_metric(
        GENERATED.double(), REFERENCE.double(), kid_subsets=10, kid_subset_size=1000, rng_seed=2020, verbose=False
    )
    ours = metrics.kernel_inception_distance(GENERATED, REFERENCE)
    assert ours == pytest.approx((theirs[KEY_METRIC_KID_MEAN], theirs[KEY_METRIC_KID_STD]), rel=1e-9)


def test_kid_of_few_images_takes_smaller_subsets():
    mean, deviation = metrics.kernel_inception_distance(GENERATED[:40], REFERENCE[:40])
    expected = kid_by_definition(GENERATED[:40].double().numpy(), REFERENCE[:40].double().numpy())
    assert mean == pytest.approx(expected, rel=1e-9) and deviation == pytest.approx(0, abs=1e-12)


def test_precision_and_recall_are_those_of_the_definition(monkeypatch):
    monkeypatch.setattr(metrics, "PRECISION_RECALL_SAMPLES", 300)
    precision, recall, count = metrics.precision_and_recall(GENERATED, REFERENCE)
    assert count == 300
    generator = torch.Generator().manual_seed(0)
    first, second = (
        side[torch.randperm(len(side), generator=generator)[:300]].double().numpy() for side in (GENERATED, REFERENCE)
    )

    def share_inside(points, centres):
        """Of the points within the distance from any centre to that centre's third neighbour."""
        between = np.linalg.norm(centres[:, None] - centres[None], axis=-1)
        radii = np.sort(between, axis=1)[:, 3]  # the first is the centre itself
        return (np.linalg.norm(points[:, None] - centres[None], axis=-1) <= radii).any(1).mean()

    assert precision == pytest.approx(share_inside(first, second), abs=1e-6)
    assert recall == pytest.approx(share_inside(second, first), abs=1e-6)
    assert 0.1 < precision < 1 and 0.1 < recall < 1


def test_a_constant_generator_has_no_recall():
    _, recall, _ = metrics.precision_and_recall(REFERENCE[:1].expand(400, -1), REFERENCE[:400])
    assert recall < 0.01


def test_the_inception_score_is_that_of_its_definition():
    """exp of the mean KL divergence of an image's labels from its split's (Salimans et al. 2016), mean over splits."""
    classifier = torch.randn(30, GENERATED.shape[1], generator=torch.Generator().manual_seed(3))
    order = np.random.RandomState(2020).permutation(len(GENERATED))
    logits = (GENERATED @ classifier.T).double().numpy()[order]
    labels = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    scores = [
        np.exp(np.mean(np.sum(part * (np.log(part) - np.log(part.mean(0))), axis=1))) for part in np.split(labels, 10)
    ]
    assert close(metrics.inception_score(GENERATED, classifier), np.mean(scores))


def test_statistics_come_back_from_their_file(tmp_path):
    values = metrics.statistics(GENERATED)
    metrics.save_statistics(tmp_path / "reference.npz", values)
    loaded = metrics.load_statistics(tmp_path / "reference.npz")
    assert (loaded.mean == values.mean).all() and (loaded.covariance == values.covariance).all()
    with np.load(tmp_path / "reference.npz") as file:  # the names that EDM and pytorch-fid use
        assert set(file) == {"mu", "sigma"}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"mu": np.zeros(3), "sigma": np.zeros((2, 2))}, "not a mean and its covariance"),
        ({"mu": np.array([0, np.nan]), "sigma": np.zeros((2, 2))}, "not finite"),
        ({"arr_0": np.zeros(3)}, "not a readable .npz of statistics"),
        ({"mu": np.array([None]), "sigma": np.zeros((1, 1))}, "not a readable .npz of statistics"),
    ],
)
def test_a_file_that_holds_no_statistics_is_refused(tmp_path, content, reason):
    np.savez(tmp_path / "wrong.npz", **content)
    with pytest.raises(UserError, match=reason):
        metrics.load_statistics(tmp_path / "wrong.npz")
