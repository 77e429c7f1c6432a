"""The section of docs/results.md that shows by which settings a teacher's guidance was chosen."""

from collections.abc import Sequence

from common.errors import UserError
from common.results import NEEDED, machines_of, run_of
from common.tables import markdown_table

TITLE = "## Choosing the guidance"
NOTES = """{count} settings, from [guidance.jsonl](guidance.jsonl): FID of {samples:,} samples against {reference}, by
sampling seed {seed}, of each teacher the lowest first. The best of many settings owes a little to that seed. *guide*
are the FLOP that trained the guide, and its parameters.

Measured on: {machines}."""
HEADER = ("teacher's training FLOP", "run", "guide", "NFE", "FID")
NEEDED_OF_GUIDED = {*NEEDED, "guide", "guide_training_flop", "guide_parameters"}
SAME = ("num_samples", "seed", "reference_sha256", "inception_sha256", "classes")
"""What must be the same in all lines."""


def guidance_section(results: Sequence[dict]) -> str:
    """`results`: at least one line of `compute_fid.py`, all of teachers. Raises UserError where they do not compare."""
    first = results[0]
    if any(result["stage"] != "teacher" for result in results):
        raise UserError("docs/guidance.jsonl holds results of teachers alone")
    if any(result[name] != first[name] for result in results for name in SAME):
        raise UserError(f"the lines of docs/guidance.jsonl differ in one of {', '.join(SAME)}: they make no table")
    notes = NOTES.format(
        count=len(results),
        samples=first["num_samples"],
        reference=first["reference"],
        seed=first["seed"],
        machines=machines_of(results),
    )
    ordered = sorted(results, key=lambda result: (-result["training_flop"], result["checkpoint"], result["fid"]))
    return f"{TITLE}\n\n{notes}\n\n{markdown_table(HEADER, [_row(result) for result in ordered])}"


def _row(result: dict) -> tuple[str, ...]:
    guide = f"{result['guide_training_flop']:.3g}, {result['guide_parameters']:,}" if result["guide"] else ""
    return f"{result['training_flop']:.3g}", run_of(result), guide, f"{result['nfe']:g}", f"{result['fid']:.2f}"
