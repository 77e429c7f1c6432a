"""What a training run needs to go on, and the checks that it goes on as what it was."""

import argparse
from collections.abc import Collection
from dataclasses import fields
from pathlib import Path

import torch

from common.errors import UserError
from common.files import readable
from common.training_arguments import Recipe

RECIPE_OPTIONS = {field.name for field in fields(Recipe)}
STATE_FILE = "training_state.pt"
COMPACT_FILE = "compact_state.pt"
"""A smaller training state: `compact`."""

KEYS = {
    *("model", "averages", "optimizer", "critic", "step", "warmed_up_from", "schedule", "identity", "beginning"),
    *("seconds", "seconds_at_log", "window"),
}


def load_training_state(path: Path) -> dict:
    """Tensors and plain values. Raises UserError for a file that is missing, damaged or foreign."""
    with readable(path, "training state"):
        state = torch.load(path, weights_only=True, map_location="cpu")
    if not isinstance(state, dict) or not state.keys() >= KEYS:
        raise UserError(f"{path} is not a training state of this project")
    return state


def has_begun(run: Path) -> bool:
    """Whether a run's folder holds a state to go on from: what it was begun with has been checked then."""
    return (run / STATE_FILE).is_file()


def find_training_state(run: Path) -> Path:
    """The file in a run's folder to branch from: the whole state or, where that is lost, the compact one."""
    whole, compact = run / STATE_FILE, run / COMPACT_FILE
    return compact if compact.is_file() and not whole.is_file() else whole


def compact(state: dict) -> dict:
    """The state's weights in fp16, without the averages', the optimiser's and the critic's: small enough to be kept.

    A run that goes on from it passes its warm-up again, with averages that begin at these weights, and is not the run
    that it would have been.
    """
    weights = {name: value.half() if value.is_floating_point() else value for name, value in state["model"].items()}
    return {**state, "model": weights, "averages": {}, "optimizer": None, "critic": None}


def check_identity(state: dict, identity: dict, run: Path, is_own: bool) -> None:
    """Raises UserError where a run would go on with other arguments or data than it began with.

    `is_own`: the state is that in --out; else it is that of --branch-from.
    """
    elsewhere = "use another --out" if is_own else "branch from another run"
    earlier = state["identity"]["arguments"]
    for name, value in identity["arguments"].items():
        if earlier.get(name) != value:
            difference = _difference(f"--{name.replace('_', '-')}", earlier.get(name), value)
            hint = " (or the same --preset)" if name in RECIPE_OPTIONS else ""
            raise UserError(f"the run in {run} was {difference}{hint}, or {elsewhere}")
    for name, value in identity.items():
        before = state["identity"].get(name)
        if name != "arguments" and before != value:
            if name == "num_pairs" and before:
                raise UserError(f"the run in {run} was made with {before:,} pairs: give --num-pairs {before}")
            what = "images" if name == "images_sha256" else name.replace("_", " ")
            other = f"{'other' if what.endswith('s') else 'another'} {what}"
            raise UserError(f"the run in {run} was made with {other}: {elsewhere}")


def _difference(option: str, before: object, now: object) -> str:
    """How a run was made, and what to give for it to go on."""
    if option == "--data" and before is None:
        return "trained on noise pairs: give --pairs"
    if option == "--data" and now is None:
        return "trained on images: leave out --pairs"
    if isinstance(now, bool):
        return f"made with {option}: give it" if before else f"made without {option}: leave it out"
    if before is None:
        return f"made without {option}: leave it out"
    if now is None:
        return f"made with {option} {before}: give it"
    return f"made with {option} {before}, not {now}: give the same value"


def check_beginning(state: dict, header: dict, run: Path) -> None:
    """A run that began at the weights of a file goes on without it, but not with another: raises UserError."""
    given, began = (origin.get("initial", {}).get("sha256") for origin in (header, state["beginning"]))
    if given and given != began:
        raise UserError(f"the run in {run} began at other weights: leave out --init, or use another --out")


def check_averages(state: dict, decays: Collection[float], run: Path) -> None:
    """A run can go on with some of its averages, but not with one that it has not kept: raises UserError.

    From a compact state all averages begin anew.
    """
    if state["optimizer"] is None:
        return
    kept = [float(decay) for decay in state["averages"]]
    for decay in decays:
        if decay not in kept:
            raise UserError(f"{run} has averages with --ema-decay {', '.join(map(str, kept))}, and none with {decay}")


def check_warm_up(state: dict, args: argparse.Namespace, run: Path) -> None:
    """Raises UserError where the warm-up that follows a compact state does not end before the decay begins."""
    remaining = args.steps - state["step"]
    if args.warmup_steps + args.decay_steps > remaining:
        raise UserError(
            f"after the weights in {run} there are {remaining} steps, into which {args.warmup_steps} of warm-up and "
            f"{args.decay_steps} of decay do not fit: give more --steps"
        )


def check_schedule(state: dict, args: argparse.Namespace, run: Path) -> None:
    """The steps that were taken must be those that the schedule asked for now would have taken, too.

    Raises UserError where they are not: the run has more steps, or one of the two decays began before where it stands.
    A run that goes on from a compact state starts its schedule anew: the decay that it comes from does not count.
    """
    step, (steps, decay_steps) = state["step"], state["schedule"]
    if step > args.steps:
        raise UserError(f"{run} already has {step} steps, more than --steps {args.steps}")
    if (args.steps, args.decay_steps) == (steps, decay_steps):
        return
    if step > steps - decay_steps and state["optimizer"] is not None:
        raise UserError(
            f"{run} began its decay at step {steps - decay_steps} and cannot be prolonged: "
            "branch from a run at constant rate (--decay-steps 0) instead"
        )
    if step > args.steps - args.decay_steps:
        raise UserError(
            f"a decay over the last {args.decay_steps} of {args.steps} steps would have begun before step {step}, "
            f"where {run} stands: give --steps {step + args.decay_steps} or more, or a smaller --decay-steps"
        )
