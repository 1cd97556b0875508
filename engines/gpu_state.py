"""What the GPU was doing while engines were timed: clocks, throttling, power and energy, by NVML.

Clocks are read, never set: a figure taken at locked clocks would not be the figure of the machine that ships.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from clipq.engines.cuda import pci_bus_id
from clipq.errors import ClipqError

THROTTLE_REASONS = {
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x20: "software thermal",
    0x40: "hardware thermal",
    0x80: "hardware power brake",
}


@dataclass(frozen=True)
class GpuState:
    """A reading: clocks in MHz, temperature in °C, power in W, energy since the driver was loaded in J.

    None where this GPU does not say. ``throttled`` names what holds the clocks down.
    """

    sm_mhz: int | None
    memory_mhz: int | None
    temperature: int | None
    watts: float | None
    joules: float | None
    throttled: tuple[str, ...]


def joules_per_run(run: Callable[[], object], *, seconds: float = 2.0) -> float | None:
    """Energy of the whole GPU per run, over as many runs as fill ``seconds`` (lower is better); None without NVML.

    NVML's counter moves a few times a second, so a shorter time would measure its steps.
    """
    before, started, runs = read_gpu_state(), perf_counter(), 0
    if before is None or before.joules is None:
        return None
    while perf_counter() - started < seconds:
        run()
        runs += 1
    after = read_gpu_state()
    return None if after is None or after.joules is None else (after.joules - before.joules) / runs


def read_gpu_state() -> GpuState | None:
    """A reading of the first visible GPU; None where NVML or a GPU is missing."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # ImportError, or NVML's own errors where the driver is missing
        return None
    try:
        device = pynvml.nvmlDeviceGetHandleByPciBusId(pci_bus_id())

        def ask(name: str, *arguments: Any) -> Any:
            with suppress(pynvml.NVMLError):
                return getattr(pynvml, name)(device, *arguments)
            return None

        energy, power = ask("nvmlDeviceGetTotalEnergyConsumption"), ask("nvmlDeviceGetPowerUsage")
        reasons = ask("nvmlDeviceGetCurrentClocksEventReasons") or 0
        return GpuState(
            sm_mhz=ask("nvmlDeviceGetClockInfo", pynvml.NVML_CLOCK_SM),
            memory_mhz=ask("nvmlDeviceGetClockInfo", pynvml.NVML_CLOCK_MEM),
            temperature=ask("nvmlDeviceGetTemperature", pynvml.NVML_TEMPERATURE_GPU),
            watts=None if power is None else power / 1e3,
            joules=None if energy is None else energy / 1e3,
            throttled=tuple(reason for bit, reason in THROTTLE_REASONS.items() if reasons & bit),
        )
    except (pynvml.NVMLError, ClipqError):
        return None
    finally:
        pynvml.nvmlShutdown()
