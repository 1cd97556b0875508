"""What stands in the columns ``view`` and ``group`` of ``results.csv``: written and read here and nowhere else.

| view | group | metrics |
|---|---|---|
| a view | empty: the whole view | of classification, shift, retrieval |
| a view | ``column=value``: a part of it | of classification |
| a view | ``column`` | of fairness |
| a view | ``near`` or ``far`` | of OOD detection |
| ``VIEW-c`` | ``corruption/severity``; empty: the mean | of corruptions |
| a view or an attack's name | ``method/epsilon`` | of attacks |
| ``tower:image``, ``tower:text``, or empty: both | ``batch=8`` or empty | of the engine itself |
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from clipq.evaluate.metrics.table import metric_of

_TOWER = "tower:"
_BATCH = "batch="
_CORRUPTED = "-c"


class Key(NamedTuple):
    """Which number: a view, a part of it or a condition, and a metric. Equal to the plain triple."""

    view: str
    group: str
    metric: str

    @property
    def tower(self) -> str:
        """``image`` or ``text`` where one tower itself was measured, else empty."""
        return self.view.removeprefix(_TOWER) if self.view.startswith(_TOWER) else ""

    @property
    def batch(self) -> int | None:
        """The batch size of a latency."""
        return int(self.group.removeprefix(_BATCH)) if self.tower and self.group.startswith(_BATCH) else None

    @property
    def part(self) -> str:
        """``column=value`` where a part of the view was measured, else empty."""
        return self.group if self._section in ("", "classification") and not self.tower else ""

    @property
    def column(self) -> str:
        """The column whose groups were compared, else empty."""
        return self.group if self._section == "fairness" else ""

    @property
    def distance(self) -> str:
        """``near`` or ``far`` where OOD detection was measured, else empty."""
        return self.group if self._section == "ood" else ""

    @property
    def condition(self) -> tuple[str, int] | None:
        """Corruption and severity, where one was measured."""
        return _split(self.group) if self._section == "corruptions" and self.group else None

    @property
    def attack(self) -> tuple[str, int] | None:
        """Method and strength in 255ths of an attack."""
        return _split(self.group) if self._section == "attacks" and self.group else None

    def complaint(self) -> str:
        """What is wrong with view or group, by the table above; empty where nothing is."""
        section = self._section
        if section in ("engine", "costs"):
            fits = self.view in ("", tower_view("image"), tower_view("text"))
            batch = self.group.removeprefix(_BATCH)
            return "" if fits and (not self.group or (self.group != batch and _is_number(batch))) else "is of no tower"
        if section in ("corruptions", "attacks") and self.group:
            name, _, strength = self.group.rpartition("/")
            return "" if name and _is_number(strength) else f"needs a group such as {condition_group('name', 3)!r}"
        if section == "ood":
            return "" if self.group in ("near", "far") else "needs the group 'near' or 'far'"
        if section == "fairness":
            return "" if self.group else "needs a group: a column"
        # Of a view itself: a part of it, or what an axis of one's own calls one.
        return ""

    @property
    def _section(self) -> str:
        return metric_of(self.metric).section.partition(",")[0]


def tower_view(tower: str) -> str:
    """The view of what is measured of one tower itself."""
    return f"{_TOWER}{tower}"


def batch_group(batch: int) -> str:
    """The group of a latency."""
    return f"{_BATCH}{batch}"


def corrupted_view(view: str) -> str:
    """The view of a view's corruptions."""
    return f"{view}{_CORRUPTED}"


def clean_view(view: str) -> str:
    """The view that a corrupted one was drawn from; empty where the name is no corrupted view's."""
    return view.removesuffix(_CORRUPTED) if view.endswith(_CORRUPTED) else ""


def condition_group(corruption: str, severity: int) -> str:
    """The group of one corruption at one severity."""
    return f"{corruption}/{severity}"


def attack_group(method: str, epsilon: int) -> str:
    """The group of one attack at one strength in 255ths."""
    return f"{method}/{epsilon}"


def part_group(column: str, value: str) -> str:
    """The group of the samples that have a value in a column."""
    return f"{column}={value}"


def parts_complaint(parts: Mapping[str, Iterable[str]]) -> str:
    """What is wrong with the groups of each column: of ``a``, ``b=c`` is called as ``c`` of ``a=b``; else empty."""
    column_of: dict[str, str] = {}
    for column, groups in parts.items():
        for group in groups:
            other = column_of.setdefault(group, column)
            if other != column:
                return f"columns {other!r} and {column!r} both have a group {group!r}; rename a column"
    return ""


def is_reserved(view: str) -> bool:
    """Whether no data set may have this name: it would read as something else."""
    return not view or view.startswith(_TOWER)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 10


def _split(group: str) -> tuple[str, int]:
    name, _, strength = group.rpartition("/")
    return name, int(strength)
