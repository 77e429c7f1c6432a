"""The table of the shipped models at the top of the README and of the model card."""

from collections.abc import Sequence
from statistics import fmean

from common.errors import UserError
from common.files import ROOT
from common.results import (
    CHOOSING_SEED,
    comparable_groups,
    group_title,
    latest_by_seed,
    machine_of,
    machines_of,
    mean_fid,
    way_of,
)
from common.stages import STAGES
from common.tables import markdown_table, without_empty_columns


def headline(current: Sequence[dict], files: dict[str, str], cost: dict | None, others: Sequence[dict] = ()) -> str:
    """Each shipped model run in its best way, by the results of the most samples that there are of all of them.

    If possible by seeds that chose none of them. `current`, `others`: results of the shipped models, and of others.
    `files`: by their hash. `cost`: a line of `benchmarks/model_cost.py`. Raises UserError where no results compare all
    of them.
    """
    measured = [
        result
        for result in current
        if result["fid"] is not None and result["classes"] is None and result["guide"] in (None, *files)
    ]
    groups = [group for group in comparable_groups(measured) if {result["stage"] for result in group} == set(STAGES)]
    if not groups:
        raise UserError("no results compare all of the shipped models: measure each by one number of samples")
    group = max(groups, key=lambda group: (group[0]["num_samples"], len(group)))
    compared = {_seed_of(other) for other in others}
    fresh = [result for result in group if result["seed"] != CHOOSING_SEED and _seed_of(result) not in compared]
    is_fresh = {result["stage"] for result in fresh} == set(STAGES)
    group = fresh if is_fresh else group
    best: dict[str, list[dict]] = {}
    for results in sorted(by_seed(group), key=mean_fid, reverse=True):
        best[results[0]["stage"]] = results
    timed_models = cost["models"] if cost else []
    times = {way_of(model): f"{model['milliseconds_in_a_batch']:.1f}" for model in timed_models}
    rows = []
    for stage in sorted(best, key=list(STAGES).index):
        result = best[stage][0]
        hashes = [result["checkpoint"], *filter(None, [result["guide"]])]
        sizes = " + ".join(f"{(ROOT / files[sha256]).stat().st_size / 1e6:.1f}" for sha256 in hashes)
        kids, recalls = ([line[name] for line in best[stage] if line[name] is not None] for name in ("kid", "recall"))
        rows.append(
            (
                STAGES[stage].label,
                f"{result['nfe']:g}",
                sizes,
                times.get(way_of(result), ""),
                f"{mean_fid(best[stage]):.2f}",
                f"{1000 * fmean(kids):.2f}" if kids else "",
                f"{fmean(recalls):.3f}" if recalls else "",
                ", ".join(str(line["seed"]) for line in best[stage]),
            )
        )
    header = ("model", "network calls", "MB (+ guide)", "ms an image", "FID", "KID x 1000", "recall", "seed")
    table = markdown_table(*without_empty_columns(header, rows))
    warning = " Models or settings were chosen by some of these: other seeds may give a little more."
    chosen = "" if is_fresh else warning
    timed = f" Time: each of {cost['batch_size']} images drawn together, {machine_of(cost)}." if cost else ""
    return (
        f"\n{table}\n\nFID (lower is better) of {group_title(group)}, measured on {machines_of(group)}.{chosen} "
        f"Figures of another number of samples, or against the originals, do not compare.{timed}"
    )


def _seed_of(result: dict) -> tuple:
    """By which samples of a stage's models they can be compared, and one of them be chosen."""
    return tuple(result[name] for name in ("stage", "num_samples", "reference_sha256", "seed"))


def by_seed(group: Sequence[dict]) -> list[list[dict]]:
    """The FIDs of each model run in each way: a list for all sampling seeds."""
    ways: dict[tuple, list[dict]] = {}
    for result in group:
        if result["fid"] is not None:
            how = (result["arithmetic"], result["device"], result["batch_size"])
            ways.setdefault((*way_of(result), *how), []).append(result)
    return [latest_by_seed(results) for results in ways.values()]
