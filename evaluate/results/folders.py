"""The engines of one or more results folders, each beside its own run's reference."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from clipq.errors import ResultsError
from clipq.evaluate.metrics.statistics import Draws, holm, percentile_draws
from clipq.evaluate.results.pairing import Key, Pairing, read_pairing
from clipq.evaluate.results.record import Measurement, Record, ViewRecord, in_order, labels, read_record, read_records


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
    failed: tuple[Entry, ...] = ()

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
    """Records with the folder they stand in; of several folders, engines are called ``FOLDER/NAME``.

    So are views that have one name in several folders and other data in each.
    """
    prefixes = _prefixes([folder for folder, _ in runs])
    conflicts = _conflicts([records for _, records in runs])
    entries: list[Entry] = []
    failed: list[Entry] = []
    for prefix, (folder, records) in zip(prefixes, runs, strict=True):
        names = {old: f"{prefix}{old}" for view in conflicts for old in (view, f"{view}-c")}
        ordered = [_renamed(record, names) for record in in_order(records)] if names else in_order(records)
        for label, record in zip(labels(ordered), ordered, strict=True):
            entry = Entry(f"{prefix}{label}", record, _reference(record, ordered), folder)
            (failed if record.failed else entries).append(entry)
    return Results(tuple(entries), tuple(failed))


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
    found: dict[str, list[frozenset[str]]] = {}
    for records in runs:
        digests: dict[str, set[str]] = {}
        for record in records:
            for view in record.views:
                digests.setdefault(view.name, set()).add(view.digest)
            for attack in record.attacks:
                if attack.kind == "transfer":
                    digests.setdefault(attack.view, set()).add(attack.digest)
        for name, those in digests.items():
            found.setdefault(name, []).append(frozenset(those))
    return {name for name, per_run in found.items() if len(set(per_run)) > 1}


def _renamed(record: Record, names: Mapping[str, str]) -> Record:
    def rows(measurements: Sequence[Measurement]) -> tuple[Measurement, ...]:
        return tuple(row.model_copy(update={"view": names.get(row.view, row.view)}) for row in measurements)

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


def _reference(record: Record, records: Sequence[Record]) -> Record | None:
    named = [one for one in records if one.bundle.name == record.reference and not one.twin and not one.failed]
    return next((one for one in named if one.runtime == record.runtime), named[0] if named else None)


def read_measured(path: Path) -> list[Measured]:
    """The records of a results folder, or one record file of such a folder."""
    if not path.is_file():
        return [Measured(record, path) for record in read_records(path)]
    record = read_record(path)
    if record.failed:
        raise ResultsError(f"{record.name} failed and has nothing to compare: {record.failed}")
    return [Measured(record, path.parent.parent)]


@dataclass(frozen=True)
class Measured:
    """A record with what pairs it: every number it holds, with draws where it has a spread."""

    record: Record
    folder: Path

    @cached_property
    def pairing(self) -> Pairing:
        """Read when it is first asked for."""
        return read_pairing(self.folder, self.record)

    @cached_property
    def reference(self) -> Measured | None:
        """The reference of the same run, or None where there was none."""
        if not self.record.reference:
            return None
        found = [
            Measured(record, self.folder)
            for record in read_records(self.folder)
            if record.bundle.name == self.record.reference and not record.twin and not record.failed
        ]
        return next((one for one in found if one.record.runtime == self.record.runtime), found[0] if found else None)

    @cached_property
    def values(self) -> dict[Key, float]:
        """Every number by view, group and metric."""
        return {(row.view, row.group, row.metric): row.value for row in self.record.measurements}

    def draws(self, key: Key) -> Draws:
        """The draws of a number; sizes, shares and memory are exact: every draw is the value."""
        metric = key[2]
        if key in self.pairing.draws:
            return self.pairing.draws[key]
        name, _, percentile = metric.partition(".p")
        times = next(
            (one for one in self.record.latency if (f"tower:{one.tower}", f"batch={one.batch}") == key[:2]), None
        )
        if times is not None:
            if metric == "throughput":
                p50 = percentile_draws(times.milliseconds, 50)
                return Draws(1e3 * times.batch / p50.value, 1e3 * times.batch / p50.resampled, p50.n)
            raw = times.device_milliseconds if name == "device_latency_ms" else times.milliseconds
            return percentile_draws(raw, float(percentile))
        return Draws(self.values[key], np.full(1, self.values[key]), 1)

    def rests_on(self, key: Key) -> Any:
        """What the samples and resamples behind a number are: two numbers that rest on the same are paired."""
        view, group, _ = key
        record, asked = self.record, self.record.arguments_resolved
        views = {one.name: one for one in record.views}

        def samples(name: str) -> Any:
            one = views.get(name)
            return None if one is None else (one.digest, sorted(one.skipped), one.smallest_group)

        if view.startswith("tower:"):
            return None
        parts: list[Any] = [asked.get("seed"), samples(view)]
        if view in views:
            parts += [samples(views[view].baseline), asked.get("tune_fraction"), asked.get("ece_bins")]
        elif view.endswith("-c"):
            of = view.removesuffix("-c")
            drawn = [entry for entry in asked.get("corruptions", ()) if entry.get("of") == of]
            parts += [samples(of), json.dumps(drawn, sort_keys=True)]
        if "/" in group:
            attacks = [one for one in record.attacks if one.view == view]
            parts += [[(one.method, one.digest, sorted(one.options.items())) for one in attacks]]
        if group in ("near", "far"):
            parts += [sorted((name, samples(name)) for name, one in views.items() if "-ood" in one.role)]
        return parts
