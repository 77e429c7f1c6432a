"""A critic by the Fréchet distance between the features of a student's images and of others."""

from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from common.classifier import Classifier
from common.device import Precision
from common.frechet import RunningFrechetLoss
from common.target_images import TargetImages

CHUNK = 250


class FrechetCritic(nn.Module):
    """The Fréchet distance between the student's images and the target's (FD-loss, arXiv 2604.28190).

    Divided by the number of features, each of unit variance. `flips`: the reference is the target images together with
    their mirror images. Its features are computed when the loss starts, and again after a resume.
    """

    def __init__(self, network: Classifier, target: TargetImages, window: int, flips: bool, precision: Precision):
        super().__init__()
        self.setup_flop = target.count * (2 if flips else 1) * summary_flop(network)
        self.network = [network]  # in a list: it is no part of the critic's state
        load_features = partial(target_features, network, target, flips, precision)
        device = network.stem.weight.device
        self.running = RunningFrechetLoss(network.summary_size, load_features, window, device=device)

    def forward(self, images: Tensor, labels: Tensor | None, generator: torch.Generator) -> Tensor:
        """A scalar loss of the student's images (N, C, H, W)."""
        return self.running(self.network[0].summary(images))

    def loss(self, step: int) -> None:
        return None

    def update(self) -> None:
        """Adds the student's latest images to the moments."""
        self.running.update()


@torch.no_grad()
def target_features(network: Classifier, target: TargetImages, flips: bool, precision: Precision) -> Tensor:
    """`network.summary` of all target images, with `flips` also of their mirror images: (N, D) or (2 N, D)."""
    features = []
    with precision.autocast():
        for indices in tqdm(torch.arange(target.count).split(CHUNK), desc="features of the target images", leave=False):
            images = target.gather(indices)
            features += [network.summary(views) for views in ([images, images.flip(-1)] if flips else [images])]
    return torch.cat(features)


@torch.no_grad()
def summary_flop(network: Classifier) -> int:
    """Floating-point operations of `network.summary` for one image, two to a multiply-add."""
    size = network.config.image_size
    with FlopCounterMode(display=False) as counter:
        network.summary(torch.zeros(1, 3, size, size, device=network.stem.weight.device))
    return counter.get_total_flops()
