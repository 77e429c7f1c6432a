"""Networks and training recipes by name."""

import argparse
import json
from collections.abc import Callable
from dataclasses import fields, replace
from typing import TypeVar

from common.classifier import ClassifierConfig
from common.errors import UserError
from common.training_arguments import Recipe
from common.unet import UNetConfig

Config = TypeVar("Config")

# 11.9 MB, "32 wide at 32x32" in docs/architecture_search.md. After 4e14 FLOP a level 16 wide has a lower FID (20.20
# against 21.19), but in bf16 it takes a tenth longer for as many FLOP: for a minute of training they are about even.
CPU_NETWORK = UNetConfig(
    patch_size=1,
    widths=(32, 64, 80, 96),
    blocks_per_level=(1, 2, 2, 2),
    skips="added",
    attention_levels=(2,),
    head_width=80,
    embedding_width=96,
)

NETWORKS = {
    # About 1 MB: the demo and the tests.
    "tiny": UNetConfig(widths=(16, 32, 32), head_width=16, embedding_width=48),
    "cpu": CPU_NETWORK,
    # 12.1 MB, for a GPU: two more blocks at full resolution, where a block has few values and much arithmetic.
    "base": replace(CPU_NETWORK, blocks_per_level=2),
}

TEACHER_RECIPES = {
    "tiny": Recipe(batch_size=64, learning_rate=2e-3, warmup_steps=100, steps=1500, decay_steps=600, ema_decay=0.995),
    "cpu": Recipe(
        batch_size=64,
        learning_rate=2e-3,
        warmup_steps=500,
        steps=12_000,
        decay_steps=4800,
        ema_decay=0.998,
        optimizer="muon",
    ),
    # Larger batches, to fill a GPU, and forty times the arithmetic. Neither is measured.
    "base": Recipe(
        batch_size=512,
        learning_rate=2e-3,
        warmup_steps=1000,
        steps=50_000,
        decay_steps=20_000,
        ema_decay=0.9995,
        optimizer="muon",
    ),
}

SNAPSHOT_STEPS = tuple(1000 * 2**power for power in range(10))
"""After these a teacher keeps its weights: early ones can guide later ones."""

STUDENT_RECIPES = {
    "tiny": Recipe(batch_size=64, learning_rate=1e-3, warmup_steps=50, steps=800, decay_steps=400, ema_decay=0.99),
    "cpu": Recipe(
        batch_size=64,
        learning_rate=1e-3,
        warmup_steps=100,
        steps=3000,
        decay_steps=1500,
        ema_decay=0.998,
        optimizer="muon",
    ),
    # For 100,000 pairs. Not measured.
    "base": Recipe(
        batch_size=512,
        learning_rate=1e-3,
        warmup_steps=500,
        steps=50_000,
        decay_steps=12_500,
        ema_decay=0.999,
        optimizer="muon",
    ),
}

FINISHING_RECIPE = Recipe(
    batch_size=128,
    learning_rate=2e-4,
    warmup_steps=100,
    steps=2000,
    decay_steps=1000,
    ema_decay=0.998,
    optimizer="muon",
)
CLASSIFIER = {"widths": (24, 64, 256, 256), "speed_run": True}
FEATURE_RECIPE = Recipe(
    batch_size=1000,
    learning_rate=0.03,
    warmup_steps=0,
    steps=400,
    decay_steps=400,
    ema_decay=0.95,
    optimizer="muon",
    weight_decay=0.3,
    muon_momentum=0.6,
)


def changes_to(config: type) -> Callable[[str], dict]:
    """An argparse type: changes to a network's configuration as JSON, '{"skips": "concatenated", "head_width": 40}'."""
    known = {field.name for field in fields(config)} - {"num_classes"}  # that comes with the images

    def parse(text: str) -> dict:
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

    return parse


def changed(config: Config, changes: dict, name: str) -> Config:
    """A network's configuration, changed. Raises UserError, which calls it by its name, where that is no network."""
    try:
        return replace(config, **changes)
    except (ValueError, TypeError) as error:
        raise UserError(f"--network with {name}: {error}") from None


def classifier_of(num_classes: int, changes: dict) -> ClassifierConfig:
    """The feature network, changed. Raises UserError where that is no network."""
    return changed(ClassifierConfig(num_classes, **CLASSIFIER), changes, "the classifier")


def network_of(preset: str, changes: dict) -> UNetConfig:
    """A preset's network, changed. Raises UserError where that is no network."""
    config = changed(NETWORKS[preset], changes, f"preset {preset}")
    if config.image_channels != 3:
        raise UserError(f"--network: images have 3 channels, not {config.image_channels}")
    return config
