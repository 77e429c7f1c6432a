"""FID, KID, precision and recall, and the Inception Score of features, by torch-fidelity's functions in float64."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, isc_features_to_metric
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric
from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

from common.errors import UserError
from common.files import atomic_write, readable

CHUNK = 2048
"""Features that are converted to float64 at a time: not all of them, which would take twice their memory."""
KID_SUBSETS, KID_SUBSET_SIZE, KID_SEED = 100, 1000, 2020
PRECISION_RECALL_SAMPLES, PRECISION_RECALL_NEIGHBOURS = 10_000, 3
INCEPTION_SCORE_SPLITS = 10


@dataclass(frozen=True)
class Statistics:
    """What FID knows of a set of images: a Gaussian fitted to its features."""

    mean: np.ndarray
    """(D,), float64."""
    covariance: np.ndarray
    """(D, D), float64, with n - 1 in the denominator."""


def statistics(features: Tensor) -> Statistics:
    """Mean and covariance of features (N, D), N > 1, in float64, a chunk at a time."""
    chunks = features.split(CHUNK)
    mean = sum(chunk.double().sum(0) for chunk in chunks) / len(features)
    centred = (chunk.double() - mean for chunk in chunks)
    covariance = sum(chunk.T @ chunk for chunk in centred) / (len(features) - 1)
    return Statistics(mean.numpy(), covariance.numpy())


def load_statistics(path: str | Path) -> Statistics:
    """Reads an .npz with `mu` and `sigma`, as EDM and pytorch-fid write it.

    Raises UserError for a file that is missing, damaged, or holds something else.
    """
    with readable(path, ".npz of statistics (mu, sigma)"), np.load(path, allow_pickle=False) as file:
        mean, covariance = (file[name].astype(np.float64) for name in ("mu", "sigma"))
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise UserError(f"{path}: mu {mean.shape} and sigma {covariance.shape} are not a mean and its covariance")
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise UserError(f"{path}: mu or sigma holds values that are not finite")
    if not np.allclose(covariance, covariance.T):
        raise UserError(f"{path}: sigma is not symmetric, so it is no covariance")
    return Statistics(mean, covariance)


def save_statistics(path: str | Path, values: Statistics) -> None:
    """Writes the .npz that `load_statistics` reads, atomically."""
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, mu=values.mean, sigma=values.covariance)


def frechet_distance(generated: Statistics, reference: Statistics) -> float:
    """|m1 - m2|^2 + Tr(C1 + C2 - 2 (C1 C2)^(1/2)): of Inception's features, FID (Heusel et al. 2017, equation 6)."""
    first, second = ({"mu": values.mean, "sigma": values.covariance} for values in (generated, reference))
    return fid_statistics_to_metric(first, second, verbose=False)[KEY_METRIC_FID]


def kernel_inception_distance(generated: Tensor, reference: Tensor) -> tuple[float, float]:
    """KID (Binkowski et al. 2018) of features (N, D) and (M, D): mean and standard deviation over 100 subsets of 1,000.

    The unbiased squared MMD with the kernel (x.y / D + 1)^3. With fewer than 1,000 features on a side, the subsets are
    as large as that side. The subsets are those that torch-fidelity draws by itself; it gets them one at a time, so
    that only they are converted to float64.
    """
    size = min(KID_SUBSET_SIZE, len(generated), len(reference))
    random = np.random.RandomState(KID_SEED)
    distances = []
    for _ in range(KID_SUBSETS):
        first, second = (
            side[random.choice(len(side), size, replace=False)].double() for side in (generated, reference)
        )
        distance = kid_features_to_metric(first, second, kid_subsets=1, kid_subset_size=size, verbose=False)
        distances.append(distance[KEY_METRIC_KID_MEAN])
    return float(np.mean(distances)), float(np.std(distances))


def precision_and_recall(generated: Tensor, reference: Tensor) -> tuple[float, float, int]:
    """Precision, recall, and the images of each side that they are from (Kynkaanniemi et al. 2019, k = 3).

    Both depend on the number of images, so each side gives as many: 10,000, or all of the smaller side. A random subset
    (seed 0), since a folder's images come class by class.
    """
    count = min(PRECISION_RECALL_SAMPLES, len(generated), len(reference))
    generator = torch.Generator().manual_seed(0)
    sides = [side[torch.randperm(len(side), generator=generator)[:count]].double() for side in (generated, reference)]
    values = prc_features_to_metric(
        *sides,
        prc_neighborhood=PRECISION_RECALL_NEIGHBOURS,
        prc_batch_size=1000,
        save_cpu_ram=True,
        verbose=False,
    )
    return values[KEY_METRIC_PRECISION], values[KEY_METRIC_RECALL], count


def inception_score(features: Tensor, classifier: Tensor) -> float:
    """Inception Score (Salimans et al. 2016) of features (N, D) and the classifier's weights (K, D): mean of 10 splits.

    As in the first implementation, the logits leave out the classifier's bias.
    """
    logits = torch.cat([chunk @ classifier.T for chunk in features.split(CHUNK)])
    return isc_features_to_metric(logits, splits=INCEPTION_SCORE_SPLITS)[KEY_METRIC_ISC_MEAN]
