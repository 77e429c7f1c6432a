"""Noise pairs on disk: noise samples and the images that the teacher makes of them, in self-describing `.pt` shards.

A shard is a dictionary of tensors and one `header` of plain values, read with `weights_only=True, mmap=True`:

- `noise`, `image`: fp16 (n, C, H, W); the image is the solver's, about [-1, 1], not clipped;
- `states`: fp16 (n, times, C, H, W), the teacher's states at `header["trajectory_times"]`, where there are any;
- `labels`: int64 (n,), where the teacher has classes.

The pairs are a function of the header, so a lost shard can be made again.
"""

from dataclasses import fields
from pathlib import Path

import torch
from torch import Tensor

from common.errors import UserError
from common.files import readable
from common.sampling import Generated, SamplingSettings
from common.solvers import in_words

FORMAT = "noise-pairs/1"
TRAJECTORY_TIMES = (0.25, 0.5, 0.75)
"""Where a four-step student's steps begin and end, beside 0 and 1: the teacher's states there are kept by default."""
SHARD_SIZE = 1024


def shard_path(folder: Path, index: int) -> Path:
    return folder / f"pairs_{index:05d}.pt"


def shard_paths(folder: Path) -> list[Path]:
    """The shards that a folder holds, in order."""
    return sorted(folder.glob("pairs_*.pt"))


def shard_tensors(batches: list[Generated]) -> dict[str, Tensor]:
    """fp16 tensors of a shard, (n, C, H, W) and for the states (n, times, C, H, W).

    Raises UserError for images that are not finite: as targets they would stop every student that sees them.
    """
    tensors = {
        "noise": torch.cat([batch.noise for batch in batches]).half(),
        "image": torch.cat([batch.images for batch in batches]).half(),
    }
    if batches[0].states:
        tensors["states"] = torch.cat([torch.stack(batch.states, dim=1) for batch in batches]).half()
    if batches[0].labels is not None:
        tensors["labels"] = torch.cat([batch.labels for batch in batches])
    if not all(tensor.isfinite().all() for tensor in tensors.values()):
        raise UserError("the teacher's images are not finite: less guidance, more steps or --precision fp32 may help")
    return {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}


def read_shard(path: Path) -> dict:
    """Memory-maps a shard. Raises UserError for a file that is missing, damaged, or no shard of noise pairs."""
    with readable(path, "file of noise pairs"):
        shard = torch.load(path, weights_only=True, mmap=True)
    if not isinstance(shard, dict) or not isinstance(shard.get("header"), dict):
        raise UserError(f"{path} is not a file of noise pairs of this project")
    if shard["header"].get("format") != FORMAT:
        raise UserError(f"{path} is not a file of noise pairs of this project (its header does not say {FORMAT})")
    return shard


def recipe_of(header: dict) -> dict:
    """What all shards of a set have in common: the header without the shard's own place in the set."""
    return {key: value for key, value in header.items() if key not in ("start", "count", "flop")}


def existing_count(path: Path, recipe: dict) -> int:
    """How many pairs the shard at `path` holds already; 0 where there is none.

    Raises UserError for a shard of another recipe, which is never overwritten.
    """
    if not path.exists():
        return 0
    header = read_shard(path)["header"]
    found = recipe_of(header)
    if found != recipe:
        raise UserError(f"{path} was made {_difference(found, recipe)}choose another --out, or remove that set")
    return header["count"]


def _difference(found: dict, recipe: dict) -> str:
    """How a set was made, and the option that makes more of it, where one does."""
    key = next(key for key in {**recipe, **found} if recipe.get(key) != found.get(key))
    before, now = found.get(key), recipe.get(key)
    if key in ("seed", "precision"):
        return f"with --{key} {before}, not {now}: give --{key} {before}, or "
    if key == "guide":
        if before:
            remedy = f"give the file of SHA-256 {before[:12]}... as --guide"
        else:
            remedy = (
                f"give --guidance-scale {found['sampling']['guidance_scale']:g}, and neither --guide nor --guide-scale"
            )
        return f"{how_guided(found)}, not {how_guided(recipe)}: {remedy}, or "
    if key == "trajectory_times":
        before, now = (in_words(times) or "none" for times in (before, now))
        return f"with states at t = {before}, not {now}: give --trajectory-times with these, or "
    if key == "sampling":
        before, now = (SamplingSettings(**settings) for settings in (before, now))
        options = " ".join(_sampling_options(before, now))
        return f"by {before.describe()}, not by {now.describe()}: give {options}, or "
    return f"with {key.replace('_', ' ')} {before}, not {now}: "


def _sampling_options(wanted: SamplingSettings, given: SamplingSettings) -> list[str]:
    """The options that make the settings which are wanted of those that were given."""
    options = []
    for field in fields(SamplingSettings):
        value = getattr(wanted, field.name)
        if value != getattr(given, field.name):
            values = value if isinstance(value, tuple) else (value,)
            options += [f"--{field.name.replace('_', '-')}", *map(str, values)]
    return options


def how_guided(recipe: dict) -> str:
    """A phrase that names the guide of pairs by their recipe, for messages."""
    return f"with the guide of SHA-256 {recipe['guide'][:12]}..." if recipe.get("guide") else "without a guide"
