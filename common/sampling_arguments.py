"""The command line of everything that draws from models: solver, guidance, the models themselves, their classes."""

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from common.checkpoint import GUIDE_NAME, Checkpoint, guide_beside, load_checkpoint
from common.command_line import COUNT, FRACTION, bounded
from common.device import Precision, choose_device, choose_precision
from common.errors import UserError
from common.sampling import AUTOGUIDED, SamplingSettings
from common.solvers import SOLVERS


def add_sampling_arguments(parser: argparse.ArgumentParser, solvers: Iterable[str] = SOLVERS) -> None:
    """What is not given on the command line stays None, for `sampling_settings` to fill in."""
    group = parser.add_argument_group("sampling from the teacher")
    adaptive = ", dopri5 chooses its own steps and runs in fp32" if "dopri5" in solvers else ""
    group.add_argument("--solver", choices=solvers, help=f"solver of the ODE{adaptive} (default: adams)")
    group.add_argument("--num-steps", type=COUNT, help="steps of the solver (default: 20)")
    add_guidance_arguments(parser)


def add_classes_argument(parser: argparse.ArgumentParser, otherwise: str = "all, each as often") -> None:
    """For `chosen_classes`; `otherwise` says what is drawn without."""
    parser.add_argument(
        "--classes", nargs="+", metavar="CLASS", help=f"names or numbers, in turn (default: {otherwise})"
    )


def add_guidance_arguments(parser: argparse.ArgumentParser) -> None:
    """What `add_sampling_arguments` adds beside the solver's."""
    group = parser.add_argument_group("guidance of the teacher")
    group.add_argument(
        "--guidance-scale",
        type=bounded(float, low=0),
        help="classifier-free guidance, 1 is none (default: 1 with a guide or --guide-scale; else 2 for a teacher "
        "of several classes, trained on images with label dropout)",
    )
    group.add_argument(
        "--guidance-interval",
        type=FRACTION,
        nargs=2,
        metavar=("FROM", "TO"),
        help="the times t (0 noise, 1 data) at which guidance of either kind is applied (default: 0.1 0.8)",
    )
    group.add_argument(
        "--guide",
        type=Path,
        help="a weaker checkpoint, such as an early snapshot: autoguidance by it (default: "
        f"{GUIDE_NAME} beside the teacher, if there is one, but not for --guidance-scale alone)",
    )
    group.add_argument(
        "--guide-scale",
        type=bounded(float, low=0),
        help="autoguidance, 1 is none (default: 2 with a guide)",
    )


def sampling_precision(args: argparse.Namespace) -> Precision:
    """The device and precision of a script that draws images: with `--solver dopri5` always fp32.

    Its tolerance lies below the rounding of bf16, in which it would take many more steps.
    Raises UserError for bf16 with dopri5, and for a device that is missing.
    """
    if args.solver == "dopri5" and args.precision == "bf16":
        raise UserError("dopri5 needs --precision fp32: bf16 rounds more coarsely than its tolerance")
    return choose_precision("fp32" if args.solver == "dopri5" else args.precision, choose_device(args.device))


def load_guided(path: Path, args: argparse.Namespace, device: torch.device) -> Checkpoint:
    """The model in a file; a teacher with the `--guide` or, unless guidance without one is asked for, that beside it.

    With `--guide-scale 1` it has none, since that would never be asked. Raises UserError for a `--guide` that is not
    used, or does not make the same kind of image; one beside the teacher is passed over.
    """
    if args.guide and args.guide_scale == 1:
        raise UserError("--guide-scale 1 is without a guide: leave out --guide")
    checkpoint = load_checkpoint(path, device)
    if checkpoint.is_student or args.guide_scale == 1:
        return checkpoint
    if args.guide:
        return checkpoint.guided_by(load_checkpoint(args.guide, device))
    beside = guide_beside(path)
    if beside and (args.guidance_scale is None or args.guide_scale is not None):
        guide = load_checkpoint(beside, device)
        return checkpoint.guided_by(guide) if checkpoint.can_be_guided_by(guide) else checkpoint
    return checkpoint


