"""The Fréchet distance against scipy's matrix root, and its gradients against finite differences."""

from itertools import pairwise

import numpy as np
import pytest
import scipy.linalg
import torch

from common.frechet import FrechetDistance, ReferenceDistribution, RunningFrechetLoss, moments, symmetric_root

SIZE = 6


def gaussian_features(count, seed):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(SIZE, SIZE, generator=generator).double()
    return torch.randn(count, SIZE, generator=generator).double() @ mixing + torch.randn(SIZE, generator=generator)


def by_scipy(features, reference):
    (m, s), (m_r, s_r) = ([part.numpy() for part in moments(values)] for values in (features, reference))
    return float(((m - m_r) ** 2).sum() + np.trace(s + s_r - 2 * scipy.linalg.sqrtm(s @ s_r).real))


REFERENCE = gaussian_features(500, 0)


def scaled_by_scipy(features):
    """What the running loss is of: to the reference, in features of unit variance there, for each feature."""
    deviation = REFERENCE.std(dim=0, correction=0)
    return by_scipy(features / deviation, REFERENCE / deviation) / SIZE


def test_the_distance_is_scipys():
    features = gaussian_features(400, 1)
    distance, _, _ = FrechetDistance(*moments(REFERENCE))(*moments(features))
    assert distance.item() == pytest.approx(by_scipy(features, REFERENCE), rel=1e-9)
    itself, by_mean, by_covariance = FrechetDistance(*moments(REFERENCE))(*moments(REFERENCE))
    assert abs(itself.item()) < 1e-9 and by_mean.abs().max() < 1e-9 and by_covariance.abs().max() < 1e-6


def test_its_gradients_are_those_of_finite_differences():
    reference, (mean, covariance) = FrechetDistance(*moments(REFERENCE)), moments(gaussian_features(400, 1))
    _, by_mean, by_covariance = reference(mean, covariance)
    step = 1e-5
    for index in range(SIZE):
        away = step * torch.eye(SIZE).double()[index]
        slope = (reference(mean + away, covariance)[0] - reference(mean - away, covariance)[0]) / (2 * step)
        assert slope.item() == pytest.approx(by_mean[index].item(), abs=1e-5)
    generator = torch.Generator().manual_seed(2)
    for _ in range(5):
        direction = torch.randn(SIZE, SIZE, generator=generator).double()
        direction = step * (direction + direction.T)
        slope = (reference(mean, covariance + direction)[0] - reference(mean, covariance - direction)[0]) / 2
        assert slope.item() == pytest.approx((by_covariance * direction).sum().item(), rel=1e-4)


def test_a_covariance_without_full_rank_has_a_distance_and_finite_gradients():
    features = gaussian_features(3, 1)
    distance, by_mean, by_covariance = FrechetDistance(*moments(REFERENCE))(*moments(features))
    assert distance.item() == pytest.approx(by_scipy(features, REFERENCE), rel=1e-5)
    assert by_mean.isfinite().all() and by_covariance.isfinite().all()
    _, _, rows = torch.linalg.svd(features - features.mean(0), full_matrices=True)
    missing = rows[-1]  # a direction without variance: the distance falls steeply as it gets some
    assert missing @ by_covariance @ missing < -100


def test_a_feature_that_hardly_varies_has_no_say():
    """Neither at rest nor almost so, whatever the generator does with it; the others are as without it."""
    constant, almost = torch.ones(500, 1).double(), 1e-9 * torch.randn(500, 1).double()
    reference = ReferenceDistribution(torch.cat([REFERENCE, constant, almost], dim=1), 100)
    features = torch.cat([gaussian_features(400, 1), torch.randn(400, 2).double()], dim=1)
    distance, by_mean, by_covariance = reference.distance(*moments(features))
    assert distance.item() == pytest.approx(scaled_by_scipy(features[:, :SIZE]) * SIZE / (SIZE + 2), rel=1e-5)
    assert by_mean[SIZE:].abs().max() == 0 and by_covariance[SIZE:].abs().max() == 0
    assert by_covariance.isfinite().all()


def running_loss(window, refresh=1):
    return RunningFrechetLoss(SIZE, lambda: REFERENCE, window, refresh)


def whole_window(features, monkeypatch):
    """A running loss that has seen one batch, which fills its window; without the correction of the bias."""
    monkeypatch.setattr(ReferenceDistribution, "bias", lambda *_: (0.0, 0.0))
    running = running_loss(window=len(features))
    assert running(features).item() == 0
    running.update()
    return running


