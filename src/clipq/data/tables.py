"""CSV files of images, labels and captions."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from clipq.errors import DataError


def read_csv(path: Path, needed: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a CSV file; raises DataError where a needed column, every row or the file is missing."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            columns = list(reader.fieldnames or [])
            rows = list(reader)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    for column in needed:
        if column not in columns:
            hint = "; paths go there" if column == "file" else ""
            hint = "; :label=COLUMN chooses another label column" if column == "label" else hint
            raise DataError(f"{path}: has no column {column!r} (it has {', '.join(columns)}){hint}")
    if not rows:
        raise DataError(f"{path}: has no rows")
    return rows


def files_beside(path: Path, names: Sequence[str]) -> tuple[Path, ...]:
    """Where the files lie that a CSV names; raises DataError for one that is missing or named twice."""
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise DataError(f"{path}: names {repeated[0]} more than once")
    for name in names:
        if not (path.parent / name).is_file():
            raise DataError(f"{path}: names {name}, which does not exist")
    return tuple(path.parent / name for name in names)
