"""The section of docs/results.md that compares students by the losses that trained them."""

from collections.abc import Collection, Sequence
from math import isclose

from common.errors import UserError
from common.results import group_title, last_losses_of, machine_of, machines_of, name_of, run_of, short_id, way_of
from common.stages import STAGES
from common.tables import markdown_table, without_empty_columns

TITLE = "## Students by their losses"
EQUAL_FLOP = """### From one start, for equal FLOP

Each was trained on from the first row's student, for {flop:.2g} FLOP of all networks in the step and, where the Fréchet
distance is a loss, of the real images' features (`benchmarks/loss_comparison.py`)."""
IN_TURN = """### One training run after another

*Began as* names the student that a run went on from."""
SAME_FLOP = 0.02
"""Two runs whose FLOP differ by no more than this share count as equally long."""
OPINION = """A row is of a student after one more training run, by the *losses* of that run. {described}The last
two columns are a second opinion (`benchmarks/second_opinion.py`, {num_samples:,} samples, seed {seed}) in the features
of a classifier of the same images that is part of no loss: the Fréchet distance to the images that were held out from
all training ({distance:.3f} for {count:,} of the training images, which the classifier has seen), and the share of
samples that lie closer to a training image than other training images do ({closer:.1%} of the held-out images). FID,
KID, MSE and both of these are better where they are lower. Such a network may rank a guided teacher and its students
otherwise than FID: the columns are for comparing a finished student with the one that it began as."""
DESCRIPTIONS = {
    "classifiers' FLOP": "*Classifiers' FLOP* trained the networks in the losses, once for all students. ",
    "MSE": "*MSE* is against the teacher's images from the same noise, on held-out pairs. ",
}
"""What is said of a column that there is."""
HEADER = (
    *("model", "id", "began as", "losses", "training FLOP", "classifiers' FLOP", "FID", "KID x 1000"),
    *("precision", "recall", "measured on", "MSE", "distance to held-out", "closer than real"),
)


def losses_section(results: Sequence[dict], opinions: Sequence[dict], shipped: Collection[str] = ()) -> str:
    """`results`: lines of `compute_fid.py`, of which those are shown that compare the most models.

    `opinions`: lines of `benchmarks/second_opinion.py`, at least one; of a model that was judged twice the last counts.
    `shipped`: hashes of the models whose rows are marked. Raises UserError where opinions do not compare.
    """
    opinions = list({way_of(opinion): opinion for opinion in opinions}.values())
    if len({tuple(line[name] for name in ("judge", "num_samples", "seed")) for line in opinions}) > 1:
        raise UserError("the second opinions differ in judge, num_samples or seed: they make no table")
    compared = _trained_on_alike(opinions)
    others = [opinion for opinion in opinions if opinion not in compared[1:]]
    others.sort(key=lambda opinion: (list(STAGES).index(opinion["stage"]), opinion["training_flop"]))
    table, columns = _table(results, others, shipped)
    paragraphs = [table]
    if compared:
        title = EQUAL_FLOP.format(flop=compared[1]["training_runs"][-1]["flop"])
        table, more_columns = _table(results, compared, shipped)
        paragraphs, columns = [IN_TURN, *paragraphs, title, table], columns | more_columns
    real = opinions[0]["real"]
    notes = OPINION.format(
        described="".join(text for column, text in DESCRIPTIONS.items() if column in columns),
        num_samples=opinions[0]["num_samples"],
        seed=opinions[0]["seed"],
        distance=real["frechet_distance"],
        count=real["count"],
        closer=real["closer_than_real"],
    )
    judged_on = f"The second opinions were given on: {machines_of(opinions)}."
    return "\n\n".join([TITLE, notes, *paragraphs, judged_on])


def _trained_on_alike(opinions: Sequence[dict]) -> list[dict]:
    """The most students that began as one and were trained on for equal FLOP, after that one; or none.

    The fewest losses first.
    """
    trained_on = [opinion for opinion in opinions if opinion["init_sha256"]]
    alike = [
        [other for other in trained_on if other["init_sha256"] == one["init_sha256"] and _as_long(one, other)]
        for one in trained_on
    ]
    most = sorted(max(alike, key=len, default=[]), key=lambda opinion: (_num_losses(opinion), last_losses_of(opinion)))
    start = [opinion for opinion in opinions if most and opinion["checkpoint"] == most[0]["init_sha256"]]
    return [*start, *most] if start and len(most) > 1 else []


def _num_losses(opinion: dict) -> int:
    return 1 + last_losses_of(opinion).count(" + ")


def _as_long(one: dict, other: dict) -> bool:
    return isclose(*(opinion["training_runs"][-1]["flop"] for opinion in (one, other)), rel_tol=SAME_FLOP)


def _table(results: Sequence[dict], opinions: Sequence[dict], shipped: Collection[str]) -> tuple[str, set[str]]:
    """As Markdown, with what its FIDs are of; and its columns."""
    measured = _comparable(results, opinions)
    rows = [_row(opinion, measured.get(way_of(opinion), {}), opinion["checkpoint"] in shipped) for opinion in opinions]
    header, rows = without_empty_columns(HEADER, rows)
    protocol = ""
    if measured:
        first, *_ = measured.values()
        protocol = f"\n\nFID: {group_title([first])}, sampling seed {first['seed']}."
    return markdown_table(header, rows) + protocol, {*header}


def _comparable(results: Sequence[dict], opinions: Sequence[dict]) -> dict[tuple, dict]:
    """By `way_of`: results of one protocol and seed, that which has the most of the models, then the most samples."""
    groups: dict[tuple, dict[tuple, dict]] = {}
    for result in results:
        if result["stage"] and result["fid"] is not None and result["classes"] is None:
            key = (result["num_samples"], result["reference_sha256"], result["inception_sha256"], result["seed"])
            groups.setdefault(key, {})[way_of(result)] = result
    ways = set(map(way_of, opinions))
    return max(groups.items(), key=lambda item: (len(ways & item[1].keys()), item[0][0]), default=((), {}))[1]


def _row(opinion: dict, measured: dict, is_shipped: bool) -> tuple[str, ...]:
    model = f"{name_of(opinion)}, {run_of(opinion)}" if opinion["stage"] == "teacher" else name_of(opinion)
    return (
        f"**{model}**, shipped" if is_shipped else model,
        short_id(opinion["checkpoint"]),
        short_id(opinion["init_sha256"]),
        last_losses_of(opinion),
        f"{opinion['training_flop']:.3g}",
        _figure(opinion["feature_networks_flop"] or None, ".3g"),
        _figure(measured.get("fid"), ".2f"),
        _figure(measured.get("kid") and 1000 * measured["kid"], ".2f"),
        _figure(measured.get("precision"), ".3f"),
        _figure(measured.get("recall"), ".3f"),
        machine_of(measured) if measured else "",
        _figure(opinion["held_out_error"], ".4f"),
        f"{opinion['frechet_distance']:.3f}",
        f"{opinion['closer_than_real']:.1%}",
    )


def _figure(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
