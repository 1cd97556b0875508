"""The runtimes clipq knows, one table: who wants to know something of a runtime asks its row, not its name.

Light to import, for the command lines take names and defaults from here: a runtime's code is imported as it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from clipq.engines.external_row import external_row
from clipq.engines.ort_rows import kernels_or, one_node, onnxruntime_row, profile
from clipq.engines.runtime import Load, Runtime
from clipq.engines.trt_rows import tensorrt_row
from clipq.environment import gpu_libraries
from clipq.errors import BundleError, RuntimeUnavailable
from clipq.given import hint

if TYPE_CHECKING:
    from clipq.bundle import Bundle, TowerName
    from clipq.engines.base import Engine
    from clipq.engines.interface import Interface

# What is meant where no runtime is named: it works wherever clipq is installed.
DEFAULT_RUNTIME: Literal["ort-cpu"] = "ort-cpu"

RUNTIMES: dict[str, Runtime] = {
    runtime.name: runtime
    for runtime in (
        onnxruntime_row("ort-cpu", "ONNX Runtime, CPU provider", "cpu", profile, can_simulate=True),
        onnxruntime_row("ort-cuda", "ONNX Runtime, CUDA provider", "cuda", kernels_or(profile)),
        onnxruntime_row("ort-tensorrt", "ONNX Runtime, TensorRT provider", "cuda", kernels_or(one_node)),
        onnxruntime_row("ort-tensorrt-rtx", "ONNX Runtime, TensorRT-RTX plugin provider", "cuda", kernels_or(one_node)),
        tensorrt_row("tensorrt", "TensorRT plans"),
        tensorrt_row("tensorrt-rtx", "TensorRT-RTX plans"),
        external_row("external", "engines that run where clipq cannot"),
    )
}


def known_runtime(name: str) -> Runtime:
    """The runtime by name; raises RuntimeUnavailable where there is none of that name."""
    if name not in RUNTIMES:
        raise RuntimeUnavailable(f"unknown runtime {name!r}; known: {', '.join(RUNTIMES)}{hint(name, RUNTIMES)}")
    return RUNTIMES[name]


def require_runtime(name: str) -> Runtime:
    """The runtime by name; raises RuntimeUnavailable where it is unknown or does not work here."""
    runtime = known_runtime(name)
    status = runtime.status()
    if not status.works:
        raise RuntimeUnavailable(f"runtime {name!r} does not work here: {status.detail}")
    return runtime


def simulator() -> Runtime:
    """The runtime in which Q/DQ files are simulated: the first that can."""
    return next(runtime for runtime in RUNTIMES.values() if runtime.can_simulate)


def runtime_identity(name: str) -> dict[str, Any]:
    """What a runtime's numbers depend on: its name and version, the GPU it runs on and the libraries that it calls."""
    runtime = known_runtime(name)
    identity: dict[str, Any] = {"runtime": name, "runtime_version": runtime.version()}
    if runtime.device != "cuda":
        return identity
    from clipq.engines.cuda import current_gpu

    return {**identity, "gpu": current_gpu().name, "gpu_libraries": gpu_libraries()}


def open_engine(bundle: Bundle, tower: TowerName, runtime: str) -> Engine:
    """Load one tower of a bundle in a runtime, as ``open_load`` does."""
    return open_load(Load(bundle, tower), runtime)


def open_load(load: Load, runtime: str) -> Engine:
    """Load one tower in a runtime; raises rather than fall back to another.

    Raises BundleError where the file's inputs and outputs are not the manifest's.
    """
    from clipq.engines.interface import FedEngine

    check_fits(load.bundle, runtime, simulated=load.simulated)
    row = require_runtime(runtime)
    # Minutes may lie between this and the checking of digests, and numbers are kept under these.
    with load.bundle.unchanged():
        engine = row.open(load)
    try:
        interface = check_signature(engine, load.bundle, load.tower)
    except BundleError:
        engine.close()
        raise
    return engine if load.bundle.manifest.tower(load.tower).is_plain else FedEngine(engine, interface)


def check_signature(engine: Engine, bundle: Bundle, tower: TowerName) -> Interface:
    """The tower's interface; raises BundleError where the loaded file does not have what the manifest says."""
    from clipq.engines.interface import Interface

    interface = Interface(bundle, tower)
    interface.check(engine, bundle)
    return interface


def check_fits(bundle: Bundle, runtime: str, *, simulated: bool = False) -> None:
    """Refuse a runtime that cannot take a bundle's files: plans and answers go with theirs alone, ONNX with the others.

    With ``simulated``, one that does not run Q/DQ nodes as they are written is refused too.
    """
    row, built = known_runtime(runtime), bundle.built_for
    if built is not None and built != runtime:
        raise BundleError(f"{bundle.path} holds {bundle.holds}; --runtime {runtime} cannot load them")
    if built is None and row.takes == "answers":
        raise BundleError(
            f"{bundle.path} holds ONNX files; {runtime} takes the answers of an engine that runs elsewhere, as "
            "`clipq-eval cells import` makes a bundle of them"
        )
    if built is None and row.takes == "plan":
        raise BundleError(
            f"{bundle.path} holds ONNX files; make plans of them first: clipq-export build {bundle.path} "
            f"--runtime {runtime}"
        )
    if simulated and not row.can_simulate:
        raise BundleError(
            f"{bundle.path}: {runtime} does not run Q/DQ nodes as they are written; simulate the ONNX bundle with "
            f"--runtime {simulator().name}"
        )
