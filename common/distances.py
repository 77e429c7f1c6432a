"""How far a prediction is from its target: the training losses of the students, and the figures that judge them."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from common.classifier import Classifier

PSEUDO_HUBER_SOFTENING = 0.00054


def mean_squared_error_per_sample(prediction: Tensor, target: Tensor) -> Tensor:
    """The mean of each sample's squared differences (N,)."""
    return (prediction - target).square().flatten(1).mean(dim=1)


def pseudo_huber(prediction: Tensor, target: Tensor) -> Tensor:
    """sqrt(|d|^2 + c^2) - c of each sample's difference d (Song and Dhariwal 2023, section 3.3), (N,).

    Less drawn to outliers than the squared error. With their c = 0.00054 sqrt(D), and divided by sqrt(D), where D is
    the number of values in a sample, so that the scale does not depend on the image size.
    """
    squared = mean_squared_error_per_sample(prediction, target)
    return torch.sqrt(squared + PSEUDO_HUBER_SOFTENING**2) - PSEUDO_HUBER_SOFTENING


PIXEL_LOSSES = {"l2": mean_squared_error_per_sample, "pseudo-huber": pseudo_huber}


class FeatureDistance:
    """How differently feature networks see two pictures.

    At each position of each map of a network, the squared difference of the two vectors of channels, both of unit
    length; averaged over positions, then maps, then networks. This is LPIPS (Zhang et al. 2018, equation 1) without its
    learned weights.
    """

    def __init__(self, networks: Sequence[Classifier]):
        self.networks = networks

    def __call__(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Of images (N, C, H, W) in [-1, 1], values (N,) in [0, 4], with a gradient for `prediction` alone."""
        return torch.stack([self._by(network, prediction, target) for network in self.networks]).mean(dim=0)

    def _by(self, network: Classifier, prediction: Tensor, target: Tensor) -> Tensor:
        with torch.no_grad():
            expected = [unit_length(features) for features in network.features(target)]
        seen = [unit_length(features) for features in network.features(prediction)]
        distances = [
            (ours - theirs).square().sum(dim=1).mean(dim=(1, 2)) for ours, theirs in zip(seen, expected, strict=True)
        ]
        return torch.stack(distances).mean(dim=0)


def unit_length(features: Tensor) -> Tensor:
    """The vector of channels at each position of a map (N, C, H, W), in fp32, at length 1."""
    return F.normalize(features.float(), dim=1, eps=1e-6)


def variance_around_class_mean(images: Tensor, labels: Tensor | None) -> float:
    """The mean over pixels of the variance within classes; without labels all images are one class.

    `images` (N, C, H, W), `labels` (N,). This is the mean squared error of always answering with the mean of the class,
    the best that a student could do who does not look at the noise. Unbiased: a class mean costs one degree of freedom.
    NaN where no class has two images.
    """
    labels = torch.zeros(len(images), dtype=torch.long) if labels is None else labels
    squares, degrees_of_freedom = 0.0, 0
    for label in labels.unique():
        members = images[labels == label].double()
        squares += (members - members.mean(dim=0)).square().sum().item()
        degrees_of_freedom += len(members) - 1
    return squares / (degrees_of_freedom * images[0].numel()) if degrees_of_freedom else float("nan")


def share_of_variance(error: float, variance: float) -> str:
    """A mean squared error as a percentage of the variance, for people; nothing where the variance is not known."""
    return "" if math.isnan(variance) else f"{error / variance:.1%}"
