"""The same rows as text for a terminal and as Markdown for a page: words to the left, numbers to the right."""

import re
from collections.abc import Sequence

NUMBER = re.compile(r"[-+]?[\d.,]+(e[-+]?\d+)?[%x]?( \+ [\d.,]+)?")


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[index]) for row in (header, *rows)) for index in range(len(header))]
    right = numeric_columns(header, rows)

    def line(cells: Sequence[str]) -> str:
        columns = zip(cells, widths, right, strict=True)
        return "  ".join(cell.rjust(width) if to_right else cell.ljust(width) for cell, width, to_right in columns)

    return "\n".join([line(header).rstrip(), "-" * len(line(header)), *(line(row).rstrip() for row in rows)])


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    rule = ["---:" if to_right else "---" for to_right in numeric_columns(header, rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, rule, *rows))


def without_empty_columns(
    header: Sequence[str], rows: Sequence[Sequence[str]]
) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """The header and the rows, without the columns of which no row has a cell that says anything."""
    columns = [(title, cells) for title, *cells in zip(header, *rows, strict=True) if any(cells)]
    return tuple(title for title, _ in columns), list(zip(*(cells for _, cells in columns), strict=True))


def numeric_columns(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[bool]:
    """Which columns hold numbers alone, such as 1,024, 8.49, 1e+16, 95% or 11.9 + 3.7; empty cells do not count."""
    columns = [[row[index] for row in rows if row[index]] for index in range(len(header))]
    return [bool(cells) and all(NUMBER.fullmatch(cell) for cell in cells) for cells in columns]
