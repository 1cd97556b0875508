"""ONNX Runtime's execution providers as runtimes: what each needs, and the options it is opened with."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Literal

from clipq.engines.cuda import current_gpu
from clipq.errors import EngineError, RuntimeUnavailable

OrtRuntime = Literal["ort-cpu", "ort-cuda", "ort-tensorrt", "ort-tensorrt-rtx"]
CPU = "CPUExecutionProvider"
RTX_PLUGIN = "onnxruntime_ep_nv_tensorrt_rtx"

# Work that must not land on the CPU unseen; shape arithmetic goes there by ONNX Runtime's own design.
COMPUTE = {
    "Attention", "BiasGelu", "Conv", "ConvInteger", "FusedConv", "FusedGemm", "FusedMatMul", "Gelu", "Gemm",
    "LayerNormalization", "MatMul", "MatMulInteger", "MatMulNBits", "MultiHeadAttention", "QLinearConv",
    "QLinearMatMul", "SkipLayerNormalization", "Softmax",
}  # fmt: skip


@dataclass(frozen=True)
class Provider:
    """An execution provider: its name, a line about it, its options, and the package of a plugin."""

    name: str
    summary: str
    options: dict[str, str] = field(default_factory=dict)
    package: str | None = None


# Tensor cores would round float32 products to 10 bits by default; a float32 engine must be one.
CUDA_OPTIONS = {"use_tf32": "0"}
# TensorRT's provider gets no precision flags: with any of them its network is weakly typed, and FP32 may run in FP16.
PROVIDERS: dict[OrtRuntime, Provider] = {
    "ort-cpu": Provider(CPU, "ONNX Runtime, CPU provider"),
    "ort-cuda": Provider("CUDAExecutionProvider", "ONNX Runtime, CUDA provider", CUDA_OPTIONS),
    "ort-tensorrt": Provider("TensorrtExecutionProvider", "ONNX Runtime, TensorRT provider"),
    "ort-tensorrt-rtx": Provider(
        "NvTensorRTRTXExecutionProvider", "ONNX Runtime, TensorRT-RTX plugin provider", package=RTX_PLUGIN
    ),
}


def find_provider(runtime: OrtRuntime) -> Provider:
    """The provider of a runtime; raises RuntimeUnavailable where this installation or this machine lacks it."""
    import onnxruntime

    provider = PROVIDERS[runtime]
    if provider.package is not None:
        try:
            import_module(provider.package)
        except ImportError as error:
            raise RuntimeUnavailable(
                f"runtime {runtime!r} needs the package {provider.package}: "
                f"pip install {provider.package.replace('_', '-')}"
            ) from error
    elif provider.name not in onnxruntime.get_available_providers():
        raise RuntimeUnavailable(
            f"runtime {runtime!r}: this ONNX Runtime has no {provider.name}; pip install onnxruntime-gpu "
            "(after pip uninstall onnxruntime)"
        )
    if runtime != "ort-cpu":
        try:
            current_gpu()
        except RuntimeUnavailable as error:
            raise RuntimeUnavailable(f"runtime {runtime!r}: {error}") from error
    return provider


def make_session(path: str, runtime: OrtRuntime, options: Any) -> Any:
    """An inference session on the runtime's provider alone; raises EngineError where work would fall to the CPU.

    Raises whatever the runtime raises where it cannot load the file.
    """
    import onnxruntime

    provider = find_provider(runtime)
    if runtime == "ort-cpu":
        return onnxruntime.InferenceSession(path, options, providers=[provider.name])
    if hasattr(onnxruntime, "preload_dlls"):
        # cuBLAS and cuDNN come as wheels of their own; this finds them.
        onnxruntime.preload_dlls()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if provider.package is not None:
        plugin = import_module(provider.package)
        # A library can be registered once in a process.
        if not any(device.ep_name == provider.name for device in onnxruntime.get_ep_devices()):
            onnxruntime.register_execution_provider_library(provider.name, plugin.get_library_path())
        devices = [device for device in onnxruntime.get_ep_devices() if device.ep_name == provider.name]
        if not devices:
            raise RuntimeUnavailable(f"runtime {runtime!r}: {provider.package} finds no GPU it supports")
        options.add_provider_for_devices(devices[:1], provider.options)
        session = onnxruntime.InferenceSession(path, options)
    else:
        chosen = [(provider.name, provider.options), CPU]
        # Its own fallback prints on stdout, tries other providers, and loses the reason.
        session = onnxruntime.InferenceSession(path, options, providers=chosen, enable_fallback=0)
    refuse_fallback(session, runtime, provider)
    return session


def refuse_fallback(session: Any, runtime: OrtRuntime, provider: Provider) -> None:
    """Raise EngineError where the provider was dropped, or where computing nodes were assigned to the CPU."""
    if provider.name not in session.get_providers():
        raise EngineError(f"{runtime}: loaded on {session.get_providers()}, not on {provider.name}")
    fallen: Counter[str] = Counter()
    for part in session.get_provider_graph_assignment_info():
        if part.ep_name == CPU:
            fallen.update(node.op_type for node in part.get_nodes() if node.op_type in COMPUTE)
    if fallen:
        counted = ", ".join(f"{count} {op}" for op, count in fallen.most_common(4))
        raise EngineError(f"{runtime}: {counted} would run on the CPU; this bundle does not fit {provider.name}")
