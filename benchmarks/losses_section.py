"""The section of docs/results.md that compares students by the losses that trained them."""

from collections.abc import Sequence

from common.errors import UserError
from common.lineage import losses_in_words
from common.results import machines_of, name_of, run_of
from common.stages import STAGES
from common.tables import markdown_table, without_empty_columns

TITLE = "## Students by their losses"
NOTES = """FID, KID, precision and recall as above, of as many samples as the column says. *MSE* is against the
teacher's images from the same noise, on held-out pairs; *features' FLOP* the training of the networks in the losses,
once for all students. The last two columns are a second opinion (`benchmarks/second_opinion.py`, {num_samples:,}
samples, seed {seed}), in the features of a classifier of the same images that is part of no loss: the Fréchet distance
to the images that were held out from all training ({distance:.3f} for {count:,} of the training images, which the
classifier has seen), and the share of samples that lie closer to a training image than other training images do
({closer:.1%} of the held-out images). A finished student is compared by them with the student that it began as."""
HEADER = (
    *("model", "losses", "training FLOP", "features' FLOP", "samples", "FID", "KID x 1000", "precision", "recall"),
    *("MSE", "distance to held-out", "closer than real"),
)
SAME = ("checkpoint", "guide", "solver", "num_steps", "guidance_scale", "guidance_interval")
"""What a line of either kind says of how images were drawn; beside them `guide_scale`, which early lines lack."""


def losses_section(results: Sequence[dict], opinions: Sequence[dict]) -> str:
    """`results`: lines of `compute_fid.py`, of which each opinion takes that of the most samples.

    `opinions`: lines of `benchmarks/second_opinion.py`, at least one. Raises UserError where these, or the FIDs beside
    them, do not compare.
    """
    measured = [_measured(opinion, results) for opinion in opinions]
    fids = [result for result in measured if result]
    for lines, names in ((opinions, ("judge", "num_samples", "seed")), (fids, ("reference", "inception_sha256"))):
        if len({tuple(line[name] for name in names) for line in lines}) > 1:
            raise UserError(f"the students' results differ in {' or '.join(names)}: they make no table")
    first = opinions[0]
    real = first["real"]
    notes = NOTES.format(
        num_samples=first["num_samples"],
        seed=first["seed"],
        distance=real["frechet_distance"],
        count=real["count"],
        closer=real["closer_than_real"],
    )
    stages = list(STAGES)
    ordered = sorted(
        zip(opinions, measured, strict=True),
        key=lambda pair: (stages.index(pair[0]["stage"]), pair[0]["training_flop"]),
    )
    rows = [_row(opinion, result) for opinion, result in ordered]
    table = markdown_table(*without_empty_columns(HEADER, rows))
    return f"{TITLE}\n\n{notes}\n\n{table}\n\nThe second opinions were given on: {machines_of(opinions)}."


def _measured(opinion: dict, results: Sequence[dict]) -> dict:
    same = [
        result
        for result in results
        if all(result[name] == opinion[name] for name in SAME)
        and result.get("guide_scale", 1.0) == opinion["guide_scale"]
        and result["classes"] is None
        and result["fid"] is not None
    ]
    return max(same, key=lambda result: result["num_samples"], default={})


def _row(opinion: dict, measured: dict) -> tuple[str, ...]:
    is_teacher = opinion["stage"] == "teacher"
    return (
        f"{name_of(opinion)}, {run_of(opinion)}" if is_teacher else name_of(opinion),
        "; then ".join(map(losses_in_words, opinion["training_runs"])),
        f"{opinion['training_flop']:.3g}",
        _figure(opinion["feature_networks_flop"] or None, ".3g"),
        _figure(measured.get("num_samples"), ","),
        _figure(measured.get("fid"), ".2f"),
        _figure(measured.get("kid") and 1000 * measured["kid"], ".2f"),
        _figure(measured.get("precision"), ".3f"),
        _figure(measured.get("recall"), ".3f"),
        _figure(opinion["held_out_error"], ".4f"),
        f"{opinion['frechet_distance']:.3f}",
        f"{opinion['closer_than_real']:.1%}",
    )


def _figure(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
