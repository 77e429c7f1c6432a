"""Where the teacher's training samples (noise, image, label) come from: images with fresh noise, or noise pairs."""

import math
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from common.augmentation import random_flips
from common.class_turns import count_classes, kept_counts
from common.data import ImageData, split_held_out
from common.epoch_order import EpochOrder
from common.errors import UserError
from common.lineage import lineage
from common.pairs import PairSet

Batch = tuple[Tensor, Tensor, Tensor | None]
"""Noise and images (n, C, H, W), float32, and labels (n,) or None; x0, x1 and the class of `common.flow`."""

HELD_OUT_LIMIT = 1000
"""At most so many held-out samples measure the loss."""

CHUNK = 250


class ImageSource:
    """Images of a data set, each with independent noise: rectified flow. A part of each class is held out."""

    def __init__(self, data: ImageData, val_fraction: float, device: torch.device):
        training, held_out = split_held_out(data, val_fraction)
        if not len(training):
            raise UserError("there are no images to train on: lower --val-fraction or add images")
        self.class_names = data.class_names
        self.training, self.device = training.to(device), device
        every = max(1, math.ceil(len(held_out) / HELD_OUT_LIMIT))
        self.held_out = held_out.select(held_out.labels.argsort(stable=True)[::every]).to(device)  # some of all classes
        counts = count_classes(training.labels, len(data.class_names))
        self.description = {"images_sha256": data.sha256(), "num_images": len(training), **counts}

    @property
    def training_count(self) -> int:
        return len(self.training)

    def require_held_out_unseen(self, header: dict, path: Path) -> None:
        """Raises UserError if the checkpoint at `path`, by its `header`, has learned from what is held out now."""
        sha256 = self.description["images_sha256"]
        runs = [run for run in lineage(header) if run.get("images_sha256") == sha256]
        seen_most = max(runs, key=lambda run: run["num_images"], default={"num_images": 0})
        if seen_most["num_images"] > len(self.training):
            raise UserError(
                f"{path} has learned from images that are held out now: give --val-fraction "
                f"{seen_most['arguments']['val_fraction']:g}"
            )

    def batch(self, order: EpochOrder, step: int, flips: bool, generator: torch.Generator) -> Batch:
        indices = order.indices(step).to(self.device)
        mirrored = random_flips(len(indices), flips, generator)
        return self._with_noise(*self.training.batch(indices, mirrored), generator)

    def held_out_batches(self, generator: torch.Generator) -> Iterator[Batch]:
        if not len(self.held_out):  # of nothing, split makes one part, of nothing
            return
        for indices in torch.arange(len(self.held_out), device=self.device).split(CHUNK):
            yield self._with_noise(*self.held_out.batch(indices), generator)

    def _with_noise(self, image: Tensor, label: Tensor, generator: torch.Generator) -> Batch:
        noise = torch.randn(image.shape, generator=generator, device=self.device)
        return noise.contiguous(memory_format=torch.channels_last), image, label


class PairSource:
    """Noise pairs of an earlier teacher: reflow (Liu et al. 2022, section 2.2), which straightens the flow."""

    def __init__(self, pairs: PairSet):
        self.pairs = pairs
        self.class_names = pairs.header["class_names"]
        self.description = {**pairs.description, **kept_counts(pairs.header)}

    @property
    def training_count(self) -> int:
        return self.pairs.training_count

    def require_held_out_unseen(self, header: dict, path: Path) -> None:
        self.pairs.require_held_out_unseen(header, path)

    def batch(self, order: EpochOrder, step: int, flips: bool, generator: torch.Generator) -> Batch:
        indices = order.indices(step)
        mirrored = random_flips(len(indices), flips, generator)
        pair = self.pairs.training_batch(indices, mirrored)
        return pair.noise, pair.image, pair.labels

    def held_out_batches(self, generator: torch.Generator) -> Iterator[Batch]:
        pair = self.pairs.held_out()
        yield pair.noise, pair.image, pair.labels
