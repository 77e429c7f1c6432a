"""Measured results: one JSON line each, with what is needed to repeat it, and the tables and figures made of them."""

import io
import json
from collections.abc import Callable, Sequence, Set
from pathlib import Path

from common.errors import UserError
from common.files import canonical_json, folder_to_oneself, write_text
from common.sampling import SamplingSettings

STAGE_NAMES = {"teacher": "teacher", "four_step": "four-step student", "one_step": "one-step student"}
CIRCUMSTANCES = ("machine", "seconds", "drawing_seconds", "versions", "guide_training_flop", "guide_parameters", "legs")
"""What may differ between two lines about the same measurement, or follows from its files and is not in early lines."""
NEEDED = {
    *("name", "stage", "checkpoint", "solver", "num_steps", "guidance_scale", "guidance_interval", "seed", "nfe"),
    *("classes", "batch_size", "arithmetic", "machine", "fid", "kid", "precision", "recall", "training_flop"),
    *("num_samples", "reference", "reference_sha256", "reference_count", "inception_sha256"),
}
"""What a line must say for the tables and figures."""
NEEDED_OF_OPINIONS = {
    *("stage", "name", "checkpoint", "solver", "num_steps", "training_flop", "legs", "num_samples", "seed", "judge"),
    *("frechet_distance", "closer_than_real", "held_out_error", "real", "feature_networks_flop"),
}
"""The same of `benchmarks/second_opinion.py`."""
NEEDED_OF_RATES = {"preset", "batch_size", "optimizer", "arithmetic", "machine", "flop_per_second", "images_per_second"}
"""The same of `benchmarks/training_rate.py`."""
MARKERS, LINE_STYLES = "osD^vPX", ("-", "--", ":", "-.")


def read_results(path: Path, needed: Set[str] = NEEDED) -> list[dict]:
    """The results in a JSON-lines file; none without the file. Raises UserError for a line without what is `needed`."""
    if not path.exists():
        return []
    results = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise UserError(f"{path} is not a file of results") from None
    for number, line in enumerate(lines, start=1):
        try:
            result = json.loads(line)
        except ValueError:
            result = None
        if not isinstance(result, dict) or not result.keys() >= needed:
            raise UserError(f"line {number} of {path} is not a result of this project")
        results.append(result)
    return results


def append_result(path: Path, result: dict, needed: Set[str] = NEEDED) -> bool:
    """Adds a line, atomically; returns False where the same measurement with the same outcome is there already."""
    with folder_to_oneself(path.parent, wait=True):
        known = {_measurement(other) for other in read_results(path, needed)}
        if _measurement(result) in known:
            return False
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        if text and not text.endswith("\n"):  # an editor took the last newline away
            text += "\n"
        write_text(path, text + json.dumps(result) + "\n")
    return True


def _measurement(result: dict) -> str:
    return canonical_json({key: value for key, value in result.items() if key not in CIRCUMSTANCES})


def name_of(result: dict) -> str:
    """What was measured, for a table: a stage of this project, or the name of a folder or file."""
    return STAGE_NAMES.get(result["stage"], result["name"])


def run_of(result: dict) -> str:
    """How a teacher was run; a student is its own way to run."""
    if result["stage"] is None:
        return ""
    names = ("solver", "num_steps", "guidance_scale", "guidance_interval", "guide_scale", "step_times")
    return SamplingSettings(**{name: result[name] for name in names if name in result}).describe()


def comparable_groups(results: Sequence[dict]) -> list[list[dict]]:
    """The results with one sample count, reference and Inception together: FID at different counts does not compare."""
    groups: dict[tuple, list[dict]] = {}
    for result in results:
        key = tuple(result[name] for name in ("num_samples", "reference_sha256", "inception_sha256"))
        key = (*key, canonical_json(result["classes"]))
        groups.setdefault(key, []).append(result)
    return list(groups.values())


def group_title(group: Sequence[dict]) -> str:
    first = group[0]
    images = f" ({first['reference_count']:,} images)" if first["reference_count"] else ""
    classes = f" of {', '.join(first['classes'])}" if first["classes"] else ""
    return f"{first['num_samples']:,} samples{classes} against {first['reference']}{images}"


def in_reading_order(group: Sequence[dict]) -> list[dict]:
    """Teacher first, many network calls first. For results of this project's models."""
    return sorted(group, key=lambda result: (list(STAGE_NAMES).index(result["stage"]), -result["nfe"], result["seed"]))


def machines_of(group: Sequence[dict]) -> str:
    """What the group was measured on."""
    return "; ".join(sorted({f"{result['machine']}, {result['arithmetic']}" for result in group}))


