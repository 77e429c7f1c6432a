"""The section of docs/results.md that says what the shipped models cost."""

from collections.abc import Sequence

from common.results import name_of, run_of
from common.tables import markdown_table

TITLE = "## What an image costs"
NEEDED_OF_COST = {
    *("models", "preset", "training_flop_per_second", "batch_size", "repeats"),
    *("machine", "arithmetic", "versions"),
}
"""What a line of `benchmarks/model_cost.py` must say."""
NOTES = """From [cost.jsonl](cost.jsonl), by `benchmarks/model_cost.py` on {machine}, {arithmetic}, PyTorch {torch}.
*ms alone* is of an image for itself, *ms in a batch* of each of {batch_size} that are drawn together; both are medians
of {repeats}. *GFLOP* counts all networks that are asked. *Hours* are computed, and not those that it took: a model's
training FLOP at the {rate:.0f} GFLOP/s at which a teacher of preset `{preset}` trains there."""


def cost_table(cost: dict) -> str:
    """A row for each model in a line of `benchmarks/model_cost.py`, as Markdown."""
    header = ("model", "run", "NFE", "GFLOP", "ms alone", "ms in a batch", "hours to train there, computed")
    return markdown_table(header, [_row(model, cost["training_flop_per_second"]) for model in cost["models"]])


def complete_cost(costs: Sequence[dict], shipped: Sequence[str]) -> dict | None:
    """The last of the lines that is of all the models of these hashes; None where there is none."""
    complete = [cost for cost in costs if {model["checkpoint"] for model in cost["models"]} == set(shipped)]
    return complete[-1] if complete else None


def cost_section(cost: dict) -> str:
    """`cost`: a line of `benchmarks/model_cost.py`."""
    notes = NOTES.format(
        **{name: cost[name] for name in ("machine", "arithmetic", "batch_size", "repeats", "preset")},
        torch=cost["versions"]["torch"],
        rate=cost["training_flop_per_second"] / 1e9,
    )
    return f"{TITLE}\n\n{notes}\n\n{cost_table(cost)}"


def _row(model: dict, training_flop_per_second: float) -> tuple[str, ...]:
    return (
        name_of(model),
        run_of(model),
        f"{model['nfe']:g}",
        f"{model['flop_per_image'] / 1e9:.2f}",
        f"{model['milliseconds_alone']:.1f}",
        f"{model['milliseconds_in_a_batch']:.1f}",
        f"{model['training_flop'] / training_flop_per_second / 3600:.1f}",
    )
