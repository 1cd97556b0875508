"""Latency of engines, measured side by side.

Engines take turns, batch by batch, so that a machine that speeds up or slows down does so for all of them; figures
of one run can be divided by each other, figures of two runs cannot. Each turn has an order of its own: in a fixed one a
scheduler's time slices fall on the same engine again and again, and what ran before it decides what its caches hold.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from time import perf_counter_ns

import numpy as np

from clipq.engines.base import Array, Engine

WARM_UP_MILLISECONDS = 2000


@dataclass(frozen=True)
class Latency:
    """Raw times of one batch size, in milliseconds, in the order they were measured (warm-up left out).

    ``milliseconds`` are by the wall clock with copies to and from the device; ``device_milliseconds`` by the device's
    own events around the engine alone, and empty where there is no such device.
    """

    batch: int
    milliseconds: tuple[float, ...]
    device_milliseconds: tuple[float, ...] = ()

    def percentile(self, q: float) -> float:
        """The q-th percentile in milliseconds (lower is better)."""
        return float(np.percentile(self.milliseconds, q))

    @property
    def throughput(self) -> float:
        """Samples per second at the median (higher is better)."""
        return 1e3 * self.batch / self.percentile(50)


def measure_latency(
    engines: Mapping[str, Engine],
    rounds: Sequence[Mapping[str, Mapping[str, Array]]],
    *,
    warmup: int = 3,
    repeats: int = 20,
    advance: Callable[[], None] = lambda: None,
) -> dict[str, list[Latency]]:
    """Time engines in turns, round by round; returns each engine's Latency of every round that it takes part in.

    A round has the feed of each engine that takes part, by name, all of one batch size.
    Warm-up takes at least ``warmup`` runs, and goes on until an engine's last runs are as fast as those before.
    """
    results: dict[str, list[Latency]] = {name: [] for name in engines}
    for feeds in rounds:
        order, random = [name for name in engines if name in feeds], Random(0)
        times: dict[str, list[float]] = {name: [] for name in order}
        device: dict[str, list[float]] = {name: [] for name in order}
        for name in order:
            _warm_up(engines[name], feeds[name], warmup)
        for _ in range(repeats):
            random.shuffle(order)
            for name in order:
                engine, feed = engines[name], feeds[name]
                times[name].append(_time(engine, feed))
                on_device = engine.device_milliseconds(feed)
                if on_device is not None:
                    device[name].append(on_device)
            advance()
        for name in order:
            batch = len(next(iter(feeds[name].values())))
            results[name].append(Latency(batch, tuple(times[name]), tuple(device[name])))
    return results


def _time(engine: Engine, feed: Mapping[str, Array]) -> float:
    started = perf_counter_ns()
    engine.run(feed)
    return (perf_counter_ns() - started) / 1e6


def _warm_up(engine: Engine, feed: Mapping[str, Array], least: int) -> None:
    """Run until the median of the last ``least`` runs is within 5 % of those before, for two seconds at the longest."""
    times: list[float] = []
    while len(times) < least or sum(times) < WARM_UP_MILLISECONDS:
        times.append(_time(engine, feed))
        before, last = times[-2 * least : -least], times[-least:]
        if len(before) == least and abs(np.median(last) / np.median(before) - 1) < 0.05:
            return
