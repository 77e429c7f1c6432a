"""The rows of a search: a JSON line for each variant, and the page that is written from them."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from common.errors import UserError
from common.files import write_text
from common.results import read_results

NEEDED_OF_ROWS = {"variant", "definition", "flop_budget", "fid", "machine", "command"}


@contextmanager
def rows_to_oneself(path: Path) -> Iterator[None]:
    """Keeps other searches off a file of rows, which is written anew from what was read of it at the beginning.

    Raises UserError where another one is at work.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(f"{path}.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise UserError(f"another search is at work on {path}") from None
    try:
        yield
    finally:
        lock.release()


def read_rows(path: Path) -> list[dict]:
    """The rows of an earlier search; none without the file. Raises UserError for a line that is no row."""
    return read_results(path, NEEDED_OF_ROWS)


def write_rows(path: Path, rows: Sequence[dict], page: Callable[[Sequence[dict]], str]) -> None:
    """Writes all rows anew, and beside them their page, under the same name with the suffix .md."""
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
    write_text(path.with_suffix(".md"), page(rows))


def require_definition(row: dict, definition: dict) -> None:
    """Raises UserError where a row is of something else that had the variant's name."""
    if row["definition"] != definition:
        message = f"the row of {row['variant']} is of {row['definition']}: delete it, or give the variant another name"
        raise UserError(message)


def protocol_of(result: dict, names: Iterable[str], earlier: Iterable[dict]) -> dict:
    """How a FID was measured: the values of `names` in its line. Raises UserError where an earlier protocol differs."""
    protocol = {name: result[name] for name in names}
    for other in earlier:
        if other != protocol:
            raise UserError(f"there are FIDs by {other}, which do not compare with one by {protocol}")
    return protocol
