"""The section of docs/results.md with the commands that measured the shipped models."""

import shlex
from collections.abc import Sequence
from textwrap import indent

from common.data import CIFAR10_NAMES
from common.results import group_title

NOTES = """## The commands

FOLDER is the folder of the reference's JPEG files, and STATISTICS.npz the mean and covariance of their features, as
`compute_fid.py --reference FOLDER` leaves them in data/features/*/statistics.npz: they give no KID, precision
or recall."""


def commands_section(groups: Sequence[Sequence[dict]], files: dict[str, str]) -> str:
    """`groups`: results that compare, of shipped models. `files`: where these are, by their hash."""
    blocks = [f"### {group_title(group)}\n\n```bash\n{commands_of(group, files)}\n```" for group in groups]
    return "\n\n".join([NOTES, *blocks])


def commands_of(group: Sequence[dict], files: dict[str, str]) -> str:
    """A shell function with what all share, and a call for each way of running, over all models that were run so."""
    models_of: dict[tuple[str, int], list[str]] = {}
    for result in group:
        models_of.setdefault((options_of(result, files), result["seed"]), []).append(files[result["checkpoint"]])
    seeds_of: dict[tuple[str, str], list[str]] = {}
    for (options, seed), models in models_of.items():
        seeds_of.setdefault((" ".join(models), options), []).append(str(seed))
    lines = [f'measure() {{ python compute_fid.py "$@" {_shared_options(group[0])}; }}']
    for (models, options), seeds in seeds_of.items():
        if len(seeds) == 1:
            lines.append(f"measure {models} {options} --seed {seeds[0]}")
        else:
            call = indent(f"measure {models} {options} --seed $seed", "    ")
            lines += [f"for seed in {' '.join(seeds)}; do", call, "done"]
    return "\n".join(lines)


def options_of(result: dict, files: dict[str, str]) -> str:
    """How images were drawn, but for the seed."""
    options = f"\\\n    --batch-size {result['batch_size']} --precision {result['arithmetic']}"
    if result["stage"] != "teacher":
        return options
    low, high = result["guidance_interval"]
    options += f" --solver {result['solver']} --num-steps {result['num_steps']}"
    options += f" \\\n    --guidance-scale {result['guidance_scale']:g}"
    if result["guidance_scale"] != 1 or result["guide"]:
        options += f" --guidance-interval {low:g} {high:g}"
    if result["guide"]:
        guide = files.get(result["guide"], "GUIDE")
        options += f" \\\n    --guide {guide} --guide-scale {result['guide_scale']:g}"
    return options


def _shared_options(result: dict) -> str:
    """What makes results comparable."""
    options = ["--num-samples", str(result["num_samples"])]
    if result["classes"]:
        options += ["--classes", *result["classes"]]
    if result["fid"] is None:
        options += ["--kid-only"]
    if result["reference"] in CIFAR10_NAMES:
        options += ["--reference", result["reference"]]
    else:
        kind = "STATISTICS.npz" if result["reference_count"] is None else "FOLDER"
        options += ["--reference", kind, "--reference-name", result["reference"]]
    return shlex.join(options)
