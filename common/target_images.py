"""The images that a critic compares a student's with."""

import argparse

import torch
from torch import Tensor

from common.checkpoint import Checkpoint
from common.data import ImageData, images_behind
from common.errors import UserError
from common.pairs import PairSet


def draw_labels(labels: Tensor | None, count: int, generator: torch.Generator) -> Tensor | None:
    """Labels (count,) of classes as frequent as among `labels`; None for None."""
    if labels is None:
        return None
    return labels[torch.randint(len(labels), (count,), generator=generator, device=generator.device)]


class TargetImages:
    """What a student's images are compared with: those that trained its teacher, or the teacher's own, of the pairs."""

    def __init__(self, args: argparse.Namespace, teacher: Checkpoint, pairs: PairSet):
        self.labels: Tensor | None = None
        """In which the classes are as frequent as among the images; None for a teacher without classes."""
        if args.critic_images == "teacher":
            turns = teacher.class_turns
            self.labels = torch.tensor(turns, device=pairs.device) if turns else None
            self.count, self.first = pairs.training_count, pairs.held_out_count
            self.gather = lambda indices: pairs.gather(indices + self.first).image
            return
        images = teachers_images(args, teacher).to(pairs.device)
        self.count, self.labels = len(images), images.labels if teacher.class_names else None
        self.gather = lambda indices: images.batch(indices.to(pairs.device))[0]


def teachers_images(args: argparse.Namespace, teacher: Checkpoint) -> ImageData:
    """The images that trained the teacher, without those that it never saw. Raises UserError where there are none."""
    if "images_sha256" not in teacher.header:
        raise UserError(f"{teacher.path} was trained on noise pairs, not on images: --critic-images teacher")
    return images_behind(teacher.path, teacher.header, args.data_dir)[0]
