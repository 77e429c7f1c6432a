"""What every script's command line shares: argument types with bounds, one-line errors, orderly exits."""

import argparse
import signal
import sys
from collections.abc import Callable, Iterable
from typing import NoReturn

from common.device import PRECISIONS
from common.errors import UserError
from common.memory import is_lack_of_memory, keep_freed_memory


class ArgumentParser(argparse.ArgumentParser):
    """Shows every default in `--help`, and says what is wrong with an argument in one line, without the usage."""

    def __init__(self, description: str):
        super().__init__(description=description, formatter_class=HelpFormatter, allow_abbrev=False)
        self.checks: list[Callable[[argparse.Namespace], None]] = []
        """Called with the arguments that were parsed; each raises UserError where they do not go together."""

    def parse_args(self, *args, **options) -> argparse.Namespace:
        arguments = super().parse_args(*args, **options)
        for check in self.checks:
            check(arguments)
        return arguments

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the line breaks of the description and adds the defaults to the arguments."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        # "(default: None)" or "[]" says nothing: those arguments say in their own words what happens without them.
        empty = action.default is None or action.default is False or action.default in ([], {})
        if isinstance(action.default, list | tuple) and not empty:
            return f"{action.help} (default: {' '.join(map(str, action.default))})"
        return action.help if empty else super()._get_help_string(action)


def run(main: Callable[[], int | None]) -> NoReturn:
    """Runs a script's `main` and exits: 0 or what it returned, 1 with one line for bad input, 130 or 143 when stopped.

    SIGTERM unwinds like Ctrl-C, so that temporary files are removed; training loops install handlers of their own.
    """
    signal.signal(signal.SIGTERM, _exit_when_terminated)
    keep_freed_memory()
    try:
        sys.exit(main())
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except (MemoryError, RuntimeError) as error:
        if not is_lack_of_memory(error):
            raise
        print("error: not enough memory: ask for less at once (--batch-size, where there is one)", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)


def _exit_when_terminated(signal_number: int, frame) -> NoReturn:
    signal.signal(signal_number, signal.SIG_IGN)  # make and the shell may send one each
    sys.exit(128 + signal_number)


def bounded(
    kind: type,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> Callable:
    """An argparse type: a finite number of `kind` with low <= value <= high and above < value < below."""

    def parse(text: str):
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not {'a whole' if kind is int else 'a'} number") from None
        if not float("-inf") < value < float("inf"):
            raise argparse.ArgumentTypeError(f"{text!r} is not finite")
        if (low is not None and value < low) or (high is not None and value > high):
            raise argparse.ArgumentTypeError(f"{text} is not {_range_in_words(low, high)}")
        if above is not None and value <= above:
            raise argparse.ArgumentTypeError(f"{text} is not greater than {above}")
        if below is not None and value >= below:
            raise argparse.ArgumentTypeError(f"{text} is not less than {below}")
        return value

    return parse


def _range_in_words(low: float | None, high: float | None) -> str:
    if high is None:
        return f"at least {low}"
    return f"at most {high}" if low is None else f"between {low} and {high}"


COUNT = bounded(int, low=1)
COUNT_OR_ZERO = bounded(int, low=0)
SEED = bounded(int, low=0, high=2**32 - 1)
"""One word of `derive_seed`: of a larger number the second word would stand where a block or a step stands."""
POSITIVE = bounded(float, above=0)
FRACTION = bounded(float, low=0, high=1)
INNER_TIME = bounded(float, above=0, below=1)


def peek_preset(presets: Iterable[str], default: str) -> str:
    """The `--preset` on the command line, looked at first because the other defaults depend on it.

    An unknown name gives `default`; the full parser then refuses it.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--preset", nargs="?", default=default)
    preset = parser.parse_known_args()[0].preset
    return preset if preset in presets else default


def add_device_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("machine")
    group.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    group.add_argument(
        "--precision",
        default="auto",
        choices=PRECISIONS,
        help="auto is bf16 where the hardware is faster at it, else fp32",
    )
