"""FID as a curve, over what an image or a model costs."""

import io
from collections.abc import Sequence
from itertools import chain, count
from math import nan

from common.files import canonical_json
from common.lineage import losses_in_words
from common.results import group_title, mean_fid, name_of, run_of

MARKERS, LINE_STYLES = "osD^vPX", ("-", "--", ":", "-.")
AXES = {
    "nfe": "network calls behind an image (NFE)",
    "training_flop": "training FLOP",
    "finishing_flop": "training FLOP of finishing",
}
Points = list[tuple[float, float]]
GAP = (nan, nan)
"""Between the pieces of a line."""


def curve_series(group: Sequence[dict], axis: str = "nfe") -> dict[str, Points]:
    """The lines of `fid_curve` by their labels, each of a model or a way of running it: points (`axis`, FID).

    FID is the mean over sampling seeds. Over training FLOP, a way of running that only one model was measured by says
    nothing and is left out. Over finishing FLOP a line is of students that were finished by the same losses, with a
    piece from each one's start to itself, and `GAP` between the pieces.
    """
    if axis == "finishing_flop":
        return _series_of_finished(group)
    # Every teacher may have a guide of its own: over training FLOP it counts how strongly each is guided by it.
    constant = {"nfe": ("checkpoint", "guide"), "training_flop": ("num_steps",)}[axis]
    series: dict[str, list[dict]] = {}
    for result in group:
        if result["fid"] is None:  # KID alone was asked for
            continue
        names = ("stage", "solver", "guidance_scale", "guidance_interval", "guide_scale", *constant)
        key = tuple(result[name] for name in names)
        series.setdefault(canonical_json(key), []).append(result)
    labelled: dict[str, Points] = {}
    for results in series.values():
        at: dict[float, list[dict]] = {}
        for result in results:
            at.setdefault(result[axis], []).append(result)
        points = sorted((place, mean_fid(measured)) for place, measured in at.items())
        if axis == "nfe" or len(points) > 1:
            label = _series_label(results, axis)
            numbered = chain([label], (f"{label} [{number}]" for number in count(2)))
            labelled[next(name for name in numbered if name not in labelled)] = points  # of two students, say
    return labelled


def _series_of_finished(group: Sequence[dict]) -> dict[str, Points]:
    students: dict[tuple, list[dict]] = {}
    for result in group:
        if result["stage"] in ("one_step", "four_step") and result["fid"] is not None:
            students.setdefault((result["stage"], result["checkpoint"]), []).append(result)

    def start_of(student: dict) -> tuple:
        return student["stage"], student["init_sha256"]

    def was_finished(student: dict) -> bool:
        """By a critic, from a start that was measured, too."""
        return start_of(student) in students and student["training_runs"][-1]["critic"] is not None

    def place(student: dict) -> tuple[float, float]:
        """FLOP since the first that was not finished; FID, as the mean over what was measured of it."""
        flop, first = 0.0, student
        while was_finished(first):
            start = students[start_of(first)][0]
            flop, first = flop + first["training_flop"] - start["training_flop"], start
        return flop, mean_fid(students[student["stage"], student["checkpoint"]])

    pieces: dict[str, list[Points]] = {}
    for student, *_ in students.values():
        if was_finished(student):
            label = f"{name_of(student)}, {losses_in_words(student['training_runs'][-1])}"
            pieces.setdefault(label, []).append([place(students[start_of(student)][0]), place(student)])
    return {label: [point for piece in sorted(of) for point in (GAP, *piece)][1:] for label, of in pieces.items()}


def fid_curve(group: Sequence[dict], axis: str = "nfe") -> bytes:
    """FID over one of `AXES` as a PNG: a line for each model and way of running it, or a lone marker.

    The file's description is what was drawn, as JSON.

    Readable without colour: each series has a marker and a line style of its own, each point its value.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, ScalarFormatter

    series = curve_series(group, axis)
    longest = max(map(len, series))
    wide = longest > 40  # two columns of such labels need the room
    figure = Figure(figsize=(10.4 if wide else 7.6, 4.8), layout="constrained")
    axes, annotated = figure.subplots(), {GAP}
    for index, (label, points) in enumerate(series.items()):
        style = {"linestyle": LINE_STYLES[index % len(LINE_STYLES)] if len(points) > 1 else "none", "markersize": 8}
        axes.plot(*zip(*points, strict=True), marker=MARKERS[index % len(MARKERS)], label=label, **style)
        # Over network calls lines fall steeply: values stand above. Over training FLOP two lines may be close.
        above = axis != "training_flop" or index % 2 == 0
        for point in points:
            if point not in annotated:
                place = {"xytext": (7, 5) if above else (7, -13), "textcoords": "offset points"}
                axes.annotate(f"{point[1]:.1f}", point, fontsize=9, **place)
                annotated.add(point)
    axes.set(yscale="log", title=group_title(group), xlabel=AXES[axis], ylabel="FID (lower is better)")
    if axis == "nfe":
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    elif axis == "training_flop":
        axes.set_xscale("log")
        axes.set_xticks(sorted({flop for points in series.values() for flop, _ in points}))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.2g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(x=0.1, y=0.12)
    axes.yaxis.set_major_formatter(ScalarFormatter())
    lowest, highest = axes.get_ylim()
    if highest > 20 * lowest:  # every minor tick would have its number, one over the other
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.yaxis.set_minor_formatter(ScalarFormatter())
    axes.grid(alpha=0.3, axis="y", which="both")
    axes.grid(alpha=0.3, axis="x")
    figure.legend(loc="outside lower center", ncols=2 if longest < 60 else 1)  # where it covers no point
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130, metadata={"Description": _description(series)})
    return buffer.getvalue()


def _description(series: dict[str, Points]) -> str:
    """JSON has no value for the coordinates of a gap."""
    return canonical_json({label: [None if point is GAP else point for point in of] for label, of in series.items()})


def _series_label(results: Sequence[dict], axis: str) -> str:
    first = results[0]
    if first["stage"] in (None, "one_step", "four_step"):
        return name_of(first)
    if axis == "training_flop" or len(results) == 1:
        return f"{name_of(first)}, {run_of(first)}"
    guided = run_of(first).partition(", ")[2]
    return ", ".join(filter(None, (name_of(first), first["solver"], guided)))
