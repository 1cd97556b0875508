"""TensorRT and TensorRT-RTX as rows of the catalog."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from clipq.engines.memory import gpu_bytes
from clipq.engines.runtime import Feed, Load, Runtime, Status
from clipq.errors import BundleError, RuntimeUnavailable

if TYPE_CHECKING:
    from clipq.engines.census import Census
    from clipq.engines.tensorrt_library import TensorRtRuntime
    from clipq.engines.trt import TensorRtEngine


def tensorrt_row(name: TensorRtRuntime, summary: str) -> Runtime:
    """The row of one of the two TensorRT libraries."""
    return Runtime(
        name,
        summary,
        device="cuda",
        takes="plan",
        status=partial(_status, name),
        version=partial(_version, name),
        open=_open,
        census=_layers,
        memory=partial(gpu_bytes, name),
    )


def _status(runtime: TensorRtRuntime) -> Status:
    from clipq.engines.cuda import current_gpu
    from clipq.engines.tensorrt_library import open_library

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


def _version(runtime: TensorRtRuntime) -> str:
    from clipq.engines.tensorrt_library import open_library

    return open_library(runtime).name


def _open(load: Load) -> TensorRtEngine:
    from clipq.engines.trt import TensorRtEngine

    plan = load.bundle.manifest.tower(load.tower).plan
    if plan is None:
        raise BundleError(f"{load.bundle.path}: its {load.tower} tower is no plan; build the bundle again")
    return TensorRtEngine(load.path, plan, graphs=load.graphs)


def _layers(load: Load, feed: Feed) -> Census:
    """By the layers that the library's inspector and profiler name."""
    from clipq.engines.layers import take_layers_census

    # The profiler sees no layers inside a CUDA graph.
    with _open(replace(load, graphs=False)) as engine:
        return take_layers_census(engine, load.tower, feed)
