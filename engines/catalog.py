"""The runtimes clipq knows: whether each works on this machine, and how it opens a bundle's tower."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from clipq.bundle import Bundle, TowerName
from clipq.engines.base import Engine
from clipq.engines.cuda import current_gpu
from clipq.engines.ort import OrtEngine
from clipq.engines.ort_providers import PROVIDERS, OrtRuntime, find_provider
from clipq.engines.tensorrt_library import TensorRtRuntime, open_library
from clipq.engines.trt import TensorRtEngine
from clipq.environment import onnxruntime_package
from clipq.errors import BundleError, RuntimeUnavailable


@dataclass(frozen=True)
class Status:
    """Whether a runtime works here, and what was found or what is missing.

    ``state`` is ``run`` (engines run here), ``built`` (plans can be built here, not run) or ``no``.
    """

    state: str
    detail: str

    @property
    def works(self) -> bool:
        """Whether engines run here."""
        return self.state == "run"


@dataclass(frozen=True)
class Runtime:
    """A runtime by name: its one-line description and its check."""

    name: str
    summary: str
    status: Callable[[], Status]


def onnxruntime_version() -> str | None:
    """Package and version of the ONNX Runtime that is here, or None."""
    found = onnxruntime_package()
    return None if found is None else " ".join(found)


def runtime_identity(runtime: str) -> dict[str, str | None]:
    """What a runtime's numbers depend on: its name and version, and the GPU it runs on."""
    found = onnxruntime_version() if runtime in PROVIDERS else open_library(runtime).name
    identity = {"runtime": runtime, "runtime_version": found}
    return identity if runtime == "ort-cpu" else {**identity, "gpu": current_gpu().name}


def _ort_status(runtime: OrtRuntime) -> Status:
    found = onnxruntime_version()
    if found is None:
        return Status("no", "ONNX Runtime is not installed: pip install onnxruntime")
    try:
        find_provider(runtime)
        gpu = "" if runtime == "ort-cpu" else f", {current_gpu().name}"
    except RuntimeUnavailable as error:
        return Status("no", str(error))
    return Status("run", f"{found}{gpu}")


def _tensorrt_status(runtime: TensorRtRuntime) -> Status:
    try:
        library = open_library(runtime)
    except RuntimeUnavailable as error:
        return Status("no", str(error))
    try:
        gpu = current_gpu()
    except RuntimeUnavailable as error:
        if library.targets:
            return Status("built", f"{library.name} builds for {', '.join(library.targets)}; cannot run: {error}")
        return Status("no", f"{library.name}: {error}")
    if library.targets and gpu.capability not in library.targets:
        return Status("built", f"{library.name} does not support {gpu.name} ({gpu.capability})")
    return Status("run", f"{library.name}, {gpu.name} ({gpu.capability})")


RUNTIMES: dict[str, Runtime] = {
    **{name: Runtime(name, entry.summary, partial(_ort_status, name)) for name, entry in PROVIDERS.items()},
    "tensorrt": Runtime("tensorrt", "TensorRT plans", partial(_tensorrt_status, "tensorrt")),
    "tensorrt-rtx": Runtime("tensorrt-rtx", "TensorRT-RTX plans", partial(_tensorrt_status, "tensorrt-rtx")),
}


def known_runtime(name: str) -> Runtime:
    """The runtime by name; raises RuntimeUnavailable where there is none of that name."""
    if name not in RUNTIMES:
        raise RuntimeUnavailable(f"unknown runtime {name!r}; known: {', '.join(RUNTIMES)}")
    return RUNTIMES[name]


def require_runtime(name: str) -> Runtime:
    """The runtime by name; raises RuntimeUnavailable where it is unknown or does not work here."""
    runtime = known_runtime(name)
    status = runtime.status()
    if not status.works:
        raise RuntimeUnavailable(f"runtime {name!r} does not work here: {status.detail}")
    return runtime


def open_engine(
    bundle: Bundle,
    tower: TowerName,
    runtime: str,
    *,
    threads: int = 0,
    simulated: bool = False,
    graphs: bool = False,
) -> Engine:
    """Load one tower of a bundle in a runtime; raises rather than fall back to another.

    ``threads`` and ``simulated`` are for ONNX Runtime, ``graphs`` (CUDA graphs) for plans.
    """
    entry = bundle.manifest.tower(tower)
    check_fits(bundle, runtime)
    require_runtime(runtime)
    if entry.plan is not None:
        return TensorRtEngine(bundle.tower_path(tower), entry.plan, graphs=graphs)
    return OrtEngine(bundle.tower_path(tower), runtime, threads=threads, simulated=simulated)  # type: ignore[arg-type]


def check_fits(bundle: Bundle, runtime: str) -> None:
    """Refuse a runtime that cannot take a bundle's files: plans go with their runtime alone, ONNX with the others."""
    known_runtime(runtime)
    built = bundle.built_for
    if built is not None and built != runtime:
        raise BundleError(f"{bundle.path} holds plans for {built}; --runtime {runtime} cannot load them")
    if built is None and runtime not in PROVIDERS:
        raise BundleError(
            f"{bundle.path} holds ONNX files; make plans of them first: clipq-export build {bundle.path} "
            f"--runtime {runtime}"
        )
