"""ONNX Runtime's providers as rows of the catalog."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from clipq.cpu import cpu_level
from clipq.engines.memory import gpu_bytes
from clipq.engines.runtime import Device, Feed, Load, Runtime, Status
from clipq.environment import onnxruntime_package
from clipq.errors import RuntimeUnavailable

if TYPE_CHECKING:
    from clipq.engines.base import Engine
    from clipq.engines.census import Census
    from clipq.engines.ort import OrtEngine
    from clipq.engines.ort_providers import OrtRuntime
    from clipq.engines.saturation import Saturation

    Proof = Callable[[OrtRuntime, Load, Feed], Census]


def onnxruntime_row(
    name: OrtRuntime, summary: str, device: Device, census: Proof, can_simulate: bool = False
) -> Runtime:
    """The row of one of ONNX Runtime's execution providers."""
    return Runtime(
        name,
        summary,
        device,
        takes="onnx",
        status=partial(_status, name),
        version=onnxruntime_version,
        open=partial(_open, name),
        census=partial(census, name),
        memory=_host_bytes if device == "cpu" else partial(gpu_bytes, name),
        can_simulate=can_simulate,
        saturation=_saturation if device == "cpu" else None,
    )


def _status(runtime: OrtRuntime) -> Status:
    from clipq.engines.cuda import current_gpu
    from clipq.engines.ort_providers import find_provider

    found = onnxruntime_version()
    if found is None:
        return Status("no", "ONNX Runtime is not installed: pip install onnxruntime")
    try:
        gpu = f", {current_gpu().name}" if find_provider(runtime).on_gpu else ""
    except RuntimeUnavailable as error:
        return Status("no", str(error))
    return Status("run", f"{found}{gpu}")


def session_options(load: Load) -> dict[str, Any]:
    """What ``OrtEngine`` is told of a tower's session."""
    from clipq.engines.ort import EXACT_PRODUCTS

    config = EXACT_PRODUCTS if load.exact else {}
    return {"threads": load.threads, "simulated": load.simulated, "config": config}


def _host_bytes(load: Load, feed: Feed) -> int:
    from clipq.engines.memory import peak_memory

    return peak_memory(load.path, feed, **session_options(load))


def _open(runtime: OrtRuntime, load: Load) -> Engine:
    from clipq.engines.predicted import PredictedEngine

    return PredictedEngine(load.path) if load.saturating else _session(runtime, load)


def _session(runtime: OrtRuntime, load: Load) -> OrtEngine:
    from clipq.engines.ort import OrtEngine

    return OrtEngine(load.path, runtime, **session_options(load))


def profile(runtime: OrtRuntime, load: Load, feed: Feed) -> Census:
    """By operators: ONNX Runtime's profile."""
    from clipq.engines.census import take_census

    return take_census(load.path, load.tower, feed, runtime=runtime, **session_options(load))


def _saturation(load: Load, feed: Feed) -> Saturation | None:
    from clipq.engines.ort import has_integer_products
    from clipq.engines.saturation import take_saturation

    # The graph that ONNX Runtime makes of a file on Arm is another, and says nothing of x86.
    if load.simulated or cpu_level().machine != "x86_64" or not has_integer_products(load.path):
        return None
    found = take_saturation(load.path, [feed])
    # Files whose floats are half precision are dequantized first on a CPU: no product, and nothing to say of one.
    return found if found.products or found.unknown else None


def one_node(runtime: OrtRuntime, load: Load, feed: Feed) -> Census:
    """No proof: TensorRT's providers take the tower as a whole, and the profile sees no operator of it."""
    from clipq.engines.census import unknown_census

    return unknown_census(load.tower, f"{runtime} runs the tower as one node")


def kernels_or(otherwise: Proof) -> Proof:
    """By the kernels that the driver saw on the GPU; where it tells of none, ``otherwise`` and the reason."""
    return partial(_kernels, otherwise)


def _kernels(otherwise: Proof, runtime: OrtRuntime, load: Load, feed: Feed) -> Census:
    from clipq.engines.layers import take_kernel_census

    with _session(runtime, load) as engine:
        try:
            return take_kernel_census(engine, load.tower, feed)
        except RuntimeUnavailable as error:
            untraced = f"; no kernel names: {error}"
    taken = otherwise(runtime, load, feed)
    return replace(taken, evidence=taken.evidence + untraced)


def onnxruntime_version() -> str | None:
    """Package and version of the ONNX Runtime that is here, or None."""
    found = onnxruntime_package()
    return None if found is None else " ".join(found)
