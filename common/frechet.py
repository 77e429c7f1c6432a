"""The Fréchet distance between two Gaussians, and a training loss from it for the distribution of generated samples.

FID is this distance in Inception's features. Here the features are those of a network of one's own.
"""

from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor, nn

EIGENVALUE_FLOOR = 1e-8
"""Of the largest: below it the slope of the square root is held, so that it stays finite for a singular covariance."""
BOOTSTRAPS = 4
SMALLEST_DEVIATION = 1e-4
"""Of the features' median deviation: one that varies less hardly lives, and its scale would only blow up rounding."""


def symmetric_root(matrix: Tensor) -> Tensor:
    """The square root of a symmetric positive semi-definite matrix (D, D)."""
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def sum_of_roots(eigenvalues: Tensor, floor: float) -> Tensor:
    """The sum of the square roots of eigenvalues (D,), with a slope that below `floor` stays as it is there.

    Eigenvalues that rounding has made negative count as 0.
    """
    fixed = eigenvalues.detach()
    slopes = 0.5 / fixed.clamp(min=floor).sqrt()
    return fixed.clamp(min=0).sqrt().sum() + (slopes * (eigenvalues - fixed)).sum()


def moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (D,) and covariance (D, D) of features (N, D), with N in the denominator."""
    return features.mean(dim=0), torch.cov(features.T, correction=0)


def unit_variance_scale(features: Tensor) -> Tensor:
    """What to multiply features (N, D) by so that each has unit variance, (D,); 0 for one that hardly varies."""
    deviation = features.std(dim=0, correction=0)
    lives = deviation > SMALLEST_DEVIATION * deviation.median()
    return lives / deviation.where(lives, 1)


class FrechetDistance:
    """The distance to a reference N(m_r, C_r): |m - m_r|^2 + tr(C + C_r - 2 (C_r^1/2 C C_r^1/2)^1/2).

    Dowson and Landau 1982.
    """

    def __init__(self, mean: Tensor, covariance: Tensor):
        """`mean` (D,) and `covariance` (D, D) of the reference, float64."""
        self.mean, self.trace = mean, covariance.trace()
        self.root = symmetric_root(covariance)

    def __call__(self, mean: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The distance to N(mean, covariance), and its gradients by the mean (D,) and by the covariance (D, D)."""
        mean, covariance = mean.detach().requires_grad_(), covariance.detach().requires_grad_()
        with torch.enable_grad():
            eigenvalues = torch.linalg.eigvalsh(self.root @ covariance @ self.root)
            trace_of_root = sum_of_roots(eigenvalues, floor=EIGENVALUE_FLOOR * eigenvalues[-1].item())
            distance = (mean - self.mean).square().sum() + covariance.trace() + self.trace - 2 * trace_of_root
            by_mean, by_covariance = torch.autograd.grad(distance, (mean, covariance))
        return distance.detach(), by_mean, by_covariance


