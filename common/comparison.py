"""Models side by side from the same noise: what each makes of it, at what cost, and how close it is to the teacher."""

import os
import statistics
import textwrap
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from common.checkpoint import Checkpoint
from common.device import Precision
from common.distances import share_of_variance, variance_around_class_mean
from common.errors import UserError
from common.files import atomic_write
from common.images import image_grid, to_uint8
from common.noise import BLOCK_SIZE
from common.sampling import SamplingSettings, draw_blocks, labels_in_turn
from common.stages import STAGES
from common.tables import text_table
from common.unet import count_values

PLACE_WIDTH = 48
"""Characters of a path that fit under a panel of the figure."""


@dataclass
class Column:
    """One model's samples and their cost."""

    checkpoint: Checkpoint
    settings: SamplingSettings
    images: Tensor
    """(N, C, H, W), float, on the CPU."""
    labels: Tensor | None
    network_calls: float
    """NFE: network evaluations behind an image."""
    seconds_per_image: float

    @property
    def name(self) -> str:
        return STAGES[self.checkpoint.stage].label


def require_comparable(checkpoints: list[Checkpoint]) -> None:
    """Raises UserError where the models do not make the same kind of image."""
    first = checkpoints[0]
    for other in checkpoints[1:]:
        if (other.class_names, other.model.config.image_shape) != (first.class_names, first.model.config.image_shape):
            raise UserError(f"{other.path} and {first.path} have different classes or image sizes")


def describe_samples(checkpoint: Checkpoint, settings: SamplingSettings, seed: int) -> dict:
    """What a file of samples says of them, as JSON values: whose they are, and how they were drawn."""
    guide = checkpoint.guide.sha256 if checkpoint.guide else None
    return {"checkpoint": checkpoint.sha256, "guide": guide, "seed": seed, **settings.to_dict()}


def draw_column(
    checkpoint: Checkpoint,
    settings: SamplingSettings,
    seed: int,
    count: int,
    classes: list[int],
    precision: Precision,
) -> Column:
    """Draws samples 0 ... count - 1 of `seed` and times them, after a warm-up with a batch of the first one's shape.

    Drawn until three times or a second are over, and the median counts.
    """
    # Two steps, one guided and one not.
    warm_up = replace(settings, solver="euler", num_steps=2, guidance_interval=(0.0, 0.4))
    first_batch = min(count, BLOCK_SIZE)
    guide = checkpoint.guide_model
    next(
        draw_blocks(checkpoint.model, seed, 0, first_batch, classes, warm_up, precision=precision, guide=guide)
    ).images.cpu()

    seconds: list[float] = []
    while len(seconds) < 3 and sum(seconds) < 1:
        start = time.perf_counter()
        blocks = draw_blocks(checkpoint.model, seed, 0, count, classes, settings, precision=precision, guide=guide)
        batches = list(blocks)
        images = torch.cat([batch.images for batch in batches]).cpu()  # waits for a GPU to finish
        seconds.append(time.perf_counter() - start)

    labels = labels_in_turn(classes, 0, count)
    network_calls = sum(batch.network_calls * len(batch.images) for batch in batches) / count
    return Column(checkpoint, settings, images, labels, network_calls, statistics.median(seconds) / count)


def places_of(columns: list[Column]) -> list[str]:
    """Where several models are of one stage, the part of each one's path that the others do not share; else nothing."""
    count_of = Counter(column.name for column in columns)
    places = []
    for column in columns:
        alike = [other.checkpoint.path.absolute() for other in columns if other.name == column.name]
        shared = os.path.commonpath([path.parent for path in alike])
        place = column.checkpoint.path.absolute().relative_to(shared).with_suffix("")
        places.append(str(place) if count_of[column.name] > 1 else "")
    return places


def comparison_table(columns: list[Column]) -> str:
    """Parameters, size, NFE, time, and the fidelity of each student to its teacher, as aligned text.

    A student without its teacher among the columns has no fidelity. Of several teachers, speed-ups are over the first.
    """
    teachers = {column.checkpoint.sha256: column for column in columns if not column.checkpoint.is_student}
    first = next(iter(teachers.values()), None)
    header = ("model", "parameters", "MB", "NFE", "s/image", "speed-up", "MSE to teacher", "of variance")
    rows = []
    for place, column in zip(places_of(columns), columns, strict=True):
        speed_up, error, share = "", "", ""
        if first:
            speed_up = f"{first.seconds_per_image / column.seconds_per_image:.1f}x"
        if teacher := teachers.get(column.checkpoint.header.get("teacher")):
            mse = F.mse_loss(column.images, teacher.images).item()
            variance = variance_around_class_mean(teacher.images, teacher.labels)
            error, share = f"{mse:.4f}", share_of_variance(mse, variance)
        models = [model for model in (column.checkpoint, column.checkpoint.guide) if model]
        parameters = " + ".join(f"{count_values(model.model):,}" for model in models)
        size = " + ".join(f"{model.path.stat().st_size / 1e6:.2f}" for model in models)
        cost = (f"{column.network_calls:g}", f"{column.seconds_per_image:.4f}", speed_up)
        rows.append((f"{column.name} {place}".strip(), parameters, size, *cost, error, share))
    return text_table(header, rows)


def cost_in_words(column: Column, teacher_seconds: float | None) -> list[str]:
    """NFE and time, and what there is to add: a student's speed-up, or how the teacher was run."""
    calls = f"{column.network_calls:g} network call{'s' * (column.network_calls != 1)}"
    words = [f"{calls}, {1000 * column.seconds_per_image:.3g} ms an image"]
    if not column.checkpoint.is_student:
        words.append(column.settings.describe())
    elif teacher_seconds:
        words.append(f"{teacher_seconds / column.seconds_per_image:.0f} times the teacher's speed")
    return words


def draw_comparison(columns: list[Column], path: Path, images_per_row: int) -> None:
    """The comparison figure: a panel for each model, the same noise at the same place, NFE and time under it."""
    from matplotlib.figure import Figure

    teacher_seconds = next((c.seconds_per_image for c in columns if not c.checkpoint.is_student), None)
    images_per_row = min(images_per_row, len(columns[0].images))
    rows = -(-len(columns[0].images) // images_per_row)
    panel_width = 4.2
    panel_height = panel_width * rows / images_per_row
    figure = Figure(figsize=(panel_width * len(columns), panel_height + 0.9), layout="constrained")
    panels = figure.subplots(1, len(columns), squeeze=False)[0]
    for axes, place, column in zip(panels, places_of(columns), columns, strict=True):
        axes.imshow(image_grid(to_uint8(column.images), images_per_row), interpolation="nearest")
        axes.set_title(column.name, fontsize=15, fontweight="bold")
        lines = [*textwrap.wrap(place, PLACE_WIDTH), *cost_in_words(column, teacher_seconds)]
        axes.set_xlabel("\n".join(lines), fontsize=11)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130)
