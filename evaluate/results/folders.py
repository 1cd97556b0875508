"""Engines of one or more results folders, by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from clipq.errors import NotInResults, ResultsError
from clipq.evaluate.metrics.statistics import holm
from clipq.evaluate.results.basis import differs, made_otherwise, unlike, unsaid
from clipq.evaluate.results.entry import Entry, meant
from clipq.evaluate.results.key import Key, corrupted_view
from clipq.evaluate.results.record import (
    Measurement,
    Record,
    ViewRecord,
    busy_note,
    disagreement_notes,
    in_order,
    labels,
    read_record,
    read_records,
    record_stem,
    unanswered_notes,
)


@dataclass(frozen=True)
class Results:
    """Engines that were read together; those that failed are among ``engines`` alone.

    ``results[name]`` is an engine that worked; ``len``, ``in`` (a name) and iteration are over these too.
    """

    engines: tuple[Entry, ...]

    @cached_property
    def entries(self) -> tuple[Entry, ...]:
        """The engines that worked."""
        return tuple(entry for entry in self.engines if not entry.record.failed)

    @cached_property
    def failed(self) -> tuple[Entry, ...]:
        """The engines that failed."""
        return tuple(entry for entry in self.engines if entry.record.failed)

    @property
    def candidates(self) -> list[Entry]:
        """The engines with a verdict."""
        return [entry for entry in self.entries if entry.is_candidate]

    @cached_property
    def notes(self) -> list[str]:
        """What is not known of these results, a sentence each; to be said beside every verdict on them."""
        found = []
        if old := [entry.name for entry in self.engines if unsaid(entry.record)]:
            found.append(
                f"{', '.join(old)}: recorded by an earlier clipq, without digests of labels, classes, templates and "
                "the reference; that these are the same is taken as given"
            )
        bundles: dict[tuple[Path, str], Entry] = {}
        for entry in self.entries:
            beside = bundles.setdefault((entry.folder, entry.record.bundle.name), entry)
            if entry.record.bundle.digest != beside.record.bundle.digest:
                found.append(
                    f"{beside.name} and {entry.name} are of two bundles of one name: one was evaluated before the "
                    "bundle was made anew; evaluate both again by one command"
                )
        for entry in self.entries:
            record = entry.record
            if entry.reference is None and record.reference and record.cpu and not record.predicted_for:
                found.append(
                    f"{entry.name}: its reference {record.reference} is not here as measured on a CPU of level "
                    f"{record.cpu}, so it has no verdict; evaluate both there by one command"
                )
        others: dict[str, list[str]] = {}
        for entry in self.entries:
            if what := made_otherwise(entry.record, (entry.reference or entry).record):
                others.setdefault(what, []).append(entry.name)
        for what, names in others.items():
            found.append(
                f"{', '.join(names)}: measured with another {what} than the reference; differences may be of that"
            )
        found += filter(None, [busy_note({entry.name: entry.record.latency for entry in self.entries})])
        found += disagreement_notes({entry.name: entry.record.bundle.adopted for entry in self.entries})
        found += unanswered_notes({entry.name: entry.record.unanswered for entry in self.entries})
        # All of a folder agree, and views of other data have other names by now.
        one, *more = {entry.folder: entry for entry in self.entries}.values() or (None,)
        for two in more:
            if one is not None and (what := differs(one.foundations.whole, two.foundations.whole)):
                found.append(f"{one.name} and {two.name} differ in the {what}: what rests on it is not the same number")
        return found

    def working(self) -> Results:
        """These results; raises ResultsError where no engine worked."""
        if not self.entries:
            raise ResultsError("no engine of these results worked; there is nothing to report")
        return self

    def __getitem__(self, name: str) -> Entry:
        """The engine of that name; raises NotInResults where there is none or it failed."""
        known = {entry.name: entry for entry in self.engines}
        found = known.get(name) if isinstance(name, str) else None
        if found is None:
            raise NotInResults(f"no engine is called {name!r}; {meant(name, list(known))}")
        if found.record.failed:
            raise NotInResults(f"{name} failed and has no measurements: {found.record.failed}")
        return found

    def _ipython_key_completions_(self) -> list[str]:
        """What a notebook offers behind ``[``."""
        return [entry.name for entry in self.entries]

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and any(entry.name == name for entry in self.entries)

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
            if row.p_value is not None and not key.tower
        }

    @cached_property
    def survivors(self) -> set[tuple[str, Key]]:
        """The comparisons that survive Holm's correction for all of them."""
        kept = holm(list(self.compared.values()))
        return {key for key, survived in zip(self.compared, kept, strict=True) if survived}


def read_results(paths: Sequence[Path]) -> Results:
    """The engines of results folders, or of one record in such a folder (``RESULTS/records/NAME.json``).

    Raises ResultsError where a folder holds no records, one is damaged, or the one record is of a failed engine.
    """
    if len(paths) == 1 and paths[0].suffix == ".json" and paths[0].is_file():
        return _one_engine(paths[0])
    return gather([(path, read_records(path)) for path in paths])


def _one_engine(path: Path) -> Results:
    record, there = read_record(path), path.parent
    # The parent of what has no name would be the same again.
    folder = there / ".." if there.name in ("", "..") else there.parent
    if record.failed:
        raise ResultsError(f"{record.name} failed and has nothing to compare: {record.failed}")
    # Only what it can have been compared with: others' records must not stand in the way.
    others = [
        one
        for one in read_records(folder)
        if one.bundle.name == record.reference and record_stem(one) != record_stem(record)
    ]
    return Results(tuple(one for one in gather([(folder, [record, *others])]).engines if one.record is record))


def gather(runs: Sequence[tuple[Path, Sequence[Record]]]) -> Results:
    """Records with the folder they stand in; of several folders, engines are called ``FOLDER/NAME``.

    So are views that have one name in several folders and other data in each. Raises ResultsError where engines of a
    folder were not evaluated on the same.
    """
    prefixes = _prefixes([folder for folder, _ in runs])
    conflicts = _conflicts([records for _, records in runs])
    engines: list[Entry] = []
    for prefix, (folder, records) in zip(prefixes, runs, strict=True):
        names = {old: f"{prefix}{old}" for view in conflicts for old in (view, corrupted_view(view))}
        ordered = [_renamed(record, names) for record in in_order(records)] if names else in_order(records)
        called = zip(labels(ordered), ordered, strict=True)
        run = [Entry(f"{prefix}{label}", record, None, folder, names) for label, record in called]
        names_of_run = [one.name for one in run]
        if twice := next((name for name in names_of_run if names_of_run.count(name) > 1), None):
            raise ResultsError(
                f"{folder}: two engines are called {twice!r}, a bundle that is called so and one in several places; "
                "rename the bundle's folder and evaluate it into another"
            )
        references = [one for one in run if one.is_reference]
        # What has no reference here stands in one table with the others all the same.
        first = next((entry for entry in run if not entry.record.failed), None)
        for entry in run:
            entry.reference = _reference(entry, references)
            for beside in filter(None, (entry.reference, first)):
                entry.require_same_basis(beside)
        engines += run
    return Results(tuple(engines))


def _reference(entry: Entry, run: Sequence[Entry]) -> Entry | None:
    """What a record can have been compared with: in the same runtime if it is there, and on no other kind of CPU.

    A prediction is compared with what ran beside it, on whatever CPU that was.
    """
    record = entry.record
    cpu = record.environment.get("cpu_level") if record.predicted_for else record.cpu
    found = [
        one
        for one in run
        if one.record.bundle.name == record.reference
        and (one.record.cpu == record.cpu or not (one.record.cpu and record.cpu) or record.predicted_for)
    ]
    return min(found, key=lambda one: (one.record.runtime != record.runtime, one.record.cpu != cpu), default=None)


def _prefixes(folders: Sequence[Path]) -> list[str]:
    if len(folders) == 1:
        return [""]
    resolved = [folder.resolve() for folder in folders]
    for folder, path in zip(folders, resolved, strict=True):
        if resolved.count(path) > 1:
            raise ResultsError(f"{folder} is given twice")
    names = [path.name for path in resolved]
    return [f"{folder if names.count(name) > 1 else name}/" for folder, name in zip(folders, names, strict=True)]


def _conflicts(runs: Sequence[Sequence[Record]]) -> set[str]:
    """Views (and attacks) that are called the same in several runs and are not the same."""
    found: dict[str, list[Mapping[str, str]]] = {}
    for records in runs:
        said: dict[str, dict[str, str]] = {}
        for record in records:
            views = {one.name: (one.digest, one.digests) for one in record.views}
            views |= {one.view: (one.digest, one.digests) for one in record.attacks if one.kind == "transfer"}
            for name, (images, others) in views.items():
                said.setdefault(name, {}).update({"images": images, **others})
        for name, digests in said.items():
            found.setdefault(name, []).append(digests)
    return {name for name, (first, *others) in found.items() if any(unlike(first, other) for other in others)}


def _renamed(record: Record, names: Mapping[str, str]) -> Record:
    def rows(measurements: Sequence[Measurement]) -> tuple[Measurement, ...]:
        return tuple(replace(row, view=names.get(row.view, row.view)) for row in measurements)

    return record.model_copy(
        update={
            "views": tuple(
                view.model_copy(
                    update={
                        "name": names.get(view.name, view.name),
                        "baseline": names.get(view.baseline, view.baseline),
                    }
                )
                for view in record.views
            ),
            "attacks": tuple(
                attack.model_copy(update={"view": names.get(attack.view, attack.view)}) for attack in record.attacks
            ),
            "measurements": rows(record.measurements),
            "deployed_minus_simulated": rows(record.deployed_minus_simulated),
        }
    )