def table_of(group: Sequence[dict]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """A header, and a row for each result. What was measured of none has no column; of some, empty cells."""
    columns = {title: [show(result) for result in group] for title, show in COLUMNS.items()}
    columns = {title: cells for title, cells in columns.items() if any(cells)}
    return tuple(columns), list(zip(*columns.values(), strict=True))


def milliseconds_per_image(result: dict) -> float | None:
    """Of drawing it, in batches of `batch_size`; None for images that no model drew here, and in early lines."""
    if result["stage"] is None or result.get("drawing_seconds") is None:
        return None
    return 1000 * result["drawing_seconds"] / result["num_samples"]


def _number(value: float | None, digits: int, scale: float = 1) -> str:
    return "" if value is None else f"{scale * value:.{digits}f}"


COLUMNS: dict[str, Callable[[dict], str]] = {
    "model": name_of,
    "training FLOP": lambda result: f"{result['training_flop']:.3g}" if result["training_flop"] else "",
    "run": run_of,
    "NFE": lambda result: f"{result['nfe']:g}" if result["nfe"] else "",
    "ms an image": lambda result: _number(milliseconds_per_image(result), 1),
    "FID": lambda result: _number(result["fid"], 2),
    "KID x 1000": lambda result: _number(result["kid"], 2, scale=1000),
    "precision": lambda result: _number(result["precision"], 3),
    "recall": lambda result: _number(result["recall"], 3),
    "seed": lambda result: "" if result["seed"] is None else str(result["seed"]),
}
"""Of `table_of`: how each column shows a result."""


def curve_series(group: Sequence[dict], axis: str = "nfe") -> dict[str, list[tuple[float, float]]]:
    """The lines of `fid_curve` by their labels, each of a model or a way of running it: points (`axis`, FID).

    Over training FLOP, a way of running that only one model was measured by says nothing and is left out.
    """
    constant = {"nfe": "checkpoint", "training_flop": "num_steps"}[axis]
    series: dict[str, list[dict]] = {}
    for result in group:
        if result["fid"] is None:  # KID alone was asked for
            continue
        names = ("stage", "solver", "guidance_scale", "guidance_interval", "guide", "guide_scale", "seed", constant)
        key = tuple(result.get(name) for name in names)
        series.setdefault(canonical_json(key), []).append(result)
    labelled: dict[str, list[tuple[float, float]]] = {}
    for results in series.values():
        points = sorted((result[axis], result["fid"]) for result in results)
        if axis == "nfe" or len(points) > 1:
            label = _series_label(results, axis)
            same = sum(other.partition(" [")[0] == label for other in labelled)  # of two students, say
            labelled[f"{label} [{same + 1}]" if same else label] = points
    return labelled


def fid_curve(group: Sequence[dict], axis: str = "nfe") -> bytes:
    """FID over `nfe` or `training_flop` as a PNG: a line for each model and way of running it, or a lone marker.

    Readable without colour: each series has a marker and a line style of its own, each point its value.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, NullFormatter, ScalarFormatter

    figure = Figure(figsize=(7.6, 4.8), layout="constrained")
    axes = figure.subplots()
    for index, (label, points) in enumerate(curve_series(group, axis).items()):
        style = {"linestyle": LINE_STYLES[index % len(LINE_STYLES)] if len(points) > 1 else "none", "markersize": 8}
        axes.plot(*zip(*points, strict=True), marker=MARKERS[index % len(MARKERS)], label=label, **style)
        above = index % 2 == 0  # so that the values of two lines that are close do not cover each other
        for point in points:
            place = {"xytext": (7, 5) if above else (7, -13), "textcoords": "offset points"}
            axes.annotate(f"{point[1]:.1f}", point, fontsize=9, **place)
    axes.set(xscale="log", yscale="log", title=group_title(group), ylabel="FID (lower is better)")
    axes.set_xlabel({"nfe": "network calls behind an image (NFE)", "training_flop": "training FLOP"}[axis])
    if axis == "nfe":
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    else:
        axes.set_xticks(sorted({result[axis] for result in group}))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.2g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_minor_formatter(ScalarFormatter())
    axes.margins(x=0.1, y=0.12)
    axes.grid(alpha=0.3, axis="y", which="both")
    axes.grid(alpha=0.3, axis="x")
    figure.legend(loc="outside lower center", ncols=2)  # where it covers no point
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()


def _series_label(results: Sequence[dict], axis: str) -> str:
    first = results[0]
    if first["stage"] in (None, "one_step", "four_step"):
        return ", ".join(filter(None, (name_of(first), run_of(first) if first.get("step_times") else "")))
    if axis == "training_flop" or len(results) == 1:
        return f"{name_of(first)}, {run_of(first)}"
    guided = run_of(first).partition(", ")[2]
    return ", ".join(filter(None, (name_of(first), first["solver"], guided)))
