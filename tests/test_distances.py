"""Losses and the yardstick of the held-out report, against their definitions."""

import math

import numpy as np
import pytest
import torch

from common.distances import mean_squared, pseudo_huber, variance_around_class_mean


def test_pseudo_huber_is_quadratic_near_zero_and_linear_far_away():
    target = torch.zeros(2, 3, 4, 4)
    far = torch.ones_like(target) * torch.tensor([2.0, 4.0])[:, None, None, None]
    assert pseudo_huber(far, target).item() == pytest.approx(3.0, abs=1e-3)
    near = torch.full_like(target, 1e-5)
    assert pseudo_huber(near, target).item() == pytest.approx(1e-10 / (2 * 0.00054), rel=1e-2)


def test_pseudo_huber_is_that_of_song_and_dhariwal_up_to_the_scale():
    difference = torch.randn(5, 3, 8, 8)
    size = difference[0].numel()
    c = 0.00054 * math.sqrt(size)
    expected = (difference.flatten(1).norm(dim=1).square() + c**2).sqrt() - c
    assert pseudo_huber(difference, torch.zeros(5, 3, 8, 8)).item() == pytest.approx(
        expected.mean().item() / math.sqrt(size), rel=1e-5
    )


def test_mean_squared():
    assert mean_squared(torch.tensor([1.0, 2.0]), torch.tensor([0.0, 4.0])).item() == 2.5


def test_variance_around_class_mean_is_the_pooled_variance():
    images = torch.randn(40, 3, 2, 2)
    labels = torch.arange(40) % 4
    images += labels[:, None, None, None] * 10
    expected = np.mean([images[labels == label].numpy().var(axis=0, ddof=1).mean() for label in range(4)])
    assert variance_around_class_mean(images, labels) == pytest.approx(expected, rel=1e-5)
    assert variance_around_class_mean(images, None) > 50
    assert math.isnan(variance_around_class_mean(images[:2], labels[:2]))
