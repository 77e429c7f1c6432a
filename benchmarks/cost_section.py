"""The section of docs/results.md that says what the shipped models cost."""

from collections.abc import Sequence

from common.results import machines_of, name_of, run_of
from common.tables import markdown_table

TITLE = "## What an image costs"
NEEDED_OF_COST = {
    *("stage", "name", "checkpoint", "guide", "solver", "num_steps", "guidance_scale", "guidance_interval"),
    *("training_flop", "preset", "training_flop_per_second", "machine", "arithmetic"),
    *("nfe", "flop_per_image", "milliseconds_alone", "milliseconds_in_a_batch", "batch_size"),
}
"""What a line of `benchmarks/model_cost.py` must say."""
NOTES = """By `benchmarks/model_cost.py` on {machines}, which did nothing else. *Alone* is an image for itself, *in a
batch* each of {batch_size} that are drawn together; *GFLOP* counts all networks that are asked. *Hours* are computed:
the training FLOP of the table above, at the {rate:.0f} GFLOP/s of training a teacher of preset `{preset}` there."""


def cost_table(costs: Sequence[dict]) -> str:
    """A row for each line of `benchmarks/model_cost.py`, as Markdown."""
    batch_size = costs[0]["batch_size"]
    header = ("model", "run", "NFE", "GFLOP", "ms alone", f"ms in a batch of {batch_size}", "hours of training")
    return markdown_table(header, [_row(cost) for cost in costs])


def cost_section(costs: Sequence[dict], shipped: Sequence[str]) -> str | None:
    """The last line of each of the models of these hashes, in their order; None where one of them has no line.

    Times compare on one machine alone: those count that the last line is of.
    """
    last = {cost["checkpoint"]: cost for cost in costs if _machine(cost) == _machine(costs[-1])}
    if not set(shipped) <= set(last):
        return None
    chosen = [last[sha256] for sha256 in shipped]
    notes = NOTES.format(
        machines=machines_of(chosen),
        batch_size=chosen[0]["batch_size"],
        rate=chosen[0]["training_flop_per_second"] / 1e9,
        preset=chosen[0]["preset"],
    )
    return f"{TITLE}\n\n{notes}\n\n{cost_table(chosen)}"


def _machine(cost: dict) -> tuple[str, ...]:
    return cost["machine"], cost["arithmetic"]


def _row(cost: dict) -> tuple[str, ...]:
    return (
        name_of(cost),
        run_of(cost),
        f"{cost['nfe']:g}",
        f"{cost['flop_per_image'] / 1e9:.2f}",
        f"{cost['milliseconds_alone']:.1f}",
        f"{cost['milliseconds_in_a_batch']:.1f}",
        f"{cost['training_flop'] / cost['training_flop_per_second'] / 3600:.1f}",
    )