def load_teacher(path: Path, args: argparse.Namespace, device: torch.device, otherwise: str) -> Checkpoint:
    """A teacher as by `load_guided`. Raises UserError for a student, which says `otherwise` what is wrong with it."""
    checkpoint = load_guided(path, args, device)
    if checkpoint.is_student:
        raise UserError(f"{path} is a {checkpoint.stage} student: {otherwise}")
    return checkpoint


def sampling_settings(
    args: argparse.Namespace, checkpoints: Sequence[Checkpoint], bases: Sequence[SamplingSettings] | None = None
) -> list[SamplingSettings]:
    """How to draw from each of the models: its own settings, or those of `bases`, changed by the command line.

    A student has settings that nothing changes. Raises UserError for what none of the models can be told, and for
    guidance that one of them cannot do.
    """
    if checkpoints and sampling_was_asked_for(args) and all(checkpoint.is_student for checkpoint in checkpoints):
        first = checkpoints[0]
        raise UserError(
            f"{first.path} is a {first.stage} student, which is always run as {first.settings.describe()}: solver, "
            "steps and guidance can be set for teachers alone"
        )
    bases = bases or [checkpoint.settings for checkpoint in checkpoints]
    settings = [_settings_of(args, checkpoint, base) for checkpoint, base in zip(checkpoints, bases, strict=True)]
    if checkpoints and args.guidance_interval and not any(each.is_guided for each in settings):
        raise UserError("--guidance-interval needs guidance (--guide or --guidance-scale), and there is none")
    return settings


def _settings_of(args: argparse.Namespace, checkpoint: Checkpoint, base: SamplingSettings) -> SamplingSettings:
    """`base`, changed by the command line; a student's own."""
    if checkpoint.is_student:
        return checkpoint.settings
    names = ("solver", "num_steps", "guidance_scale", "guidance_interval", "guide_scale")
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    usual = {}
    if not checkpoint.guide:
        if given.get("guide_scale", 1) != 1:
            raise UserError("--guide-scale needs a --guide")
        usual["guide_scale"] = 1.0
        if args.guide_scale == 1:
            usual["guidance_scale"] = 1.0
    elif not base.needs_guide:
        usual = {"guidance_scale": 1.0, "guide_scale": AUTOGUIDED.guide_scale}
    if not checkpoint.supports_guidance:
        if given.get("guidance_scale", 1) != 1:
            raise UserError(f"{checkpoint.path} was not trained with label dropout: it can only do --guidance-scale 1")
        usual["guidance_scale"] = 1.0
    settings = replace(base, **(usual | given))
    if settings.solver == "dopri5" and args.num_steps is not None:
        raise UserError("dopri5 chooses its own steps: leave out --num-steps")
    return settings


def sampling_was_asked_for(args: argparse.Namespace) -> bool:
    """Whether any setting of `add_sampling_arguments` was given."""
    names = ("solver", "num_steps", "guidance_scale", "guidance_interval", "guide", "guide_scale")
    return any(getattr(args, name) is not None for name in names)


def guidance_was_asked_for(args: argparse.Namespace) -> bool:
    """Whether a scale of guidance was given."""
    return args.guidance_scale is not None or args.guide_scale is not None


def chosen_classes(names: Sequence[str] | None, checkpoint: Checkpoint) -> list[int]:
    """Class numbers for `--classes`: all of the model's by default, none for an unconditional model.

    Raises UserError for a class that the model does not have.
    """
    if names is None:
        return list(range(len(checkpoint.class_names)))
    if not checkpoint.class_names:
        raise UserError(f"{checkpoint.path} is unconditional: it has no classes to choose from")
    numbers = {str(number): number for number in range(len(checkpoint.class_names))}
    numbers.update({name: number for number, name in enumerate(checkpoint.class_names)})  # a name wins over a number
    unknown = [name for name in names if name not in numbers]
    if unknown:
        known = ", ".join(checkpoint.class_names)
        raise UserError(f"{checkpoint.path} has no class {unknown[0]!r}: choose from {known}")
    return [numbers[name] for name in names]
