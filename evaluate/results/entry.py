"""One engine of a results folder, beside the reference of its own run."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np

from clipq.errors import NotInResults, ResultsError
from clipq.evaluate.metrics.statistics import Draws, percentile_draws
from clipq.evaluate.metrics.table import title_of
from clipq.evaluate.results.basis import Basis, Foundations, differs
from clipq.evaluate.results.key import Key, batch_group, tower_view
from clipq.evaluate.results.pairing import Pairing, read_pairing
from clipq.evaluate.results.record import LatencyRecord, Measurement, Record, record_path
from clipq.given import closest


@dataclass(eq=False)
class Entry:
    """One engine under a name that no other has among those read with it.

    ``entry[view, metric]`` and ``entry[view, group, metric]`` are its measurements. ``folder`` holds its draws, answers
    and thumbnails. ``reference`` is what its run compared it with: itself for the reference, None where there was none.
    ``renamed`` holds views that have another name here than in the folder: the folder's name and the one here.
    """

    name: str
    record: Record = field(repr=False)
    reference: Entry | None = field(repr=False)
    folder: Path
    renamed: Mapping[str, str] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        # It is read from later, wherever the process then is.
        self._home = self.folder.absolute()

    @property
    def is_reference(self) -> bool:
        """Whether it is what its run compares others with."""
        return self.record.is_reference

    @property
    def place(self) -> str:
        """What it ran on, but for what its name says already."""
        said = bool(self.record.predicted_for) or f"{self.record.cpu})" in self.name
        return self.record.runtime if said else self.record.place

    @property
    def is_judged(self) -> bool:
        """Whether a gate judges it: references are not judged, nor what stands beside an engine: twins, predictions."""
        return not (self.is_reference or self.record.is_side)

    @property
    def is_candidate(self) -> bool:
        """Whether it worked and has a verdict against a reference; a prediction has one too."""
        beside = self.is_reference or self.record.twin or self.record.failed
        return self.reference is not None and not beside

    @cached_property
    def rows(self) -> dict[Key, Measurement]:
        """Its measurements by view, group and metric."""
        return {row.key: row for row in self.record.measurements}

    def __getitem__(self, key: tuple[str, str] | tuple[str, str, str]) -> Measurement:
        """A measurement by view and metric, or by view, group and metric; raises NotInResults where there is none."""
        parts = key if isinstance(key, tuple) else ()
        if len(parts) not in (2, 3) or not all(isinstance(one, Hashable) for one in parts):
            raise NotInResults(f"a measurement of {self.name} is asked for by [view, metric] or [view, group, metric]")
        view, group, metric = key if len(key) == 3 else (key[0], "", key[1])
        if (view, group, metric) in self.rows:
            return self.rows[Key(view, group, metric)]
        metrics = [(group, metric) for where, group, metric in self.rows if where == view]
        groups = [where for where, one in metrics if one == metric]
        if not metrics:
            raise NotInResults(f"{self.name} has no view {view!r}; {meant(view, (key[0] for key in self.rows))}")
        if groups:
            raise NotInResults(f"{self.name} has no group {group!r} of {metric} on {view}; {meant(group, groups)}")
        raise NotInResults(
            f"{self.name} has no {metric!r} on {view}; {meant(metric, {one: (title_of(one),) for _, one in metrics})}"
        )

    def _ipython_key_completions_(self) -> list[tuple[str, ...]]:
        """What a notebook offers behind ``[``."""
        return [(key.view, key.group, key.metric) if key.group else (key.view, key.metric) for key in self.rows]

    @property
    def pairing(self) -> Pairing:
        """Its draws and its answers to every sample; read when asked for, and kept until some others were read."""
        return _pairing(self)

    def draws(self, key: Key) -> Draws:
        """The draws of a number; sizes, shares and memory are exact: every draw is the value."""
        if key in self.pairing.draws:
            return self.pairing.draws[key]
        times = next((one for one in self.record.latency if (one.tower, one.batch) == (key.tower, key.batch)), None)
        if times is not None:
            if key.metric == "throughput":
                p50 = percentile_draws(times.milliseconds, 50, again=times.again)
                return Draws(1e3 * times.batch / p50.value, 1e3 * times.batch / p50.resampled, p50.n)
            name, _, percentile = key.metric.partition(".p")
            if name == "device_latency_ms":
                return percentile_draws(times.device_milliseconds, float(percentile))
            return percentile_draws(times.milliseconds, float(percentile), again=times.again)
        value = self.rows[key].value
        return Draws(value, np.full(1, value), 1)

    @cached_property
    def foundations(self) -> Foundations:
        """What its numbers rest on."""
        return Foundations(self.record, self.renamed)

    def rests_on(self, key: Key) -> Basis | None:
        """What a number rests on; what is measured of a tower itself rests on no sample."""
        return None if key.tower else self.foundations.of(key)

    def is_paired(self, other: Entry, key: Key) -> bool:
        """Whether a number and another engine's rest on the same samples and resamples."""
        mine, theirs = self.rests_on(key), other.rests_on(key)
        return mine is not None and theirs is not None and not differs(mine, theirs)

    def was_timed_with(self, other: Entry, key: Key) -> bool:
        """Whether a tower's time was taken in turns with another engine's: in another run the machine had other work.

        Its row says by the difference what the other's was. Of what is no time, or does not say it, nothing is held
        against it.
        """
        clock = key._replace(metric="latency_ms.p50")
        mine, theirs = self.rows.get(clock), other.rows.get(clock)
        if other is self or mine is None or theirs is None or mine.delta is None:
            return True
        return math.isclose(mine.value - mine.delta, theirs.value, rel_tol=1e-6)

    def timed_beside(self, mine: LatencyRecord) -> LatencyRecord | None:
        """The reference's times of the same tower and batch, where they were taken in turns with these."""
        key = Key(tower_view(mine.tower), batch_group(mine.batch), "latency_ms.p50")
        if self.reference is None or not self.was_timed_with(self.reference, key):
            return None
        same = (one for one in self.reference.record.latency if (one.tower, one.batch) == (mine.tower, mine.batch))
        return next(same, None)

    def require_same_basis(self, beside: Entry) -> None:
        """Raise ResultsError where it was evaluated on other data than what it stands beside: mostly its reference.

        Also where the reference here is another bundle than it was compared with.
        """
        if beside is self or self.record.failed:
            return
        asked, found = self.record.reference_digest, beside.record.bundle.digest
        another = beside is self.reference and asked not in ("", found)
        what = f"bundle {beside.record.bundle.name!r} that is the reference" if another else ""
        what = what or differs(self.foundations.whole, beside.foundations.whole)
        if what:
            raise ResultsError(
                f"{self.folder}: {self.name} and {beside.name} were not evaluated on the same: they differ in the "
                f"{what}; evaluate both again by one command, or delete {record_path(self.folder, self.record)}"
            )


# An engine's, its reference's, and those of what it is compared with: of many engines all would fill the memory.
@lru_cache(maxsize=4)
def _pairing(entry: Entry) -> Pairing:
    found, here = read_pairing(entry._home, entry.record), entry.renamed
    if not here:
        return found
    return Pairing(
        {key._replace(view=here.get(key.view, key.view)): one for key, one in found.draws.items()},
        {here.get(view, view): one for view, one in found.answers.items()},
    )


def meant(asked: object, known: Iterable[str] | Mapping[str, Iterable[str]]) -> str:
    """What someone may have meant who asked for a name that there is not: the closest one, else all there are.

    ``known`` can have other words for each.
    """
    names = list(dict.fromkeys(known))
    close = closest(asked, names, known if isinstance(known, Mapping) else None)
    return f"did you mean {close!r}?" if close else f"there is {', '.join(map(repr, names)) or 'none'}"
