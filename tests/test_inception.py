"""The real Inception network; run where INCEPTION_WEIGHTS names its file: INCEPTION_WEIGHTS=inception.pth make test."""

import os

import pytest
import torch

from common import metrics, shapes
from common.inception import Inception, read_network

WEIGHTS = os.environ.get("INCEPTION_WEIGHTS")
pytestmark = [
    pytest.mark.inception,
    pytest.mark.skipif(not WEIGHTS, reason="INCEPTION_WEIGHTS does not name a file of Inception weights"),
]


@pytest.fixture(scope="module")
def features():
    """Features of 48 drawn shapes: ours, and torch-fidelity's extractor as it comes."""
    images = torch.from_numpy(shapes.draw_shapes(48, 32, seed=0)[0])
    with torch.no_grad():
        theirs = read_network(WEIGHTS)[0](images)[0]
    return images, Inception(WEIGHTS, torch.device("cpu"))(images), theirs


def test_the_features_are_torch_fidelitys(features):
    _, ours, theirs = features
    assert ours.shape == (48, 2048)
    assert torch.allclose(ours, theirs, atol=1e-4) and theirs.std() > 0.1


def test_the_same_images_have_no_distance_and_noise_has_one(features):
    images, ours, theirs = features
    noisy = (images + 20 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 255)
    worse = Inception(WEIGHTS, torch.device("cpu"))(noisy.to(torch.uint8))
    clean, same, far = (metrics.statistics(values) for values in (theirs, ours, worse))
    assert abs(metrics.frechet_distance(clean, same)) < 1e-2
    assert metrics.frechet_distance(clean, far) > 10
