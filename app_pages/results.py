"""What was measured of the chosen models and of others, by docs/results.jsonl: tables, FID over network calls."""

from collections.abc import Sequence
from pathlib import Path

import streamlit as st

from common.curves import fid_curve
from common.errors import UserError
from common.results import (
    comparable_groups,
    group_title,
    in_reading_order,
    measured_on,
    read_results,
    table_of,
)
from common.stages import STAGES

FIRST = ("model", "id", "FID", "KID x 1000", "precision", "recall")
"""Columns that are seen before any scrolling."""
NUMBERS = {"FID": "%.2f", "KID x 1000": "%.2f", "precision": "%.3f", "recall": "%.3f"}
NUMBERS |= {"training FLOP": "%.2e", "NFE": "%d", "seed": "%d"}
RESULTS = Path(__file__).parent.parent / "docs" / "results.jsonl"


def main() -> None:
    st.title("What was measured")
    try:
        results = [result for result in read_results(RESULTS) if result["stage"] in STAGES]
    except UserError as error:
        st.error(f"{error}.")
        return
    if not results:
        st.info("Nothing was measured yet: `python compute_fid.py` does, with `--output docs/results.jsonl`.")
        return
    st.write(
        "FID (lower is better) falls as the number of samples rises, and depends on the reference: figures compare "
        "within a table, not across tables. JPEG CIFAR-10 is the 50,000 training images as JPEG files; the published "
        "protocol takes the originals."
    )
    chosen = {model.sha256 for model in st.session_state.models.values()}
    ours = [result for result in results if result["checkpoint"] in chosen]
    for group in map(in_reading_order, comparable_groups(ours)):
        show_table(group)
        show_curve(group)
    others = comparable_groups([result for result in results if result["checkpoint"] not in chosen])
    if others:
        with st.expander("Other models, and what came on the way to the shipped ones"):
            for group in map(in_reading_order, others):
                show_grid(group)


def show_table(group: list[dict]) -> None:
    st.subheader(f"The chosen models: {group_title(group)}")
    st.table(
        columns_of(*table_of(group)),
        border="horizontal",
        hide_index=True,
        alt=f"Results of the chosen models, {group_title(group)}",
    )
    show_machine(group)


def show_grid(group: list[dict]) -> None:
    """For more columns than a table has room for."""
    st.subheader(f"Other models: {group_title(group)}")
    header, rows = table_of(group, with_ids=True, with_losses=True)
    columns = {title: [cell.strip("`") for cell in cells] for title, cells in columns_of(header, rows).items()}
    for title in NUMBERS.keys() & columns.keys():  # to be sorted as such
        columns[title] = [float(cell) if cell else None for cell in columns[title]]
    st.dataframe(
        columns,
        hide_index=True,
        column_order=[title for title in FIRST if title in header] + [title for title in header if title not in FIRST],
        column_config={title: st.column_config.NumberColumn(format=form) for title, form in NUMBERS.items()},
        alt=f"Results of other models, {group_title(group)}",
    )
    show_machine(group)


def show_machine(group: list[dict]) -> None:
    if machine := measured_on(group):
        st.caption(machine)


def columns_of(header: Sequence[str], rows: Sequence[Sequence[str]]) -> dict[str, Sequence[str]]:
    return dict(zip(header, zip(*rows, strict=True), strict=True))


def show_curve(group: list[dict]) -> None:
    """FID over network calls, where there is more to see than a few points."""
    if len({result["nfe"] for result in group if result["fid"] is not None}) > 2:
        st.image(
            cached_curve(group),
            alt=f"FID against network calls, {group_title(group)}; the table above has the values",
            width=760,
            output_format="PNG",
        )


@st.cache_data(max_entries=8, show_spinner=False)
def cached_curve(group: list[dict]) -> bytes:
    return fid_curve(group)


main()
