"""Networks and training recipes by name."""

import argparse
import json
from dataclasses import fields, replace

from common.errors import UserError
from common.training_arguments import Recipe
from common.unet import UNetConfig

NETWORKS = {
    # About 1 MB: the demo and the tests.
    "tiny": UNetConfig(widths=(16, 32, 32), head_width=16, embedding_width=48),
    # 12.2 MB, most quality for a CPU-second: everything happens at 16x16 and below.
    "cpu": UNetConfig(widths=(64, 96, 112), embedding_width=96),
    # 11.7 MB, sized for a GPU: a level at full resolution, 1.8 times the arithmetic of `cpu`.
    "base": UNetConfig(patch_size=1, widths=(32, 64, 96, 96), attention_levels=(1, 2), embedding_width=144),
}

TEACHER_RECIPES = {
    "tiny": Recipe(batch_size=64, learning_rate=2e-3, warmup_steps=100, steps=1500, decay_steps=600, ema_decay=0.995),
    "cpu": Recipe(
        batch_size=64, learning_rate=1e-3, warmup_steps=500, steps=18_000, decay_steps=7000, ema_decay=0.9995
    ),
    # The CIFAR-10 recipe of Tong et al. 2023 (torchcfm): 400,000 steps of 128 images, rate 2e-4, EMA 0.9999.
    "base": Recipe(
        batch_size=128, learning_rate=2e-4, warmup_steps=5000, steps=400_000, decay_steps=0, ema_decay=0.9999
    ),
}

SNAPSHOT_STEPS = tuple(1000 * 2**power for power in range(10))
"""After these a teacher keeps its weights: early ones can guide later ones."""

STUDENT_RECIPE = Recipe(
    batch_size=128, learning_rate=3e-4, warmup_steps=500, steps=200_000, decay_steps=50_000, ema_decay=0.9995
)
"""For one GPU and 100,000 pairs; the README's CPU commands shorten it."""


def network_changes(text: str) -> dict:
    """An argparse type: changes to a preset's network as JSON, '{"skips": "concatenated", "head_width": 40}'."""
    known = {field.name for field in fields(UNetConfig)} - {"num_classes"}  # that comes with the images
    try:
        changes = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not JSON: {error}") from None
    if not isinstance(changes, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is not a JSON object")
    if unknown := changes.keys() - known:
        names = ", ".join(sorted(known))
        raise argparse.ArgumentTypeError(f"a network has no {sorted(unknown)[0]!r}: choose from {names}")
    return changes


def network_of(preset: str, changes: dict) -> UNetConfig:
    """A preset's network, changed. Raises UserError where that is no network."""
    try:
        return replace(NETWORKS[preset], **changes)
    except (ValueError, TypeError) as error:
        raise UserError(f"--network with preset {preset}: {error}") from None