class ReferenceDistribution:
    """A reference distribution, given by samples, and the bias of a distance to it that few samples estimate.

    The distance is measured in features of unit variance over the reference, and divided by their number D: features of
    one network differ in scale by orders of magnitude, and the largest would hide all others.
    """

    def __init__(self, features: Tensor, num_samples: int):
        """`features`: float64 (N, D). The bias is that of `num_samples`, bootstrapped."""
        self.scale, self.num_samples = unit_variance_scale(features), num_samples
        self._scaled_distance = FrechetDistance(*moments(features * self.scale))
        generator = torch.Generator().manual_seed(0)
        estimates = []
        for _ in range(BOOTSTRAPS):
            rows = torch.randint(len(features), (num_samples,), generator=generator).to(features.device)
            estimates.append(self.distance(*moments(features[rows])))
        self._bias = sum(distance for distance, _, _ in estimates) / BOOTSTRAPS
        self._gradient_bias = sum(by_covariance for *_, by_covariance in estimates) / BOOTSTRAPS

    def distance(self, mean: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The distance to N(mean, covariance), and its gradients by the mean (D,) and by the covariance (D, D)."""
        scale, scales = self.scale, torch.outer(self.scale, self.scale)
        distance, by_mean, by_covariance = self._scaled_distance(mean * scale, covariance * scales)
        return distance / len(scale), by_mean * scale / len(scale), by_covariance * scales / len(scale)

    def bias(self, effective_size: Tensor) -> tuple[Tensor, Tensor]:
        """Of the distance, a scalar, and of its gradient by the covariance (D, D), for moments of so many samples."""
        share = self.num_samples / effective_size
        return share * self._bias, share * self._gradient_bias


class RunningFrechetLoss(nn.Module):
    """The Fréchet distance of generated features to a reference, from moments that run along with the training.

    A batch is far too small to estimate a covariance. Mean and covariance are therefore running averages over about the
    last `window` samples. The loss of a batch is the derivative of the distance to (1 - e) P + e Q at e = 0, for the
    running distribution P and the batch's distribution Q. For a sample f that is, up to a constant,

        g_m . f + (f - m)^T G_C (f - m)

    with the gradients g_m and G_C of the distance by mean and covariance. They are computed anew every `refresh`
    updates, since the running moments change slowly. All state is in buffers, so that a run can be resumed.

    With n samples the estimate is biased by about c / n: the smaller eigenvalues come out too small, which would make a
    perfect generator spread its samples wider. The bias is estimated once by bootstrapping reference samples, scaled by
    the current effective sample size, and subtracted from distance and gradient.
    """

    def __init__(
        self,
        size: int,
        load_reference: Callable[[], Tensor],
        window: int = 4096,
        refresh: int = 16,
        device: torch.device | None = None,
    ):
        """`load_reference` returns features (N, size); it is called once, when the first gradients are computed.

        `window` must be at least `size`, and no smaller than a batch.
        """
        super().__init__()
        self.window, self.refresh, self.load_reference = window, refresh, load_reference
        kind = {"dtype": torch.float64, "device": device}
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        self.register_buffer("squared_weights", torch.zeros((), **kind))
        """The sum of the squared weights of all samples seen; its inverse is the effective sample size."""
        self.register_buffer("first_moment", torch.zeros(size, **kind))
        self.register_buffer("second_moment", torch.zeros(size, size, **kind))
        self.register_buffer("distance", torch.zeros((), **kind))
        self.register_buffer("center", torch.zeros(size, **kind))
        self.register_buffer("by_mean", torch.zeros(size, **kind))
        self.register_buffer("by_covariance", torch.zeros(size, size, **kind))
        self.latest: Tensor | None = None

    @cached_property
    def reference(self) -> ReferenceDistribution:
        """With the bias for 2 `window` samples, about the effective size of a long running average."""
        return ReferenceDistribution(self.load_reference().double(), num_samples=2 * self.window)

    def forward(self, features: Tensor) -> Tensor:
        """The distance as last computed, a scalar, with the gradient for features (N, D) of generated images.

        It is 0, without a gradient, until `window` samples have been seen.
        """
        self.latest = features.detach()
        with torch.autocast(features.device.type, enabled=False):
            away = features.float() - self.center.float()
            change = away @ self.by_mean.float() + ((away @ self.by_covariance.float()) * away).sum(dim=1)
        change = change.mean()
        return self.distance.float() + change - change.detach()

    @torch.no_grad()
    def update(self) -> None:
        """Adds the latest features to the moments."""
        features = self.latest.double()
        self.seen += len(features)
        share = len(features) / min(self.seen.item(), self.window)
        self.squared_weights.mul_((1 - share) ** 2).add_(share**2 / len(features))
        self.first_moment.lerp_(features.mean(dim=0), share)
        self.second_moment.lerp_(features.T @ features / len(features), share)
        if self.seen >= self.window:
            if self.updates % self.refresh == 0:
                self._compute_gradients()
            self.updates += 1

    def _compute_gradients(self) -> None:
        covariance = self.second_moment - torch.outer(self.first_moment, self.first_moment)
        if not covariance.isfinite().all():  # then the loss is not finite either, and the run stops for that
            return
        distance, by_mean, by_covariance = self.reference.distance(self.first_moment, covariance)
        bias, gradient_bias = self.reference.bias(1 / self.squared_weights)
        self.distance.copy_(distance - bias)
        self.center.copy_(self.first_moment)
        self.by_mean.copy_(by_mean)
        self.by_covariance.copy_(by_covariance - gradient_bias)
