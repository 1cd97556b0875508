"""Latency of engines, measured side by side.

Engines take turns, batch by batch, so that a machine that speeds up or slows down does so for all of them; figures
of one run can be divided by each other, figures of two runs cannot.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter_ns

import numpy as np

from clipq.engines.base import Array, Engine


@dataclass(frozen=True)
class Latency:
    """Raw times of one batch size, in milliseconds, in the order they were measured (warm-up left out)."""

    batch: int
    milliseconds: tuple[float, ...]

    def percentile(self, q: float) -> float:
        """The q-th percentile in milliseconds (lower is better)."""
        return float(np.percentile(self.milliseconds, q))

    @property
    def throughput(self) -> float:
        """Samples per second at the median (higher is better)."""
        return 1e3 * self.batch / self.percentile(50)


def measure_latency(
    engines: Mapping[str, Engine],
    feeds: Sequence[Mapping[str, Array]],
    *,
    warmup: int = 3,
    repeats: int = 20,
    advance: Callable[[], None] = lambda: None,
) -> dict[str, list[Latency]]:
    """Time each engine on each feed, in turns; returns one Latency per feed for each engine."""
    results: dict[str, list[Latency]] = {name: [] for name in engines}
    for feed in feeds:
        times: dict[str, list[float]] = {name: [] for name in engines}
        for repeat in range(warmup + repeats):
            for name, engine in engines.items():
                started = perf_counter_ns()
                engine.run(feed)
                elapsed = (perf_counter_ns() - started) / 1e6
                if repeat >= warmup:
                    times[name].append(elapsed)
            advance()
        batch = len(next(iter(feed.values())))
        for name in engines:
            results[name].append(Latency(batch, tuple(times[name])))
    return results
