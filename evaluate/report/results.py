"""The engines of one or more results folders, each beside its own run's reference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from clipq.errors import ResultsError
from clipq.evaluate.statistics import holm
from clipq.record import Measurement, Record, ViewRecord, in_order, read_records

Key = tuple[str, str, str]


@dataclass(frozen=True)
class Entry:
    """One engine under a name that no other has in the report; ``folder`` holds its thumbnails."""

    name: str
    record: Record
    reference: Record | None
    folder: Path

    @property
    def is_candidate(self) -> bool:
        """Whether it is compared with a reference; twins (integer kernels off) are diagnostics, no candidates."""
        return self.reference is not None and self.record is not self.reference and not self.record.twin

    @cached_property
    def rows(self) -> dict[Key, Measurement]:
        """Its measurements by view, group and metric."""
        return {(row.view, row.group, row.metric): row for row in self.record.measurements}


@dataclass(frozen=True)
class Results:
    """Engines that worked and engines that failed; raises ResultsError where none worked."""

    entries: tuple[Entry, ...]
    failed: tuple[Record, ...] = ()

    def __post_init__(self) -> None:
        if not self.entries:
            raise ResultsError("no engine of these results worked; there is nothing to report")

    @property
    def candidates(self) -> list[Entry]:
        """The engines with a verdict."""
        return [entry for entry in self.entries if entry.is_candidate]

    @cached_property
    def views(self) -> dict[str, ViewRecord]:
        """Every view by name, from the first engine that has it."""
        found: dict[str, ViewRecord] = {}
        for entry in self.entries:
            for view in entry.record.views:
                found.setdefault(view.name, view)
        return found

    @cached_property
    def compared(self) -> dict[tuple[str, Key], float]:
        """The p-value of every comparison with a reference, by engine and key; engines' own speeds left out."""
        return {
            (entry.name, key): row.p_value
            for entry in self.entries
            for key, row in entry.rows.items()
            if row.p_value is not None and not row.view.startswith("tower:")
        }

    @cached_property
    def survivors(self) -> set[tuple[str, Key]]:
        """The comparisons that survive Holm's correction for all of them."""
        kept = holm(list(self.compared.values()))
        return {key for key, survived in zip(self.compared, kept, strict=True) if survived}


def read_results(folders: Sequence[Path]) -> Results:
    """The records of results folders."""
    return gather([(folder, read_records(folder)) for folder in folders])


def gather(runs: Sequence[tuple[Path, Sequence[Record]]]) -> Results:
    """Records with the folder they stand in; of several folders, engines are called ``FOLDER/NAME``."""
    found = [(folder, record, _reference(record, records)) for folder, records in runs for record in in_order(records)]
    labels = [folder.resolve().name for folder, _ in runs]
    names: list[str] = []
    for folder, record, _ in found:
        run = "" if len(runs) == 1 else f"{folder.resolve().name}/"
        if labels.count(folder.resolve().name) > 1:
            run = f"{folder}/"
        names.append(f"{run}{record.name}")
    entries = []
    for name, (folder, record, reference) in zip(names, found, strict=True):
        unique = name if names.count(name) == 1 else f"{name} ({record.runtime})"
        if not record.failed:
            entries.append(Entry(unique, record, reference, folder))
    return Results(tuple(entries), tuple(record for _, record, _ in found if record.failed))


def _reference(record: Record, records: Sequence[Record]) -> Record | None:
    named = [one for one in records if one.bundle.name == record.reference and not one.twin and not one.failed]
    return next((one for one in named if one.runtime == record.runtime), named[0] if named else None)
