"""A view with other labels or groups: crossings of columns, classes of another view."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from clipq.data.source import checked_classes
from clipq.data.tables import read_csv
from clipq.data.views import Classes, View
from clipq.errors import DataError

logger = logging.getLogger(__name__)


def join_columns(view: View, columns: str) -> View:
    """The view with a crossing of group columns (``race*gender``) as one more column.

    Raises DataError where that would put different groups under one name, or is called as a column of the data.
    """
    parts, known = columns.split("*"), view.samples[0].groups
    for part in parts:
        if part not in known:
            raise DataError(f"{view.source}: has no group column {part!r}; it has: {', '.join(known) or 'none'}")
    if len(parts) > 1 and columns in known:
        raise DataError(f"{view.source}: {columns!r} is a column of it, and a crossing of others; rename the column")
    values = [tuple(sample.groups[part] for part in parts) for sample in view.samples]
    named: dict[str, tuple[str, ...]] = {}
    for crossed in dict.fromkeys(values):
        name = " * ".join(crossed)
        if named.setdefault(name, crossed) != crossed:
            raise DataError(
                f"{view.source}: two groups of {columns!r} are called {name!r} ({named[name]} and {crossed}); "
                "write their values without ' * '"
            )
    samples = tuple(
        replace(sample, groups={**sample.groups, columns: " * ".join(crossed)})
        for sample, crossed in zip(view.samples, values, strict=True)
    )
    return replace(view, samples=samples)


def restrict_classes(view: View, to: View, label_map: Path | None) -> View:
    """The view with its labels read as classes of another view; predictions are then among those classes alone.

    A label is that class of ``to`` with the same key (folder name, such as a WordNet id), or all of them, where ``to``
    counts several as one label; or what ``label_map`` (CSV: ``label,class``, classes by key or name) says, which can
    give several classes to a label.
    """
    assert view.classes is not None and to.classes is not None
    known = {name: [index] for index, name in enumerate(to.classes.names)}
    # Keys are of labels, which come before names, and of which each has its classes.
    known.update({key: [] for key in to.classes.keys})
    for index, label in enumerate(to.classes.label_of_class):
        known[to.classes.keys[label]].append(index)
    mapping = {key: [key] for key in view.classes.keys} if label_map is None else _read_label_map(label_map)
    names, labels = [], []
    for label, key in enumerate(view.classes.keys):
        if key not in mapping:
            raise DataError(f"{label_map}: says nothing about label {key!r} of {view.source}")
        for wanted in mapping[key]:
            if wanted not in known:
                where = label_map or view.source
                raise DataError(f"{where}: {wanted!r} is no class of {to.source}; give a label_map (CSV: label,class)")
            if label_map is None:
                _check_meaning(view, to, label, known)
            names += [to.classes.names[index] for index in known[wanted]]
            labels += [label] * len(known[wanted])
    templates = view.classes.templates or to.classes.templates
    return checked_classes(replace(view, classes=Classes(tuple(names), view.classes.keys, tuple(labels), templates)))


def _check_meaning(view: View, to: View, label: int, known: Mapping[str, Sequence[int]]) -> None:
    """See that a label is no other class's in the other view: numbers are the same in any two data sets."""
    assert view.classes is not None and to.classes is not None
    key, name = view.classes.keys[label], view.classes.names[label]
    others = [to.classes.names[index] for index in known[key]]
    if name == key or name in others or key in others:
        return
    other = " or ".join(map(repr, others))
    if known.get(name, known[key]) != known[key]:
        raise DataError(
            f"{view.source}: its label {key!r} is {name!r}, in {to.source} it is {other}; give a label_map "
            "(CSV: label,class)"
        )
    if key.isdecimal():
        logger.warning(
            "%s: its label %s is %r, in %s it is %s; is that one class?", view.source, key, name, to.source, other
        )


def _read_label_map(path: Path) -> dict[str, list[str]]:
    rows = read_csv(path, ("label", "class"))
    mapping: dict[str, list[str]] = {}
    for row in rows:
        mapping.setdefault(row["label"], []).append(row["class"])
    return mapping
