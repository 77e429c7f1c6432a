"""Measured results: one JSON line each, with what is needed to repeat it, and the tables made of them."""

import json
from collections.abc import Callable, Sequence, Set
from pathlib import Path
from statistics import fmean

from filelock import FileLock

from common.errors import UserError
from common.files import canonical_json, write_text
from common.lineage import losses_in_words
from common.sampling import SamplingSettings
from common.stages import STAGES
from common.tables import without_empty_columns

CHOOSING_SEED = 1000
"""The sampling seed by whose FID things were chosen; a mean over other seeds is what a choice is worth."""
CIRCUMSTANCES = (
    *("machine", "seconds", "drawing_seconds", "versions"),
    *("guide_training_flop", "guide_parameters", "training_runs", "init_sha256"),
)
"""Keys that are ignored when it is checked whether a measurement is recorded already."""
NEEDED = {
    *("name", "stage", "checkpoint", "guide", "guide_scale", "solver", "num_steps", "guidance_scale"),
    *("guidance_interval", "seed", "nfe", "classes", "batch_size", "device", "arithmetic", "machine"),
    *("fid", "kid", "precision", "recall", "inception_score"),
    *("training_flop", "drawing_seconds", "training_runs", "init_sha256"),
    *("num_samples", "reference", "reference_sha256", "reference_count", "inception_sha256", "versions"),
}
"""What a line must say for the tables and curves."""
NEEDED_OF_OPINIONS = {
    *("stage", "name", "checkpoint", "guide", "guide_scale", "solver", "num_steps", "guidance_scale"),
    *("guidance_interval", "training_flop", "training_runs", "num_samples", "seed", "judge", "machine", "arithmetic"),
    *("frechet_distance", "closer_than_real", "held_out_error", "real", "feature_networks_flop"),
}
"""The same of `benchmarks/second_opinion.py`."""


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
    with FileLock(f"{path}.lock"):  # another measurement may end at the same moment
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


def latest_by_seed(results: Sequence[dict]) -> list[dict]:
    """The last result of a model by each sampling seed: the same samples measured elsewhere are no others."""
    return list({(result["checkpoint"], result["guide"], result["seed"]): result for result in results}.values())


def mean_fid(results: Sequence[dict]) -> float:
    """Over sampling seeds."""
    return fmean(result["fid"] for result in latest_by_seed(results))


def name_of(result: dict) -> str:
    """What was measured, for a table: a stage of this project, or the name of a folder or file."""
    return STAGES[result["stage"]].label if result["stage"] else result["name"]


def short_id(sha256: str | None) -> str:
    """The start of a checkpoint's hash, for a table; of nothing, nothing."""
    return f"`{sha256[:8]}`" if sha256 else ""


def last_losses_of(result: dict) -> str:
    """What the last training run of a student added up; of a teacher nothing."""
    return losses_in_words(result["training_runs"][-1]) if result["training_runs"] else ""


def run_of(result: dict) -> str:
    """How a teacher was run; a student is its own way to run."""
    if result["stage"] is None:
        return ""
    names = ("solver", "num_steps", "guidance_scale", "guidance_interval", "guide_scale")
    return SamplingSettings(**{name: result[name] for name in names if name in result}).describe()


def way_of(line: dict) -> tuple[str, str | None, str]:
    """Which model was run, and how: the same for a result, a second opinion and a cost."""
    return line["checkpoint"], line["guide"], run_of(line)


def comparable_groups(results: Sequence[dict]) -> list[list[dict]]:
    """The results with one sample count, reference and Inception together: FID at different counts does not compare.

    The most samples first.
    """
    groups: dict[tuple, list[dict]] = {}
    for result in results:
        key = tuple(result[name] for name in ("num_samples", "reference_sha256", "inception_sha256"))
        key = (*key, canonical_json(result["classes"]))
        groups.setdefault(key, []).append(result)
    return sorted(groups.values(), key=lambda group: -group[0]["num_samples"])


def group_title(group: Sequence[dict]) -> str:
    first = group[0]
    images = f" ({first['reference_count']:,} images)" if first["reference_count"] else ""
    classes = f" of {', '.join(first['classes'])}" if first["classes"] else ""
    return f"{first['num_samples']:,} samples{classes} against {first['reference']}{images}"


def in_reading_order(group: Sequence[dict]) -> list[dict]:
    """Teacher first, many network calls first. For results of this project's models."""
    return sorted(group, key=lambda result: (list(STAGES).index(result["stage"]), -result["nfe"], result["seed"]))


def machine_of(result: dict) -> str:
    return f"{result['machine']}, {result['arithmetic']}"


def machines_of(group: Sequence[dict]) -> str:
    """What the group was measured on."""
    return "; ".join(sorted(set(map(machine_of, group))))


def measured_on(group: Sequence[dict]) -> str:
    """A sentence, where `table_of` the group does not say it of each row."""
    machines = set(map(machine_of, group))
    return f"Measured on: {machines.pop()}." if len(machines) == 1 else ""


def table_of(
    group: Sequence[dict], with_times: bool = False, with_ids: bool = False, with_losses: bool = False
) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """A header, and a row for each result. What was measured of none has no column; of some, empty cells.

    `with_ids`: also the start of each model's hash. `with_losses`: also the losses of a student's last training run.
    `with_times`: also how long an image took, where all results are of one machine and arithmetic: others would not
    compare. What else the machine did meanwhile is not on record (`benchmarks/model_cost.py` is for that).
    """
    on_one_machine = len(set(map(machine_of, group))) == 1
    wanted = {
        TIME_COLUMN: with_times and on_one_machine,
        MACHINE_COLUMN: not on_one_machine,
        LOSSES_COLUMN: with_losses,
        ID_COLUMN: with_ids,
    }
    columns = {title: show for title, show in COLUMNS.items() if wanted.get(title, True)}
    return without_empty_columns(columns, [[show(result) for show in columns.values()] for result in group])


def milliseconds_per_image(result: dict) -> float | None:
    """Of drawing it, in batches of `batch_size`; None for images that no model drew here, and in early lines."""
    if result["stage"] is None or result["drawing_seconds"] is None:
        return None
    return 1000 * result["drawing_seconds"] / result["num_samples"]


def _number(value: float | None, digits: int, scale: float = 1) -> str:
    return "" if value is None else f"{scale * value:.{digits}f}"


TIME_COLUMN, MACHINE_COLUMN = "ms an image", "measured on"
ID_COLUMN, LOSSES_COLUMN = "id", "losses of its last run"
COLUMNS: dict[str, Callable[[dict], str]] = {
    "model": name_of,
    ID_COLUMN: lambda result: short_id(result["checkpoint"]),
    LOSSES_COLUMN: last_losses_of,
    "training FLOP": lambda result: f"{result['training_flop']:.3g}" if result["training_flop"] else "",
    "run": run_of,
    "NFE": lambda result: f"{result['nfe']:g}" if result["nfe"] else "",
    TIME_COLUMN: lambda result: _number(milliseconds_per_image(result), 1),
    "FID": lambda result: _number(result["fid"], 2),
    "KID x 1000": lambda result: _number(result["kid"], 2, scale=1000),
    "precision": lambda result: _number(result["precision"], 3),
    "recall": lambda result: _number(result["recall"], 3),
    "Inception Score": lambda result: _number(result["inception_score"], 2),
    "seed": lambda result: "" if result["seed"] is None else str(result["seed"]),
    MACHINE_COLUMN: machine_of,
}
"""Of `table_of`: how each column shows a result."""
