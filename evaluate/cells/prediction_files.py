"""Predictions as users bring them back: CSV, .npz or .parquet, matched with what was asked or refused in a line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from clipq.data.tables import read_cells
from clipq.errors import DataError
from clipq.evaluate.cells.work import Listed
from clipq.evaluate.metrics.predictions import Floats
from clipq.evaluate.results.record import csv_name

# Of a column that is no class's.
ID, PREDICTED = ("id",), ("predicted", "label")
# As metrics take them.
_SUM = 1e-4


@dataclass(frozen=True)
class _Table:
    """What a file holds: probabilities (rows × classes), and what it says of rows and columns, where it does."""

    probabilities: Floats
    ids: list[str] | None
    classes: list[str] | None
    predicted: list[str] | None


def read_predictions(path: Path, listed: Listed, ids: Sequence[str]) -> Floats:
    """Probabilities of a view's samples, in the order of ``ids``, by the view's labels in their order.

    Raises DataError for rows or columns that are missing, unknown or there twice, and for what is no probability.
    """
    labels = listed.labels
    if labels is None:
        raise DataError(f"{path}: {listed.name!r} is not classified, so predictions say nothing of it; leave it out")
    table = _read(path)
    columns = _columns(path, table, labels)
    probabilities = np.asarray(table.probabilities, np.float64)[:, columns]
    _check_probabilities(path, probabilities)
    if table.predicted is not None:
        _check_predicted(path, table.predicted, probabilities, labels)
    return probabilities[_rows(path, table, listed, ids)]


def _columns(path: Path, table: _Table, labels: Sequence[str]) -> list[int]:
    count = table.probabilities.shape[1]
    if table.classes is None or table.classes == [str(number) for number in range(len(labels))]:
        if count != len(labels):
            raise DataError(f"{path}: has {count} columns of probabilities, the view has {len(labels)} labels")
        return list(range(count))
    _once(path, table.classes, "class")
    unknown = [name for name in table.classes if name not in labels]
    missing = [name for name in labels if name not in table.classes]
    for names, what in ((unknown, "knows no class"), (missing, "has no column of class")):
        if names:
            subject = "the view" if what.startswith("knows") else "it"
            raise DataError(
                f"{path}: {subject} {what} {names[0]!r} ({len(names)} such); classes are called as in clipq-work.json, "
                "views.labels"
            )
    if len(set(labels)) < len(labels):
        raise DataError(f"{path}: the view has two labels of one name; call the columns 0, 1, 2, ... in their order")
    return [table.classes.index(name) for name in labels]


def _check_probabilities(path: Path, probabilities: Floats) -> None:
    sums = probabilities.sum(1)
    for wrong, said in (
        (~np.isfinite(probabilities).all(1), "holds what is no number"),
        ((probabilities < 0).any(1) | (probabilities > 1).any(1), "holds a probability below 0 or above 1"),
        (~(np.abs(sums - 1) <= _SUM), "does not sum to 1"),
    ):
        if wrong.any():
            row = int(wrong.argmax())
            raise DataError(
                f"{path}: row {row} {said} (sum {sums[row]:.4g}; {int(wrong.sum())} of {len(sums)} rows); bring back "
                "the softmax over the view's labels, in float32 or wider"
            )


def _check_predicted(path: Path, predicted: Sequence[str], probabilities: Floats, labels: Sequence[str]) -> None:
    for row, name in enumerate(predicted):
        likely = probabilities[row].max()
        places = [place for place, label in enumerate(labels) if name in (label, str(place))]
        if not any(probabilities[row, place] == likely for place in places):
            raise DataError(
                f"{path}: row {row} predicts {name!r}, and the most likely class is "
                f"{labels[int(probabilities[row].argmax())]!r}; are the columns in another order? Leave the column out "
                "if it is the data set's own label"
            )


def _rows(path: Path, table: _Table, listed: Listed, ids: Sequence[str]) -> list[int]:
    """Which row of the file is each sample's."""
    if table.ids is None:
        if len(table.probabilities) != len(ids):
            raise DataError(
                f"{path}: has {len(table.probabilities)} rows, {listed.name!r} has {len(ids)} samples, in the order of "
                "images.csv; an id column may have them in any order"
            )
        return list(range(len(ids)))
    if table.ids == list(ids):
        return list(range(len(ids)))
    _once(path, table.ids, "id")
    place = {name: row for row, name in enumerate(table.ids)}
    asked = set(ids)
    for names, what in (
        ([name for name in ids if name not in place], "has no row of sample"),
        ([name for name in table.ids if name not in asked], f"{listed.name!r} has no sample"),
    ):
        if names:
            raise DataError(f"{path}: {what} {names[0]!r} ({len(names)} such); ids are those of images.csv")
    return [place[name] for name in ids]


