"""The Fréchet distance between two Gaussians, and how it changes with one more sample: a loss on a distribution.

FID is this distance in Inception's features; here it is meant for the features of a network of one's own.
"""

import torch
from torch import Tensor, nn

SMALLEST_EIGENVALUE = 1e-8
"""Of the largest: below it lies rounding."""
BOOTSTRAPS = 4


def symmetric_root(matrix: Tensor) -> Tensor:
    """The square root of a symmetric positive semi-definite matrix (D, D)."""
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (D,) and covariance (D, D) of features (N, D), with N in the denominator."""
    return features.mean(dim=0), torch.cov(features.T, correction=0)


class FrechetDistance:
    """|m - m_r|^2 + Tr(S + S_r - 2 (S_r^1/2 S S_r^1/2)^1/2) to a Gaussian N(m_r, S_r) (Dowson and Landau 1982)."""

    def __init__(self, mean: Tensor, covariance: Tensor):
        """`mean` (D,) and `covariance` (D, D) of the reference, float64."""
        self.mean, self.trace = mean, covariance.trace()
        self.root = symmetric_root(covariance)

    def __call__(self, mean: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The distance to N(mean, covariance), and its gradients by the mean (D,) and by the covariance (D, D).

        The gradient of Tr (A S A)^1/2 by S is A (A S A)^-1/2 A / 2. Eigenvalues that rounding has made too small, or
        negative, count as the smallest that it leaves alone.
        """
        values, vectors = torch.linalg.eigh(self.root @ covariance @ self.root)
        roots = values.clamp(min=SMALLEST_EIGENVALUE * values[-1].item()).sqrt()
        away = mean - self.mean
        distance = away.square().sum() + covariance.trace() + self.trace - 2 * values.clamp(min=0).sqrt().sum()
        whitened = self.root @ vectors
        identity = torch.eye(len(mean), dtype=mean.dtype, device=mean.device)
        return distance, 2 * away, identity - (whitened / roots) @ whitened.T


class RunningFrechetLoss(nn.Module):
    """The Fréchet distance of a generator's features to a reference, from moments that run along with its training.

    A batch is far too small for a covariance. So mean and covariance are those of about the last `window` samples, and
    a batch is asked how the distance would change if the generator made more samples like these: the derivative of the
    distance to (1 - e) P + e Q at e = 0, for the running distribution P and the batch's Q. For a sample f that is,
    up to what does not depend on it,

        g_m . f + (f - m)^T G_S (f - m)

    with the gradients g_m and G_S of the distance. They are found anew every `refresh` updates; in between, the running
    moments hardly move. The state is in buffers, so that a run goes on as it would have.

    Of so few samples the smaller eigenvalues come out too small, which would make a perfect generator spread its
    samples wider. So from distance and G_S is taken what they are on average for samples of the reference: found once
    for 2 * `window` of them, which is what a long-running mean is worth, and as much more as the moments rest on fewer.
    """

    def __init__(self, reference: Tensor, window: int = 4096, refresh: int = 16):
        """`reference`: features (N, D). `window` must be at least D, and no smaller than a batch."""
        super().__init__()
        reference = reference.double()
        self.to_reference, self.window, self.refresh = FrechetDistance(*moments(reference)), window, refresh
        size, kind = reference.shape[1], {"dtype": torch.float64, "device": reference.device}
        self.usual_distance, self.usual_by_covariance = self._usual(reference)
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        self.register_buffer("squared_weights", torch.zeros((), **kind))
        """The sum over all samples seen of their weights' squares: 1 / n for a plain mean of n."""
        self.register_buffer("first_moment", torch.zeros(size, **kind))
        self.register_buffer("second_moment", torch.zeros(size, size, **kind))
        self.register_buffer("distance", torch.zeros((), **kind))
        self.register_buffer("center", torch.zeros(size, **kind))
        self.register_buffer("by_mean", torch.zeros(size, **kind))
        self.register_buffer("by_covariance", torch.zeros(size, size, **kind))
        self.latest: Tensor | None = None

    def _usual(self, reference: Tensor) -> tuple[Tensor, Tensor]:
        """Distance and G_S of as many of the reference's own samples as a long-running mean is worth."""
        generator = torch.Generator().manual_seed(0)
        found = []
        for _ in range(BOOTSTRAPS):
            rows = torch.randint(len(reference), (self.lasting_worth,), generator=generator).to(reference.device)
            found.append(self.to_reference(*moments(reference[rows])))
        return sum(distance for distance, _, _ in found) / BOOTSTRAPS, sum(by for *_, by in found) / BOOTSTRAPS

    def forward(self, features: Tensor) -> Tensor:
        """The distance as last found, a scalar, with the gradient for the features (N, D) of the generator's images.

        Until as many samples as the window holds have been seen it is 0, without a gradient.
        """
        self.latest = features.detach()
        with torch.autocast(features.device.type, enabled=False):
            away = features.float() - self.center.float()
            change = away @ self.by_mean.float() + ((away @ self.by_covariance.float()) * away).sum(dim=1)
        change = change.mean()
        return self.distance.float() + change - change.detach()

    @property
    def lasting_worth(self) -> int:
        """The samples of a plain mean that varies as much as a running one over the window."""
        return 2 * self.window

    @torch.no_grad()
    def update(self) -> None:
        """Takes the features that were seen last into the moments."""
        features = self.latest.double()
        self.seen += len(features)
        share = len(features) / min(self.seen.item(), self.window)
        self.squared_weights.mul_((1 - share) ** 2).add_(share**2 / len(features))
        self.first_moment.lerp_(features.mean(dim=0), share)
        self.second_moment.lerp_(features.T @ features / len(features), share)
        if self.seen >= self.window:
            if self.updates % self.refresh == 0:
                self._find_gradients()
            self.updates += 1

    def _find_gradients(self) -> None:
        covariance = self.second_moment - torch.outer(self.first_moment, self.first_moment)
        if not covariance.isfinite().all():  # the loss is not finite either, and the training stops for that
            return
        distance, by_mean, by_covariance = self.to_reference(self.first_moment, covariance)
        fewer = self.lasting_worth * self.squared_weights
        self.distance.copy_(distance - fewer * self.usual_distance)
        self.center.copy_(self.first_moment)
        self.by_mean.copy_(by_mean)
        self.by_covariance.copy_(by_covariance - fewer * self.usual_by_covariance)