def test_the_running_loss_is_the_distance_of_what_it_has_seen_and_its_gradient_scipys_slope(monkeypatch):
    """With the whole window in one batch: the gradient by a feature, against the distance with that feature moved."""
    features = gaussian_features(40, 1)
    running = whole_window(features, monkeypatch)
    ours = features.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):  # as in a training step, where nothing of it may be rounded so
        loss = running(ours)
    assert loss.item() == pytest.approx(scaled_by_scipy(features), rel=1e-5)
    loss.backward()
    step = 1e-4
    for row, column in ((0, 0), (7, 3), (39, 5)):
        slopes = []
        for sign in (1, -1):
            moved = features.clone()
            moved[row, column] += sign * step
            slopes.append(sign * scaled_by_scipy(moved) / (2 * step))
        assert ours.grad[row, column].item() == pytest.approx(sum(slopes), rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("windows", [1, 6])
def test_a_perfect_generator_is_left_alone(windows, monkeypatch):
    """The mean slope along the size of its samples is nothing; without the correction it would widen them.

    Both when the loss starts, with moments of one window alone, and when they have run on.
    """
    monkeypatch.setattr("common.frechet.BOOTSTRAPS", 50)  # of so few features each is worth less
    window, slopes, distances, uncorrected = 24, [], [], []
    reference = ReferenceDistribution(REFERENCE, num_samples=2 * window)
    for seed in range(200):
        rows = torch.randint(500, (windows * window,), generator=torch.Generator().manual_seed(1000 + seed))
        running = running_loss(window)
        running.reference = reference  # the same for all, estimated once
        for batch in REFERENCE[rows].split(8):
            running(batch)
            running.update()
        covariance = moments(REFERENCE)[1]
        worth = 24 if windows == 1 else 48 - 8  # of a running mean in batches of 8: (2 - s) / s of them, for s = 8 / 24
        assert 1 / running.squared_weights.item() == pytest.approx(worth, rel=0.01)
        bias, gradient_bias = running.reference.bias(torch.tensor(worth))
        slopes.append((running.by_covariance * covariance).sum().item())
        uncorrected.append(((running.by_covariance + gradient_bias) * covariance).sum().item())
        distances.append(running.distance.item())
    assert np.mean(uncorrected) < -0.015
    assert abs(np.mean(slopes)) < abs(np.mean(uncorrected)) / 3
    assert abs(np.mean(distances)) < 0.25 * bias


def test_the_moments_are_the_windows_mean_and_then_run():
    """Equal shares until the window is full; then each batch counts by its share of the window."""
    running = running_loss(window=20)
    batches = gaussian_features(30, 3).split(10)
    for batch in batches:
        running(batch)
        running.update()
    first = torch.cat(batches[:2])
    torch.testing.assert_close(running.first_moment, (first.mean(0) + batches[2].mean(0)) / 2)
    squares = (first.T @ first / 20 + batches[2].T @ batches[2] / 10) / 2
    torch.testing.assert_close(running.second_moment, squares)
    assert (running.seen, running.updates) == (30, 2)


def test_gradients_are_found_anew_every_so_many_updates():
    running = running_loss(window=10, refresh=3)
    found = []
    for batch in gaussian_features(60, 3).split(10):
        running(batch)
        running.update()
        found.append(running.by_mean.clone())
    changes = [not torch.equal(before, after) for before, after in pairwise(found)]
    assert changes == [False, False, True, False, False]


def test_values_that_are_not_finite_leave_the_last_gradients(monkeypatch):
    running = whole_window(gaussian_features(40, 1), monkeypatch)
    before = running.by_covariance.clone()
    running(torch.full((4, SIZE), float("nan")))
    running.update()
    assert torch.equal(running.by_covariance, before)


def test_gradient_descent_on_the_running_loss_reaches_the_reference():
    """An affine generator of a Gaussian learns another Gaussian."""
    torch.manual_seed(0)
    generator = torch.nn.Linear(SIZE, SIZE).double()
    running = running_loss(window=256, refresh=2)
    optimizer = torch.optim.Adam(generator.parameters(), lr=0.03)
    start = by_scipy(generator(torch.randn(2000, SIZE).double()).detach(), REFERENCE)
    for _ in range(500):
        optimizer.zero_grad()
        running(generator(torch.randn(64, SIZE).double())).backward()
        optimizer.step()
        running.update()
    assert by_scipy(generator(torch.randn(2000, SIZE).double()).detach(), REFERENCE) < 0.03 * start


def test_the_symmetric_root_squares_to_the_matrix():
    _, covariance = moments(REFERENCE)
    root = symmetric_root(covariance)
    torch.testing.assert_close(root @ root, covariance)
