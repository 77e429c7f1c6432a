"""The page of `student_search.py`: its rows as Markdown."""

from itertools import groupby

from common.tables import markdown_table

INTRODUCTION = """\
# Ways to distil a student

Written by `benchmarks/student_search.py` from [student_search.jsonl](student_search.jsonl), which holds the definition
and the command of each row. What is not in a variant's name is: squared error, Muon at 1e-3, batches of 64, joint
flips, all pairs, a start at the teacher's weights; of a four-step student equal steps, and half of the examples on its
own states, with the gradient within a step ("four steps" alone means that). All in a table have the same training FLOP;
where a variant says *for half the FLOP*, it is the beginning of another, whose FLOP, examples and minutes include its.

Options that brought nothing were taken out of the code: training on a four-step student's own states, and steps of
unequal length. Definitions still name them, with the values that are left. The column *code* ends in the commit that
made the row; that of a row which tried such an option has it.

- Error: mean squared, against the teacher's images of the same noise, on the pairs that trained nothing.
- Minutes are by the clock, with whatever else the machine did."""


def page(rows: list[dict]) -> str:
    sections = [INTRODUCTION]
    for _, group in groupby(sorted(rows, key=comparable_by), key=comparable_by):
        chosen = list(group)
        first = chosen[0]
        protocol = next((row["fid"]["protocol"] for row in chosen if row["fid"]), None)
        measured = f", FID of {protocol['num_samples']:,} samples of seed {protocol['seed']}" if protocol else ""
        title = f"## {first['flop_budget']:.3g} training FLOP"
        of = (
            f"With the teacher {first['teacher'][:12]}, of {first['teacher_training_flop']:.3g} training FLOP; "
            f"{first['held_out_pairs']} held-out pairs{measured}."
        )
        sections.append(f"{title}\n\n{of}\n\n{markdown_table(HEADER, [cells(row) for row in chosen])}")
    return "\n\n".join(sections) + "\n"


HEADER = ("variant", "error", "FID", "training FLOP", "examples", "pairs", "minutes", "machine", "code")


def comparable_by(row: dict) -> tuple:
    """Rows of one table have all of this in common, and can be compared."""
    return row["flop_budget"], row["teacher_training_flop"], row["teacher"], row["held_out_pairs"]


def cells(row: dict) -> tuple[str, ...]:
    return (
        row["variant"],
        "" if row["held_out_error"] is None else f"{row['held_out_error']:.5f}",
        f"{row['fid']['fid']:.2f}" if row["fid"] else "",
        f"{row['training_flop']:.3g}",
        f"{row['examples']:,}",
        f"{row['num_pairs']:,}",
        f"{row['minutes']:.1f}",
        row["machine"],
        row["code"],
    )
