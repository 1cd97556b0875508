"""The kernels a GPU really ran, by CUPTI: names and times from the driver, whatever the runtime says of itself."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from clipq.engines.kernel_names import demangle


@dataclass(frozen=True)
class _Tracer:
    """CUPTI with its callbacks registered, which can be done once in a process; ``seen`` is what they fill."""

    cupti: Any
    seen: list[tuple[str, float]]


@cache
def _tracer() -> _Tracer | None:
    try:
        from cupti import cupti
    except Exception:  # not installed, or it finds no driver it knows
        return None
    seen: list[tuple[str, float]] = []

    def requested() -> tuple[int, int]:
        return 8 * 2**20, 0

    def completed(activities: list[Any]) -> None:
        for activity in activities:
            if activity.kind == cupti.ActivityKind.CONCURRENT_KERNEL:
                seen.append((activity.name, (activity.end - activity.start) / 1e6))

    try:
        cupti.activity_register_callbacks(requested, completed)
    except Exception:
        return None
    return _Tracer(cupti, seen)


def trace_gpu_kernels(run: Callable[[], object], *, runs: int) -> dict[str, float] | None:
    """Milliseconds per run of every kernel by name, over ``runs`` runs after one warm-up.

    None where CUPTI is missing or denied.
    """
    tracer = _tracer()
    if tracer is None:
        return None
    cupti = tracer.cupti
    run()
    try:
        cupti.activity_enable(cupti.ActivityKind.CONCURRENT_KERNEL)
    except Exception:  # no privilege, or another profiler holds it
        return None
    try:
        tracer.seen.clear()
        for _ in range(runs):
            run()
        cupti.activity_flush_all(1)
    finally:
        cupti.activity_disable(cupti.ActivityKind.CONCURRENT_KERNEL)
    times: dict[str, float] = defaultdict(float)
    for name, milliseconds in tracer.seen:
        times[demangle(name)] += milliseconds / runs
    return dict(times)
