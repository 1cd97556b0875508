"""What else the machine did while engines were timed: cores that others used, the clock, quotas that held back."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

Result = TypeVar("Result")

# Kernels count a core's time in steps of up to 10 ms.
MOMENT_SECONDS = 0.25

# Of cgroups, version 2 and 1: how long a quota (``docker --cpus``) kept this container off its cores.
_QUOTAS = ((Path("/sys/fs/cgroup/cpu.stat"), "throttled_usec", 1e-6), (Path("/sys/fs/cgroup/cpu/cpu.stat"),
           "throttled_time", 1e-9))  # fmt: skip


@dataclass(frozen=True)
class MachineLoad:
    """The machine before, during and after something ran.

    ``others`` are the cores that all but this process used, of the ``cores`` it may use, virtual machines beside this
    one included. ``mhz`` is the clock before and after, 0 where the system does not say it; ``throttled`` the seconds
    that a quota held this container back.
    """

    cores: int
    others: tuple[float, float, float]
    mhz: tuple[float, float]
    throttled: float


@dataclass(frozen=True)
class _Reading:
    wall: float
    counted: float
    others: float
    cores: int


def load_during(work: Callable[[], Result]) -> tuple[Result, MachineLoad | None]:
    """What ``work`` returns, and the machine's load around it: a moment before, all the while, a moment after.

    The load is None where the system does not tell it.
    """
    mhz, throttled = [_mhz()], _throttled()
    read = [_read()]
    time.sleep(MOMENT_SECONDS)
    read.append(_read())
    result = work()
    read.append(_read())
    time.sleep(MOMENT_SECONDS)
    read.append(_read())
    mhz.append(_mhz())
    readings = [one for one in read if one is not None]
    if len(readings) < len(read) or not _advances(readings[0], readings[-1]):
        return result, None
    before, during, after = (
        max(0.0, (end.others - start.others) / max(end.wall - start.wall, 1e-9)) for start, end in pairwise(readings)
    )
    load = MachineLoad(readings[0].cores, (before, during, after), (mhz[0], mhz[1]), _throttled() - throttled)
    return result, load


def _read() -> _Reading | None:
    """Seconds by the wall clock, and what all cores of this process did for others until now, where that is told."""
    import psutil

    cores = []
    # Sandboxes have no /proc/stat, or keep it from processes, and psutil's own errors differ.
    with suppress(Exception):
        cores = psutil.cpu_times(percpu=True)
    if not cores:
        return None
    # Of a container on a large machine the other cores are nobody's business. Where the system lists the container's
    # alone, or leaves out cores that are off, their places are not their numbers.
    mine = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(len(cores))
    chosen = [cores[index] for index in mine] if max(mine) < len(cores) else cores
    # Guests' time is counted as the host's user time already.
    idle = ("idle", "iowait", "guest", "guest_nice")
    busy = sum(sum(one) - sum(getattr(one, name, 0.0) for name in idle) for one in chosen)
    counted = sum(map(sum, chosen))
    return _Reading(time.perf_counter(), counted, busy - time.process_time(), len(chosen))


def _advances(start: _Reading, end: _Reading) -> bool:
    """Whether time is counted at all, idle or not: sandboxes (gVisor) show a table that stands still."""
    return end.counted - start.counted > 0.5 * start.cores * (end.wall - start.wall)


def _mhz() -> float:
    import psutil

    # Not everywhere is there such a thing, and psutil's own errors differ.
    with suppress(Exception):
        return float(psutil.cpu_freq().current)
    return 0.0


def _throttled() -> float:
    for path, name, unit in _QUOTAS:
        with suppress(OSError, ValueError, KeyError):
            said = dict(line.split(" ", 1) for line in path.read_text(encoding="utf-8").splitlines())
            return int(said[name]) * unit
    return 0.0
