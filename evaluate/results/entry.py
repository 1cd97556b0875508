"""One engine of a results folder, beside the reference of its own run."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from clipq.errors import NotInResults
from clipq.evaluate.metrics.statistics import Draws, percentile_draws
from clipq.evaluate.metrics.table import title_of
from clipq.evaluate.results.key import Key, clean_view
from clipq.evaluate.results.pairing import Pairing, read_pairing
from clipq.evaluate.results.record import Measurement, Record
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

    @property
    def is_reference(self) -> bool:
        """Whether it is what its run compares others with."""
        record = self.record
        return record.bundle.name == record.reference and not record.twin and not record.failed

    @property
    def is_judged(self) -> bool:
        """Whether a gate judges it: references are not judged, twins (integer kernels off) are diagnostics."""
        return not self.is_reference and not self.record.twin

    @property
    def is_candidate(self) -> bool:
        """Whether it worked and is judged against a reference."""
        return self.is_judged and self.reference is not None and not self.record.failed

    @cached_property
    def rows(self) -> dict[Key, Measurement]:
        """Its measurements by view, group and metric."""
        return {row.key: row for row in self.record.measurements}

    def __getitem__(self, key: tuple[str, str] | tuple[str, str, str]) -> Measurement:
        """A measurement by view and metric, or by view, group and metric; raises NotInResults where there is none."""
        if not isinstance(key, tuple) or len(key) not in (2, 3):
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

    @cached_property
    def pairing(self) -> Pairing:
        """Its draws and its answers to every sample; read when first asked for."""
        found = read_pairing(self.folder, self.record)
        here = self.renamed
        return Pairing(
            {key._replace(view=here.get(key.view, key.view)): one for key, one in found.draws.items()},
            {here.get(view, view): one for view, one in found.answers.items()},
        )

    def draws(self, key: Key) -> Draws:
        """The draws of a number; sizes, shares and memory are exact: every draw is the value."""
        if key in self.pairing.draws:
            return self.pairing.draws[key]
        times = next((one for one in self.record.latency if (one.tower, one.batch) == (key.tower, key.batch)), None)
        if times is not None:
            if key.metric == "throughput":
                p50 = percentile_draws(times.milliseconds, 50)
                return Draws(1e3 * times.batch / p50.value, 1e3 * times.batch / p50.resampled, p50.n)
            name, _, percentile = key.metric.partition(".p")
            raw = times.device_milliseconds if name == "device_latency_ms" else times.milliseconds
            return percentile_draws(raw, float(percentile))
        value = self.rows[key].value
        return Draws(value, np.full(1, value), 1)

    def rests_on(self, key: Key) -> Any:
        """What the samples and resamples behind a number are: two numbers that rest on the same are paired."""
        record, asked, view = self.record, self.record.arguments_resolved, key.view
        views = {one.name: one for one in record.views}

        def samples(name: str) -> Any:
            one = views.get(name)
            return None if one is None else (one.digest, sorted(one.skipped), one.smallest_group)

        if key.tower:
            return None
        parts: list[Any] = [asked.get("seed"), samples(view)]
        if view in views:
            parts += [samples(views[view].baseline), asked.get("tune_fraction"), asked.get("ece_bins")]
        elif of := clean_view(view):
            here = self.renamed
            drawn = [one for one in asked.get("corruptions", ()) if here.get(one.get("of"), one.get("of")) == of]
            parts += [samples(of), json.dumps(drawn, sort_keys=True)]
        if key.attack is not None:
            attacks = [one for one in record.attacks if one.view == view]
            parts += [[(one.method, one.digest, sorted(one.options.items())) for one in attacks]]
        if key.distance:
            parts += [sorted((name, samples(name)) for name, one in views.items() if "-ood" in one.role)]
        return parts


def meant(asked: object, known: Iterable[str] | Mapping[str, Iterable[str]]) -> str:
    """What someone may have meant who asked for a name that there is not: the closest one, else all there are."""
    names = known if isinstance(known, Mapping) else list(dict.fromkeys(known))
    close = closest(asked, names)
    return f"did you mean {close!r}?" if close else f"there is {', '.join(map(repr, names)) or 'none'}"
