"""The section of docs/results.md that compares students by the losses that trained them."""

from collections.abc import Sequence

from common.results import name_of, run_of
from common.tables import markdown_table

TITLE = "## Students by their losses"
NOTES = """FID, KID, precision and recall as above, of as many samples as the column says. *MSE* is against the
teacher's images from the same noise, on held-out pairs; *features' FLOP* the training of the network in the loss, once
for all students. The last two columns are a second opinion (`benchmarks/second_opinion.py`, {num_samples:,} samples,
seed {seed}), in the features of a classifier that no loss has seen: the Fréchet distance to the images that were held
out from all training ({distance:.3f} for as many training images), and the share of samples that lie closer to a
training image than other training images do ({closer:.1%} of the held-out images)."""
HEADER = (
    *("model", "losses", "training FLOP", "features' FLOP", "samples", "FID", "KID x 1000", "precision", "recall"),
    *("MSE", "distance to held-out", "closer than real"),
)
SAME = ("checkpoint", "guide", "solver", "num_steps", "guidance_scale", "guidance_interval", "guide_scale")
"""What a line of either kind says of how images were drawn."""


def losses_section(results: Sequence[dict], opinions: Sequence[dict]) -> str:
    """`results`: lines of `compute_fid.py`, of which each opinion takes that of the most samples.

    `opinions`: lines of `benchmarks/second_opinion.py`, at least one.
    """
    first = opinions[0]
    notes = NOTES.format(
        num_samples=first["num_samples"],
        seed=first["seed"],
        distance=first["real_frechet_distance"],
        closer=first["real_closer_than_real"],
    )
    ordered = sorted(opinions, key=lambda opinion: (opinion["stage"], opinion["training_flop"]), reverse=True)
    rows = [_row(opinion, _measured(opinion, results)) for opinion in ordered]
    return f"{TITLE}\n\n{notes}\n\n{markdown_table(HEADER, rows)}"


def _measured(opinion: dict, results: Sequence[dict]) -> dict:
    same = [result for result in results if all(result.get(name) == opinion.get(name) for name in SAME)]
    return max(same, key=lambda result: result["num_samples"], default={})


def _row(opinion: dict, measured: dict) -> tuple[str, ...]:
    name = name_of(opinion) if opinion["loss"] else f"{name_of(opinion)}, {run_of(opinion)}"
    return (
        name,
        losses_in_words(opinion),
        f"{opinion['training_flop']:.3g}",
        _figure(opinion["feature_network_flop"], ".3g"),
        _figure(measured.get("num_samples"), ","),
        _figure(measured.get("fid"), ".2f"),
        _figure(measured.get("kid") and 1000 * measured["kid"], ".2f"),
        _figure(measured.get("precision"), ".3f"),
        _figure(measured.get("recall"), ".3f"),
        _figure(opinion["held_out_error"], ".4f"),
        f"{opinion['frechet_distance']:.3f}",
        f"{opinion['closer_than_real']:.1%}",
    )


def losses_in_words(opinion: dict) -> str:
    """Of a student; nothing of a teacher."""
    if not opinion["loss"]:
        return ""
    pixels = "pseudo-huber" if opinion["loss"] == "features" else opinion["loss"]
    features = f", features x {opinion['feature_weight']:g}" if opinion["loss"] == "features" else ""
    critic = ""
    if opinion["critic"]:
        critic = f", then {opinion['critic']} x {opinion['critic_weight']:g} ({opinion['critic_images']} images)"
    return pixels + features + critic


def _figure(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
