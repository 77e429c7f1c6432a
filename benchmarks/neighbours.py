"""Nearest neighbours in a space of features: does a generator repeat the images that it was trained on?"""

import torch
from torch import Tensor

CHUNK = 500


def nearest(queries: Tensor, references: Tensor, count: int = 1) -> tuple[Tensor, Tensor]:
    """Euclidean distances and indices (N, count) of the references (M, D) that are nearest to each query (N, D)."""
    found = [torch.cdist(chunk, references).topk(count, largest=False) for chunk in queries.split(CHUNK)]
    return torch.cat([values for values, _ in found]), torch.cat([indices for _, indices in found])


def share_closer_than_real(samples: Tensor, originals: Tensor, mirrored: Tensor) -> float:
    """Of samples, the share that lies closer to a training image than any other training image does.

    Features: `samples` (N, D), the training images as they are and `mirrored` (M, D), M > 1, since a generator that was
    trained with flips repeats both. That is one minus authenticity (Alaa et al. 2022, "How faithful is your synthetic
    data?"). New images of the same distribution have no reason to be closer to a training image than its neighbours
    are; copies all are.
    """
    count = len(originals)
    references = torch.cat([originals, mirrored])
    distances, indices = nearest(samples, references)
    images, where = indices[:, 0].unique(return_inverse=True)
    # An image and its mirror image are one, and may be the two nearest of all: the third is another's.
    among_real, neighbours = nearest(references[images], references, count=3)
    among_real = among_real.masked_fill(neighbours % count == images[:, None] % count, float("inf")).amin(dim=1)
    return (distances[:, 0] < among_real[where]).float().mean().item()
