"""The runtimes clipq knows: whether each works on this machine, and how it opens a bundle's tower."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from clipq.bundle import Bundle, TowerName
from clipq.engines.base import Engine
from clipq.engines.ort import RUNTIME as ORT_CPU
from clipq.engines.ort import OrtCpuEngine
from clipq.errors import RuntimeUnavailable


@dataclass(frozen=True)
class Status:
    """Whether a runtime works here, and what was found or what is missing."""

    works: bool
    detail: str


@dataclass(frozen=True)
class Runtime:
    """A runtime by name: its one-line description and its check."""

    name: str
    summary: str
    status: Callable[[], Status]


def onnxruntime_version() -> str | None:
    """Version of the installed ONNX Runtime, under either of its package names, or None."""
    for package in ("onnxruntime-gpu", "onnxruntime"):
        try:
            return f"{package} {version(package)}"
        except PackageNotFoundError:
            continue
    return None


def _ort_cpu_status() -> Status:
    found = onnxruntime_version()
    return Status(True, found) if found else Status(False, "ONNX Runtime is not installed: pip install onnxruntime")


RUNTIMES: dict[str, Runtime] = {
    ORT_CPU: Runtime(ORT_CPU, "ONNX Runtime, CPU provider", _ort_cpu_status),
}


def require_runtime(name: str) -> Runtime:
    """The runtime by name; raises RuntimeUnavailable where it is unknown or does not work here."""
    if name not in RUNTIMES:
        raise RuntimeUnavailable(f"unknown runtime {name!r}; known: {', '.join(RUNTIMES)}")
    status = RUNTIMES[name].status()
    if not status.works:
        raise RuntimeUnavailable(f"runtime {name!r} does not work here: {status.detail}")
    return RUNTIMES[name]


def open_engine(bundle: Bundle, tower: TowerName, runtime: str, *, threads: int = 0, simulated: bool = False) -> Engine:
    """Load one tower of a bundle in a runtime; raises rather than fall back to another."""
    require_runtime(runtime)
    return OrtCpuEngine(bundle.tower_path(tower), threads=threads, simulated=simulated)