def _once(path: Path, names: Sequence[str], what: str) -> None:
    name, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise DataError(f"{path}: {what} {name!r} is there {count} times; once is right")


def _read(path: Path) -> _Table:
    readers = {".csv": _csv, ".npz": _npz, ".parquet": _parquet}
    kind = path.suffix.lower()
    if kind not in readers:
        raise DataError(
            f"{path}: predictions come as {', '.join(readers)}, not as {kind or 'a file without an ending'}"
        )
    if not path.is_file():
        raise DataError(f"{path}: no such file; give the predictions that the engine gave")
    table = readers[kind](path)
    if table.probabilities.ndim != 2 or 0 in table.probabilities.shape or table.probabilities.dtype.kind not in "fiu":
        shape = " × ".join(map(str, table.probabilities.shape))
        raise DataError(f"{path}: probabilities are {table.probabilities.dtype}, {shape}; give samples × classes")
    if any(one is not None and len(one) != len(table.probabilities) for one in (table.ids, table.predicted)):
        raise DataError(
            f"{path}: has {len(table.probabilities)} rows of probabilities, but not as many ids or predictions"
        )
    return table


def _csv(path: Path) -> _Table:
    (_, columns), *rows = read_cells(path)
    special, classes = _split(path, columns)
    numbers = np.empty((len(rows), len(classes)))
    for index, (line, cells) in enumerate(rows):
        if len(cells) != len(columns):
            raise DataError(f"{path}: line {line} has {len(cells)} cells, the header {len(columns)}")
        try:
            numbers[index] = [float(cells[place]) for place in classes.values()]
        except ValueError as error:
            raise DataError(f"{path}: line {line} holds what is no number ({error})") from error

    def column(name: str) -> list[str] | None:
        return None if name not in special else [csv_name(cells[special[name]]) for _, cells in rows]

    return _Table(numbers, column("id"), list(classes), column("predicted"))


def _split(path: Path, columns: Sequence[str]) -> tuple[dict[str, int], dict[str, int]]:
    """Where ids and predictions stand, and every class."""
    special: dict[str, int] = {}
    classes: dict[str, int] = {}
    for place, name in enumerate(columns):
        if name in ID or name in PREDICTED:
            special["id" if name in ID else "predicted"] = place
        elif name in classes:
            raise DataError(
                f"{path}: two columns are called {name!r}; call them 0, 1, 2, ... in the order of the labels"
            )
        else:
            classes[csv_name(name)] = place
    return special, classes


def _npz(path: Path) -> _Table:
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays: dict[str, Any] = {name: stored[name] for name in stored.files}
    except Exception as error:  # numpy lets all kinds of errors through
        raise DataError(f"{path}: cannot be read as npz ({error})") from error
    if "probabilities" not in arrays:
        raise DataError(f"{path}: holds {', '.join(arrays)[:200] or 'nothing'}; call the array probabilities")

    def names(key: str) -> list[str] | None:
        return [str(one) for one in arrays[key].tolist()] if key in arrays else None

    return _Table(arrays["probabilities"], names("ids"), names("classes"), names("predicted"))


def _parquet(path: Path) -> _Table:
    try:
        import pandas as pd

        frame = pd.read_parquet(path)
    except ImportError as error:
        raise DataError(f"{path}: reading it needs pandas and pyarrow: pip install pandas pyarrow ({error})") from error
    except Exception as error:  # the library has errors of its own
        raise DataError(f"{path}: cannot be read as parquet ({error})") from error
    special, classes = _split(path, [str(one) for one in frame.columns])

    def column(name: str) -> list[str] | None:
        return None if name not in special else [str(one) for one in frame.iloc[:, special[name]]]

    numbers = frame.iloc[:, list(classes.values())].to_numpy()
    if numbers.dtype.kind not in "fiu":
        raise DataError(f"{path}: holds columns that are no numbers; beside classes there are id and predicted")
    return _Table(numbers, column("id"), list(classes), column("predicted"))
