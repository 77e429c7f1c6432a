"""What `architecture_search.py` compares: networks, recipes and kinds of guidance, by name."""

from dataclasses import dataclass, field

from common.unet import UNetConfig

STARTING_NETWORK = UNetConfig(num_classes=10, widths=(64, 96, 112), embedding_width=96)
"""Preset `cpu` as the search found it."""


@dataclass(frozen=True)
class Variant:
    """What differs from the starting network, and from the common recipe."""

    network: dict = field(default_factory=dict)
    optimizer: str = "muon"
    learning_rate: float = 2e-3
    batch_size: int = 64
    decay_share: float = 0.4
    """The last share of the steps, over which the learning rate falls to 0."""
    flow: dict = field(default_factory=dict)
    """Further options of the teacher stage."""


DEEP = {"skips": "added", "widths": [64, 80, 96], "blocks_per_level": 2, "head_width": 16}
DEEP_ONE_HEAD = DEEP | {"head_width": 80}
THIN_32 = DEEP_ONE_HEAD | {
    "patch_size": 1,
    "widths": [16, 64, 80, 96],
    "blocks_per_level": [1, 2, 2, 2],
    "attention_levels": [2],
}

VARIANTS = {
    "AdamW 1e-3": Variant(optimizer="adamw", learning_rate=1e-3),
    "Muon 2e-3": Variant(),
    "Muon 4e-3": Variant(learning_rate=4e-3),
    # Where the parameters and the arithmetic sit.
    "lighter 16x16": Variant({"widths": [48, 96, 112]}),
    "twice as deep": Variant({"widths": [48, 80, 80], "blocks_per_level": 2, "head_width": 16}),
    # How it is wired.
    "added skips": Variant({"skips": "added", "widths": [80, 112, 112], "head_width": 16}),
    "added skips, twice as deep": Variant(DEEP),
    "added skips, twice as deep, lighter 16x16": Variant(
        {"skips": "added", "widths": [48, 96, 96], "blocks_per_level": 2, "head_width": 16}
    ),
    "added skips, three times as deep": Variant(
        {"skips": "added", "widths": [48, 80, 80], "blocks_per_level": 3, "head_width": 16}
    ),
    "no attention": Variant({"attention_levels": []}),
    # How it is trained.
    "batch 128": Variant(batch_size=128),
    "uniform times": Variant(flow={"--time-distribution": "uniform"}),
    "label dropout 0.1": Variant(flow={"--label-dropout": 0.1}),
    # What was good alone, together.
    "added skips, twice as deep, one head": Variant(DEEP_ONE_HEAD),
    "added skips, twice as deep, one head, three Newton-Schulz steps": Variant(DEEP_ONE_HEAD),
    "added skips, twice as deep, one head, 32x32 level": Variant(THIN_32),
    "added skips, twice as deep, one head, 32 wide at 32x32": Variant(THIN_32 | {"widths": [32, 64, 80, 96]}),
    "added skips, twice as deep, one head, 48 wide at 32x32": Variant(THIN_32 | {"widths": [48, 64, 80, 96]}),
    "added skips, twice as deep, one head, 32 wide and deep at 32x32": Variant(
        THIN_32 | {"widths": [32, 64, 80, 96], "blocks_per_level": 2}
    ),
    "added skips, twice as deep, no attention": Variant(DEEP | {"attention_levels": []}),
}


@dataclass(frozen=True)
class Guidance:
    """How samples for FID are drawn."""

    sampler: dict
    snapshot_share: float | None = None
    """The guide is the run's last snapshot within this share of its steps; None for no guide."""


STEPS = {"--solver": "edm-heun", "--num-steps": 14}

GUIDANCE = {
    "classifier-free": Guidance(STEPS | {"--guidance-scale": 2}),
    "classifier-free, Euler": Guidance({"--solver": "euler", "--num-steps": 24, "--guidance-scale": 2}),
    "snapshot at 12 %": Guidance(STEPS | {"--guide-scale": 2}, 0.12),
    "snapshot at 25 %": Guidance(STEPS | {"--guide-scale": 2}, 0.25),
}
