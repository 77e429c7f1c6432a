"""In which order samples take their classes: each as often as among the images that the model learned from."""

import math
from collections.abc import Sequence

from torch import Tensor

MOST_TURNS = 10_000
"""About so many make a round at most, in which a class of however few images has a turn."""


def count_classes(labels: Tensor, num_classes: int) -> dict[str, list[int]]:
    """What a header says of labels int64 (N,): the images of each class, and nothing where all have as many."""
    counts = labels.bincount(minlength=num_classes).tolist()
    return {"class_counts": counts} if len(set(counts)) > 1 else {}


def kept_counts(header: dict) -> dict[str, list[int]]:
    """The same of a header, for one that follows from it: of a teacher's for its pairs, and for its students."""
    return {"class_counts": header["class_counts"]} if "class_counts" in header else {}


def class_turns(counts: Sequence[int]) -> list[int]:
    """The classes in the order in which samples take them, so that any long run of samples has the images' shares.

    A class with n turns has them in the middle of n equal parts of the round. Equal counts give 0, 1, ..., K - 1.
    """
    turns = list(counts)
    if sum(turns) > MOST_TURNS:
        turns = [max(round(MOST_TURNS * count / sum(counts)), min(count, 1)) for count in counts]
    common = math.gcd(*turns) or 1
    turns = [number // common for number in turns]
    places = [((turn + 0.5) / number, label) for label, number in enumerate(turns) for turn in range(number)]
    return [label for _, label in sorted(places)]
