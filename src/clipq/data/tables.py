"""CSV files of images, labels and captions: read whole, or refused with the line that does not fit."""

from __future__ import annotations

import csv
import io
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from clipq.errors import DataError
from clipq.text_files import read_text

# Tables are as long as their data sets.
MOST_BYTES = 2**30

# What other programs put between cells.
_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}


def read_csv(path: Path, needed: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a CSV file by column, none of whose needed cells is empty; blanks around cells do not count.

    Raises DataError, with the line, for what is no UTF-8, no CSV, or would make a row into another one: more or fewer
    cells than the header has, a quote that swallows lines, a column without a name or twice.
    """
    rows = _rows(path, read_text(path, DataError, MOST_BYTES))
    _, columns = next(rows, (1, []))
    _check_columns(path, columns, needed)
    found = []
    for line, cells in rows:
        if len(cells) != len(columns):
            raise DataError(
                f"{path}: line {line} has {len(cells)} cells, the header {len(columns)} ({', '.join(columns)[:200]}); "
                "put a cell that holds a comma between quotes"
            )
        row = dict(zip(columns, cells, strict=True))
        for column, cell in row.items():
            # A forgotten quote makes one cell of all that follows, which is valid CSV where another one ends it.
            if "\n" in cell or "\r" in cell:
                raise DataError(
                    f"{path}: line {line} begins a cell of several lines ({column}): take out the quote that opens "
                    "it, or the line breaks in it"
                )
            if column in needed and not cell:
                raise DataError(f"{path}: line {line} has an empty {column}; fill it in, or take the line out")
        found.append(row)
    if not found:
        raise DataError(f"{path}: has no rows")
    return found


def read_cells(path: Path) -> list[tuple[int, list[str]]]:
    """Line number and cells of every row of a CSV file, the header first; raises DataError for what is none.

    For wide tables of numbers; names of columns are not checked.
    """
    found = list(_rows(path, read_text(path, DataError, MOST_BYTES)))
    if len(found) < 2:
        raise DataError(f"{path}: has no rows")
    return found


def files_beside(path: Path, names: Sequence[str]) -> tuple[Path, ...]:
    """Where the files lie that a CSV names; raises DataError for one that is missing or named twice."""
    places = Counter(os.path.abspath(path.parent / name) for name in names)  # noqa: PTH100
    repeated = [place for place, count in places.items() if count > 1]
    if repeated:
        raise DataError(f"{path}: names {os.path.relpath(repeated[0], path.parent)} more than once")
    return tuple(file_beside(path, name) for name in names)


def file_beside(path: Path, name: str) -> Path:
    """Where a file lies that a CSV names, seen from its folder; raises DataError where it is none."""
    found = path.parent / name
    # Path.is_file raises for a name that is too long.
    if not os.path.isfile(found):  # noqa: PTH113
        hint = "; write / between folders" if "\\" in name else ""
        raise DataError(f"{path}: names {name[:200]}, which is no file or does not exist{hint}")
    return found


def _rows(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    """Line number and cells of every row but those that hold nothing, as spreadsheets leave them at the end."""
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise DataError(f"{path}: line {line} holds a NUL, as UTF-16 does; save it as UTF-8")
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, skipinitialspace=True)
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise DataError(f"{path}: line {line} is no CSV ({error}); is there a quote too many?") from error
        if cells is None:
            return
        # "cat " would be another class than "cat".
        cells = [cell.strip() for cell in cells]
        if any(cells):
            yield line, cells


def _check_columns(path: Path, columns: Sequence[str], needed: Sequence[str]) -> None:
    for separator, what in _SEPARATORS.items():
        if len(columns) == 1 and separator in columns[0]:
            raise DataError(f"{path}: its cells are separated by {what}; save it with commas")
    for column in needed:
        if column not in columns:
            hint = "; paths go there" if column == "file" else ""
            hint = "; :label=COLUMN chooses another label column" if column == "label" else hint
            raise DataError(f"{path}: has no column {column!r} (it has {', '.join(columns)[:200]}){hint}")
    for column, count in Counter(columns).items():
        if not column:
            raise DataError(f"{path}: column {columns.index(column) + 1} has no name; name it, or take it out")
        if count > 1:
            raise DataError(f"{path}: has {count} columns {column!r}; name them differently, or take one out")
