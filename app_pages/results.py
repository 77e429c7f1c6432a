"""What was measured of the chosen models and of others, by docs/results.jsonl: tables, FID over network calls."""

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
    for group in comparable_groups([result for result in results if result["checkpoint"] in chosen]):
        show_group("The chosen models", in_reading_order(group))
    for group in comparable_groups([result for result in results if result["checkpoint"] not in chosen]):
        show_group("Other models", in_reading_order(group), with_losses=True)


def show_group(whose: str, group: list[dict], with_losses: bool = False) -> None:
    st.subheader(f"{whose}: {group_title(group)}")
    header, rows = table_of(group, with_losses=with_losses)
    columns = dict(zip(header, zip(*rows, strict=True), strict=True))
    st.table(columns, border="horizontal", hide_index=True, alt=f"Results of {whose.lower()}, {group_title(group)}")
    if machine := measured_on(group):
        st.caption(machine)
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
