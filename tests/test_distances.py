"""Losses and the yardstick of the held-out report, against their definitions."""

import math

import numpy as np
import pytest
import torch

from common.classifier import Classifier, ClassifierConfig
from common.distances import (
    FeatureDistance,
    mean_squared_error_per_sample,
    pseudo_huber,
    variance_around_class_mean,
)


def test_pseudo_huber_is_quadratic_near_zero_and_linear_far_away():
    target = torch.zeros(2, 3, 4, 4)
    far = torch.ones_like(target) * torch.tensor([2.0, 4.0])[:, None, None, None]
    assert pseudo_huber(far, target).tolist() == pytest.approx([2.0, 4.0], abs=1e-3)
    near = torch.full_like(target, 1e-5)
    assert pseudo_huber(near, target).tolist() == pytest.approx([1e-10 / (2 * 0.00054)] * 2, rel=1e-2)


def test_pseudo_huber_is_that_of_song_and_dhariwal_up_to_the_scale():
    difference = torch.randn(5, 3, 8, 8)
    size = difference[0].numel()
    c = 0.00054 * math.sqrt(size)
    expected = (difference.flatten(1).norm(dim=1).square() + c**2).sqrt() - c
    torch.testing.assert_close(pseudo_huber(difference, torch.zeros(5, 3, 8, 8)), expected / math.sqrt(size))


def test_mean_squared_error_per_sample():
    predictions, targets = torch.tensor([[1.0, 2.0], [0, 3]]), torch.tensor([[0.0, 4.0], [0, 0]])
    assert mean_squared_error_per_sample(predictions, targets).tolist() == [2.5, 4.5]


def test_the_feature_distance_is_lpips_with_equal_weights():
    """By the cosine of each two vectors of channels: |a - b|^2 = 2 - 2 cos for unit lengths."""
    torch.manual_seed(0)
    network = Classifier(ClassifierConfig(num_classes=2, widths=(4, 8, 8))).eval()
    first, second = torch.randn(2, 3, 3, 32, 32)
    expected = sum(
        (2 - 2 * torch.cosine_similarity(a, b, dim=1)).mean(dim=(1, 2))
        for a, b in zip(network.features(first), network.features(second), strict=True)
    )
    distance = FeatureDistance([network])
    torch.testing.assert_close(distance(first, second), expected / 3, rtol=1e-4, atol=1e-5)
    other = Classifier(ClassifierConfig(num_classes=2, widths=(4, 8))).eval()
    both = (distance(first, second) + FeatureDistance([other])(first, second)) / 2
    torch.testing.assert_close(FeatureDistance([network, other])(first, second), both)
    assert distance(first, first).abs().max() < 1e-10
    target = second.clone().requires_grad_()
    prediction = first.clone().requires_grad_()
    distance(prediction, target).sum().backward()
    assert target.grad is None and prediction.grad.abs().sum() > 0


def test_variance_around_class_mean_is_the_pooled_variance():
    images = torch.randn(40, 3, 2, 2)
    labels = torch.arange(40) % 4
    images += labels[:, None, None, None] * 10
    expected = np.mean([images[labels == label].numpy().var(axis=0, ddof=1).mean() for label in range(4)])
    assert variance_around_class_mean(images, labels) == pytest.approx(expected, rel=1e-5)
    assert variance_around_class_mean(images, None) > 50
    assert math.isnan(variance_around_class_mean(images[:2], labels[:2]))
