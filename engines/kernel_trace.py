"""The kernels a GPU really ran, by CUPTI: names and times from the driver, whatever the runtime says of itself."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from clipq.engines.kernel_names import demangle
from clipq.errors import RuntimeUnavailable


@dataclass(frozen=True)
class _Tracer:
    """CUPTI with its callbacks registered, which can be done once in a process; ``seen`` is what they fill."""

    cupti: Any
    seen: list[tuple[str, float]]


@cache
def _tracer() -> _Tracer:
    try:
        from cupti import cupti
    except Exception as error:  # not installed, or its libraries are not
        raise RuntimeUnavailable(f"CUPTI: {error}; pip install cupti-python (of the driver's CUDA version)") from error
    seen: list[tuple[str, float]] = []

    def requested() -> tuple[int, int]:
        return 8 * 2**20, 0

    def completed(activities: list[Any]) -> None:
        for activity in activities:
            if activity.kind == cupti.ActivityKind.CONCURRENT_KERNEL:
                seen.append((activity.name, (activity.end - activity.start) / 1e6))

    try:
        cupti.activity_register_callbacks(requested, completed)
    except Exception as error:
        raise RuntimeUnavailable(f"CUPTI refused its callbacks: {error}") from error
    return _Tracer(cupti, seen)


def trace_gpu_kernels(run: Callable[[], object], *, runs: int) -> dict[str, float]:
    """Milliseconds per run of every kernel by name, over ``runs`` runs after one warm-up.

    Raises RuntimeUnavailable, with the reason, where CUPTI is missing or denied.
    """
    tracer = _tracer()
    cupti = tracer.cupti
    run()
    try:
        cupti.activity_enable(cupti.ActivityKind.CONCURRENT_KERNEL)
    except Exception as error:  # no privilege, or another profiler holds it
        raise RuntimeUnavailable(f"CUPTI refused to trace kernels: {error}") from error
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
    if not times:
        raise RuntimeUnavailable("CUPTI saw no kernel")
    return dict(times)
